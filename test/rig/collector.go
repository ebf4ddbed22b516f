package rig

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/otlp"
)

// Collector receives OTLP in a pod: by gRPC, and by HTTP with protobuf at /v1/traces.
type Collector struct {
	mu       sync.Mutex // guards what follows
	spans    []otlp.Span
	records  []otlp.Record
	resource map[string]string
	requests []string // content types
	headers  http.Header
	answer   func() int
}

// Collector listens at a port of a pod for the length of the test.
func (w *World) Collector(in lab.Where, port int) *Collector {
	w.t.Helper()
	c := &Collector{answer: func() int { return http.StatusOK }}
	l := w.Listen(in, fmt.Sprintf("[::]:%d", port))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	answer := func() int {
		c.mu.Lock()
		f := c.answer
		c.mu.Unlock()
		return f()
	}
	s := &http.Server{Handler: otlp.Receiver{Answer: answer, Take: c.take}, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close(); <-done })
	return c
}

func (c *Collector) take(m otlp.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records = append(c.records, m.Records...)
	if len(m.Spans) > 0 {
		c.spans, c.resource = append(c.spans, m.Spans...), m.Resource
		c.requests, c.headers = append(c.requests, m.Header.Get("Content-Type")), m.Header
	}
}

// Answer has the collector answer with what f returns, a status of HTTP, from now on.
func (c *Collector) Answer(f func() int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = f
}

// Spans returns what has come.
func (c *Collector) Spans() []otlp.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Records returns the log records that have come.
func (c *Collector) Records() []otlp.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.records)
}

// Of returns the spans of a trace, those of servers first.
func (c *Collector) Of(trace string) []otlp.Span { return otlp.Of(c.Spans(), trace) }

// Resource returns the attributes of the last sender, and the content types of all
// requests.
func (c *Collector) Resource() (attributes map[string]string, types []string, last http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.resource), slices.Clone(c.requests), c.headers.Clone()
}
