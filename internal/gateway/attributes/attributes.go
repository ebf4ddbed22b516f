// Package attributes is what users' expressions see of requests and connections: Envoy's
// attributes, and the values of labels that are made of them.
package attributes

import (
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

// More is what a request has beside the fields of the gateway's own line.
type More struct {
	Head        *message.Head // nil without HTTP
	Heads       struct{ Request, Response int64 }
	GRPC        bool
	GRPCStatus  int    // -1 without one
	Destination string // host of the service that was called
	// Metadata is that of the answers of external authorizers.
	Metadata *extauthz.Metadata
}

// Uses reports whether an expression names a root, such as request.
type Uses interface{ Uses(root string) bool }

// several uses what one of several expressions uses.
type several []observe.Value

// Uses implements Uses.
func (a several) Uses(root string) bool {
	for _, v := range a {
		if u, is := v.(Uses); is && u.Uses(root) {
			return true
		}
	}
	return false
}

// Tags evaluates the expressions that labels of metrics are made of.
func Tags(values []observe.Value, e *accesslog.Request, more *More) telemetry.Tags {
	if len(values) == 0 {
		return ""
	}
	of := Of(several(values), e, more)
	var b []byte
	for _, v := range values {
		text, ok := "", false
		if x, is := v.(*expr.Value); is {
			text, ok = x.Text(of)
		}
		b = telemetry.AppendTag(b, v.ID(), text, ok)
	}
	return telemetry.Tags(b)
}

// Of returns the attributes of a request or connection, of the roots that are used.
func Of(c Uses, e *accesslog.Request, more *More) expr.Attributes {
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
		text(m, "requested_server_name", e.SNI)
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
	if c.Uses("metadata") {
		known := map[string]any{}
		if more.Metadata != nil {
			known[extauthz.MetadataNamespace] = more.Metadata.Values()
		}
		out["metadata"] = map[string]any{"filter_metadata": known}
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
