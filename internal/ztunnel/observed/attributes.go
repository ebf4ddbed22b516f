package observed

import (
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

// tags evaluates the expressions that labels of metrics are made of.
func tags(values []*expr.Value, e *accesslog.Entry) telemetry.Tags {
	var b []byte
	for _, v := range values {
		text, ok := v.Text(attributes(v, e))
		b = telemetry.AppendTag(b, v.ID(), text, ok)
	}
	return telemetry.Tags(b)
}

// attributes returns what expressions see of a connection, of the roots that are used.
// They are called as a waypoint calls them.
func attributes(c interface{ Uses(root string) bool }, e *accesslog.Entry) expr.Attributes {
	out := expr.Attributes{}
	if c.Uses("source") {
		out["source"] = partyOf(&e.Src)
	}
	if c.Uses("destination") {
		out["destination"] = partyOf(&e.Dst)
		called(out["destination"], e.HBONEAddr)
		text(out["destination"], "service", e.Service)
	}
	if c.Uses("connection") {
		m := map[string]any{"mtls": e.Src.Identity != "" || e.Dst.Identity != ""}
		text(m, "uri_san_peer_certificate", e.Src.Identity)
		if e.Reason != reason.OK {
			m["termination_details"] = e.Reason.String()
		}
		out["connection"] = m
	}
	return out
}

// called sets the address and port that the connection is for, which those of the tunnel's
// end are not.
func called(m map[string]any, target string) {
	t, err := connect.ParseTarget(target)
	if err != nil {
		return // there is no tunnel
	}
	m["port"] = int64(t.TargetPort())
	if delete(m, "address"); !t.IsHost() {
		m["address"] = t.Addr.String()
	}
}

func partyOf(p *accesslog.Party) map[string]any {
	m := map[string]any{}
	if p.Addr.IsValid() {
		m["address"], m["port"] = p.Addr.String(), int64(p.Addr.Port())
	}
	text(m, "principal", p.Identity)
	text(m, "workload", p.Workload)
	text(m, "namespace", p.Namespace)
	return m
}

// text sets a field that has a value.
func text(m map[string]any, name, value string) {
	if value != "" {
		m[name] = value
	}
}
