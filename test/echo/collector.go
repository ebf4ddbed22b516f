package main

import (
	"context"
	"encoding/json"
	"net"
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
	// That of gRPC is the last, as readiness probes ask it.
	for _, at := range []string{*byHTTP, *byGRPC} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		s := &http.Server{Protocols: &protocols, ReadHeaderTimeout: time.Minute, Handler: handler}
		context.AfterFunc(ctx, func() { _ = s.Close() })
		go func() { errc <- s.Serve(l) }()
	}
	if err := <-errc; err != http.ErrServerClosed { //nolint:errorlint // never wrapped
		return err
	}
	return nil
}
