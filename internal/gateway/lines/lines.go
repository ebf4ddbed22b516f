// Package lines writes what users want to read of requests into the access log: in which
// formats, and of which requests.
package lines

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/gateway/attributes"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/logline"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/export"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
)

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
func (w *Writer) Write(to *accesslog.Requests, logs []observe.Log, e *accesslog.Request, more *attributes.More, limit *accesslog.Limit) {
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
		if w.format, _ = l.Format.(*logline.Format); l.Collector != nil {
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
	if labels, has := l.Labels.(*logline.Format); has {
		w.label = labels.Labels(&w.values, w.label, w.each)
	}
	w.Records.Add(l.Collector, e.Src.Namespace, w.encoder.Bytes())
	if cap(w.line) > maxKept {
		w.line = nil
	}
}

var lineEnd = []byte{'\n'}

// maxKept is the largest buffer that is kept, in bytes.
const maxKept = 16 << 10

func (w *Writer) fill(e *accesslog.Request, more *attributes.More) {
	w.values = logline.Values{
		Start: e.Start, Duration: e.Duration, FirstByte: e.FirstByte, Answered: e.Answered, Method: e.Method, Path: e.Path, Authority: e.Authority,
		Head: more.Head, Protocol: e.Protocol, Status: e.Status, Flags: e.Flag(), Details: e.Details(), Failure: e.Failure(), Received: e.Received, Sent: e.Sent,
		Heads: more.Heads, Metadata: more.Metadata, Tries: e.Tries, GRPC: more.GRPC, GRPCStatus: more.GRPCStatus, Upstream: e.Upstream, Called: e.Called, Client: e.Client,
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
func holds(filter observe.Condition, e *accesslog.Request, more *attributes.More) bool {
	c, is := filter.(*expr.Condition)
	if !is {
		return false
	}
	ok, err := c.Holds(attributes.Of(c, e, more))
	return err == nil && ok
}
