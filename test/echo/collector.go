package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxSpans bounds a message of spans in bytes.
const maxSpans = 8 << 20

// collector prints the spans that it gets by OTLP over HTTP.
func collector(ctx context.Context, args []string) error {
	f := flags("collector")
	listen := f.String("http", ":4318", "")
	_ = f.Parse(args)
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	s := &http.Server{Addr: *listen, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSpans))
		var spans collectorpb.ExportTraceServiceRequest
		if err != nil || proto.Unmarshal(body, &spans) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, res := range spans.ResourceSpans {
			for _, scope := range res.ScopeSpans {
				for _, sp := range scope.Spans {
					line := map[string]any{
						"trace": hex.EncodeToString(sp.TraceId), "span": hex.EncodeToString(sp.SpanId), "parent": hex.EncodeToString(sp.ParentSpanId), "name": sp.Name,
						"kind": sp.Kind.String(), "microseconds": (sp.EndTimeUnixNano - sp.StartTimeUnixNano) / 1000,
					}
					for _, a := range sp.Attributes {
						if a.Key == "url.path" {
							line["path"] = a.GetValue().GetStringValue()
						}
					}
					_ = out.Encode(line)
				}
			}
		}
	})}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if err := s.ListenAndServe(); err != http.ErrServerClosed { //nolint:errorlint // never wrapped
		return err
	}
	return nil
}
