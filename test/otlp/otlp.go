// Package otlp receives spans and log records by OTLP, over gRPC and over HTTP, and reads
// the lines that test/echo's collector prints of them.
package otlp

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxMessage bounds a message in bytes.
const maxMessage = 8 << 20

// Kinds of spans, by their numbers in OTLP.
const (
	Server = tracepb.Span_SPAN_KIND_SERVER
	Client = tracepb.Span_SPAN_KIND_CLIENT
)

// Span is one that was received.
type Span struct {
	Trace, ID, Parent string // hexadecimal
	Name              string
	Kind              tracepb.Span_SpanKind
	Took              time.Duration
	Error             bool              `json:",omitempty"`
	State             string            `json:",omitempty"`
	Attributes        map[string]string `json:",omitempty"`
	Links             []string          `json:",omitempty"` // traces
}

// Record is a log record that was received.
type Record struct {
	Trace, Body string
	Severity    int
	Attributes  map[string]string `json:",omitempty"`
}

// Message is what one request brought.
type Message struct {
	Spans    []Span            `json:",omitempty"`
	Records  []Record          `json:",omitempty"`
	Resource map[string]string // attributes of the sender
	Header   http.Header       // of the request
}

// Receiver takes messages at all paths of the log service and at all others of the trace
// service. It implements http.Handler.
type Receiver struct {
	// Answer returns the status of the next answer, as HTTP has it; a message with
	// another status than 200 is not taken. Nil is always 200.
	Answer func() int
	// Take gets each message. Several requests call it at once.
	Take func(Message)
}

// ServeHTTP implements http.Handler.
func (c Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		return
	}
	status := http.StatusOK
	if c.Answer != nil {
		status = c.Answer()
	}
	isGRPC := strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
	switch {
	case isGRPC && (len(body) < 5 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5):
		status = http.StatusBadRequest
	case isGRPC:
		body = body[5:]
	case r.URL.Path != "/v1/traces":
		status = http.StatusNotFound
	}
	if status == http.StatusOK {
		m := Message{Header: r.Header.Clone()}
		if strings.Contains(r.URL.Path, "LogsService") {
			err = m.readLogs(body)
		} else {
			err = m.readSpans(body)
		}
		if err != nil {
			status = http.StatusBadRequest
		} else {
			c.Take(m)
		}
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

func (m *Message) readLogs(body []byte) error {
	var req logspb.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return err
	}
	for _, res := range req.ResourceLogs {
		m.Resource = values(res.Resource.GetAttributes())
		for _, scope := range res.ScopeLogs {
			for _, l := range scope.LogRecords {
				m.Records = append(m.Records, Record{hex.EncodeToString(l.TraceId), l.Body.GetStringValue(), int(l.SeverityNumber), values(l.Attributes)})
			}
		}
	}
	return nil
}

func (m *Message) readSpans(body []byte) error {
	var req collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &req); err != nil {
		return err
	}
	for _, res := range req.ResourceSpans {
		m.Resource = values(res.Resource.GetAttributes())
		for _, scope := range res.ScopeSpans {
			for _, s := range scope.Spans {
				out := Span{
					Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId), Name: s.Name, Kind: s.Kind,
					Took:  time.Duration(s.EndTimeUnixNano - s.StartTimeUnixNano), //nolint:gosec // of one machine
					Error: s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR, State: s.TraceState, Attributes: values(s.Attributes),
				}
				for _, l := range s.Links {
					out.Links = append(out.Links, hex.EncodeToString(l.TraceId))
				}
				m.Spans = append(m.Spans, out)
			}
		}
	}
	return nil
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

// Messages reads what the collector has printed, a line of JSON for each message. Other
// lines are left out.
func Messages(text string) (all []Message) {
	for line := range strings.Lines(text) {
		var m Message
		if json.Unmarshal([]byte(line), &m) == nil && len(m.Spans)+len(m.Records) > 0 {
			all = append(all, m)
		}
	}
	return all
}

// Of returns the spans of a trace, those of servers first.
func Of(spans []Span, trace string) []Span {
	out := slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return s.Trace != trace })
	slices.SortStableFunc(out, func(a, b Span) int { return int(a.Kind) - int(b.Kind) })
	return out
}

// Servers returns the spans of servers.
func Servers(spans []Span) []Span {
	return slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return s.Kind != Server })
}
