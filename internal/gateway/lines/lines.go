// Package lines writes what users want to read of requests into the access log: in which
// formats, and of which requests.
package lines

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/gateway/export"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/logline"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
)

// More is what a request has beside the fields of the gateway's own line.
type More struct {
	Head        *message.Head // nil without HTTP
	Heads       struct{ Request, Response int64 }
	GRPC        bool
	GRPCStatus  int    // -1 without one
	Destination string // host of the service that was called
}

// Writer writes the lines of one loop. It belongs to that loop.
type Writer struct {
	// Records sends lines to collectors; nil: they are dropped.
	Records *export.Exporter

	format  *logline.Format
	values  logline.Values
	encoder otlp.Encoder
	line    []byte // scratch
	label   []byte // scratch
	each    func(name string, value []byte)
}

// Append implements accesslog.Line.
func (w *Writer) Append(b []byte) []byte { return w.format.Append(b, &w.values) }

// Write writes the lines of a request, as many as its client may have.
func (w *Writer) Write(to *accesslog.Requests, logs []observe.Log, e *accesslog.Request, more *More, limit *accesslog.Limit) {
	filled := false
	for i := range logs {
		l := &logs[i]
		if l.Filter != nil && !holds(l.Filter, e, more) || !limit.Permit(e.Reason == reason.OK) {
			continue
		}
		if l.Format == nil {
			to.Write(e)
			continue
		}
		if !filled {
			w.fill(e, more)
			filled = true
		}
		if w.format = l.Format; l.Collector != nil {
			w.send(l, e)
			continue
		}
		to.WriteLine(w)
	}
	if filled {
		w.values, w.format = logline.Values{}, nil
	}
}

// send sends a line as a log record. The room for records is shared by the namespaces of
// clients.
func (w *Writer) send(l *observe.Log, e *accesslog.Request) {
	if w.Records == nil {
		return
	}
	if w.each == nil {
		w.each = func(name string, value []byte) { otlp.String(&w.encoder, name, value) }
	}
	severity := otlp.SeverityInfo
	if e.Reason != reason.OK {
		severity = otlp.SeverityError
	}
	w.line = w.format.Append(w.line[:0], &w.values)
	w.encoder.BeginLog(e.Start, e.Start.Add(e.Duration), severity, bytes.TrimSuffix(w.line, lineEnd), e.TraceID)
	if l.Labels != nil {
		w.label = l.Labels.Labels(&w.values, w.label, w.each)
	}
	w.Records.Add(l.Collector, e.Src.Namespace, w.encoder.Bytes())
	if cap(w.line) > maxKept {
		w.line = nil
	}
}

var lineEnd = []byte{'\n'}

// maxKept is the largest buffer that is kept, in bytes.
const maxKept = 16 << 10

func (w *Writer) fill(e *accesslog.Request, more *More) {
	w.values = logline.Values{
		Start: e.Start, Duration: e.Duration, FirstByte: e.FirstByte, Answered: e.Answered, Method: e.Method, Path: e.Path, Authority: e.Authority,
		Head: more.Head, Protocol: e.Protocol, Status: e.Status, Flags: e.Flag(), Details: e.Details(), Failure: e.Failure(), Received: e.Received, Sent: e.Sent,
		Heads: more.Heads, Tries: e.Tries, GRPC: more.GRPC, GRPCStatus: more.GRPCStatus, Upstream: e.Upstream, Called: e.Called, Client: e.Client,
		ClusterKind: e.ClusterKind, ClusterHost: e.ClusterHost, ClusterPort: e.ClusterPort, Route: e.Route, TraceID: e.TraceID, Source: e.Src.Identity,
		Dest: e.Dst.Identity, Policy: e.Policy, SourceWorkload: e.Src.Workload, SourceNamespace: e.Src.Namespace, EndpointWorkload: e.Dst.Workload,
		EndpointNamespace: e.Dst.Namespace,
	}
	if e.Reason != reason.OK {
		w.values.Reason = e.Reason.String()
	}
}

// holds evaluates a filter. One that has no value for this request, or costs too much,
// does not hold, as in Envoy.
func holds(c *expr.Condition, e *accesslog.Request, more *More) bool {
	ok, err := c.Holds(attributes(c, e, more))
	return err == nil && ok
}

// attributes are Envoy's, of the roots that a condition uses.
func attributes(c *expr.Condition, e *accesslog.Request, more *More) expr.Attributes {
	out := expr.Attributes{}
	if h := more.Head; h != nil && c.Uses("request") {
		out["request"] = request(e, h, more)
	}
	if c.Uses("response") {
		m := map[string]any{"code": int64(e.Status), "flags": e.Flag(), "size": e.Sent, "total_size": e.Sent + more.Heads.Response}
		text(m, "code_details", e.Details())
		if more.GRPC && more.GRPCStatus >= 0 {
			m["grpc_status"] = int64(more.GRPCStatus)
		}
		out["response"] = m
	}
	if c.Uses("source") {
		m := map[string]any{"address": e.Client.String(), "port": int64(e.Client.Port())}
		text(m, "principal", e.Src.Identity)
		text(m, "workload", e.Src.Workload)
		text(m, "namespace", e.Src.Namespace)
		out["source"] = m
	}
	if c.Uses("destination") {
		m := map[string]any{}
		if e.Called.IsValid() {
			m["address"], m["port"] = e.Called.String(), int64(e.Called.Port())
		}
		text(m, "principal", e.Dst.Identity)
		text(m, "workload", e.Dst.Workload)
		text(m, "namespace", e.Dst.Namespace)
		text(m, "service", more.Destination)
		out["destination"] = m
	}
	if c.Uses("connection") {
		m := map[string]any{"mtls": e.Src.Identity != ""}
		text(m, "uri_san_peer_certificate", e.Src.Identity)
		out["connection"] = m
	}
	if c.Uses("upstream") {
		m := map[string]any{"request_attempt_count": int64(e.Tries)}
		if e.Upstream.IsValid() {
			m["address"], m["port"] = e.Upstream.String(), int64(e.Upstream.Port())
		}
		text(m, "transport_failure_reason", e.Failure())
		out["upstream"] = m
	}
	if c.Uses("xds") {
		m := map[string]any{}
		text(m, "route_name", e.Route)
		text(m, "cluster_name", string(e.AppendCluster(nil)))
		out["xds"] = m
	}
	return out
}

func request(e *accesslog.Request, h *message.Head, more *More) map[string]any {
	m := map[string]any{
		"path": string(e.Path), "host": string(e.Authority), "scheme": "http", "method": string(e.Method), "protocol": e.Protocol, "time": e.Start,
		"duration": e.Duration, "size": e.Received, "total_size": e.Received + more.Heads.Request,
	}
	path, query := e.Path, []byte(nil)
	for i, c := range e.Path {
		if c == '?' {
			path, query = e.Path[:i], e.Path[i+1:]
			break
		}
	}
	m["url_path"], m["query"] = string(path), string(query)
	text(m, "useragent", string(e.UserAgent))
	text(m, "id", string(e.ID))
	headers := make(map[string]string, len(h.Fields))
	for i := range h.Fields {
		name := lower(h.Fields[i].Name)
		if old, twice := headers[name]; twice {
			headers[name] = old + "," + string(h.Fields[i].Value)
			continue
		}
		headers[name] = string(h.Fields[i].Value)
	}
	m["headers"] = headers
	text(m, "referer", headers["referer"])
	return m
}

// text sets a field that has a value.
func text(m map[string]any, name, value string) {
	if value != "" {
		m[name] = value
	}
}

func lower(name []byte) string {
	b := []byte(string(name))
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
