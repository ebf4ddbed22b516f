package rig

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// Collector receives OTLP in a pod: by gRPC, and by HTTP with protobuf at /v1/traces.
type Collector struct {
	mu       sync.Mutex // guards what follows
	spans    []Span
	records  []Record
	resource map[string]string
	requests []string // content types
	headers  http.Header
	answer   func() int
}

// Span is one that was received.
type Span struct {
	Trace, ID, Parent string // hexadecimal
	Name              string
	Kind              tracepb.Span_SpanKind
	Error             bool
	State             string
	Attributes        map[string]string
	Links             []string // traces
}

// Record is a log record that was received.
type Record struct {
	Trace, Body string
	Severity    int
	Attributes  map[string]string
}

// Records returns the log records that have come.
func (c *Collector) Records() []Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.records)
}

func (c *Collector) takeLogs(body []byte) int {
	var req logspb.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return http.StatusBadRequest
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, res := range req.ResourceLogs {
		for _, scope := range res.ScopeLogs {
			for _, l := range scope.LogRecords {
				c.records = append(c.records, Record{hex.EncodeToString(l.TraceId), l.Body.GetStringValue(), int(l.SeverityNumber), values(l.Attributes)})
			}
		}
	}
	return http.StatusOK
}

// Collector listens at a port of a pod for the length of the test.
func (w *World) Collector(in lab.Where, port int) *Collector {
	w.t.Helper()
	c := &Collector{answer: func() int { return http.StatusOK }}
	l := w.Listen(in, fmt.Sprintf("[::]:%d", port))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: c, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close(); <-done })
	return c
}

// Answer has the collector answer with what f returns, a status of HTTP, from now on.
func (c *Collector) Answer(f func() int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = f
}

// Spans returns what has come.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Of returns the spans of a trace, those of servers first.
func (c *Collector) Of(trace string) []Span {
	out := slices.DeleteFunc(c.Spans(), func(s Span) bool { return s.Trace != trace })
	slices.SortStableFunc(out, func(a, b Span) int { return int(a.Kind) - int(b.Kind) })
	return out
}

// Resource returns the attributes of the last sender, and the content types of all
// requests.
func (c *Collector) Resource() (attributes map[string]string, types []string, last http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.resource), slices.Clone(c.requests), c.headers.Clone()
}

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	answer := c.answer
	c.mu.Unlock()
	status := answer()
	isGRPC := strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
	switch {
	case isGRPC && (len(body) < 5 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5):
		status = http.StatusBadRequest
	case isGRPC:
		body = body[5:]
	case r.URL.Path != "/v1/traces":
		status = http.StatusNotFound
	}
	switch {
	case status != http.StatusOK:
	case strings.Contains(r.URL.Path, "LogsService"):
		status = c.takeLogs(body)
	default:
		status = c.take(body, r)
	}
	if !isGRPC {
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	if status == http.StatusOK {
		_, _ = w.Write(make([]byte, 5)) // an empty message
		w.Header().Set("Grpc-Status", "0")
		return
	}
	w.Header().Set("Grpc-Status", "14")
}

func (c *Collector) take(body []byte, r *http.Request) int {
	var req collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return http.StatusBadRequest
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests, c.headers = append(c.requests, r.Header.Get("Content-Type")), r.Header.Clone()
	for _, res := range req.ResourceSpans {
		c.resource = values(res.Resource.GetAttributes())
		for _, scope := range res.ScopeSpans {
			for _, s := range scope.Spans {
				out := Span{
					Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId), Name: s.Name, Kind: s.Kind,
					Error: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR, State: s.TraceState, Attributes: values(s.Attributes),
				}
				for _, l := range s.Links {
					out.Links = append(out.Links, hex.EncodeToString(l.TraceId))
				}
				c.spans = append(c.spans, out)
			}
		}
	}
	return http.StatusOK
}

func values(list []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[a.Key] = fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_BoolValue:
			out[a.Key] = fmt.Sprint(v.BoolValue)
		case *commonpb.AnyValue_DoubleValue:
			out[a.Key] = fmt.Sprint(v.DoubleValue)
		}
	}
	return out
}
