package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/test/otlp"
)

// collector prints the spans and log records that it gets by OTLP.
func collector(ctx context.Context, args []string) error {
	f := flags("collector")
	byHTTP := f.String("http", ":4318", "address for OTLP over HTTP")
	byGRPC := f.String("grpc", ":4317", "address for OTLP over gRPC")
	_ = f.Parse(args)
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	handler := otlp.Receiver{Take: func(m otlp.Message) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(m)
	}}
	errc := make(chan error, 2)
	for _, at := range []string{*byHTTP, *byGRPC} {
		s := &http.Server{Addr: at, Protocols: &protocols, ReadHeaderTimeout: time.Minute, Handler: handler}
		context.AfterFunc(ctx, func() { _ = s.Close() })
		go func() { errc <- s.ListenAndServe() }()
	}
	if err := <-errc; err != http.ErrServerClosed { //nolint:errorlint // never wrapped
		return err
	}
	return nil
}
