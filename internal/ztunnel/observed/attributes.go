package observed

import (
	"net/netip"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/condition"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
)

// tags evaluates the expressions that labels of metrics are made of.
func tags(values []observe.Value, e *accesslog.Entry) telemetry.Tags {
	var b []byte
	for _, v := range values {
		text, ok := "", false
		if x, is := v.(*condition.Expression); is {
			text, ok = x.Text((*attributes)(e))
		}
		b = telemetry.AppendTag(b, v.ID(), text, ok)
	}
	return telemetry.Tags(b)
}

// attributes are what expressions see of a connection. They are called as a waypoint calls
// them.
type attributes accesslog.Entry

// Attribute implements condition.Attributes.
func (e *attributes) Attribute(a telemetrypb.Expression_Attribute) condition.Value {
	switch a {
	case telemetrypb.Expression_SOURCE_ADDRESS:
		return addressOf(e.Src.Addr)
	case telemetrypb.Expression_SOURCE_PORT:
		return portOf(e.Src.Addr)
	case telemetrypb.Expression_SOURCE_PRINCIPAL, telemetrypb.Expression_CONNECTION_URI_SAN_PEER_CERTIFICATE:
		return text(e.Src.Identity)
	case telemetrypb.Expression_SOURCE_WORKLOAD:
		return text(e.Src.Workload)
	case telemetrypb.Expression_SOURCE_NAMESPACE:
		return text(e.Src.Namespace)
	case telemetrypb.Expression_DESTINATION_ADDRESS:
		if t, err := connect.ParseTarget(e.HBONEAddr); err == nil {
			if t.IsHost() {
				return condition.Value{}
			}
			return condition.Text(t.Addr.String())
		}
		return addressOf(e.Dst.Addr)
	case telemetrypb.Expression_DESTINATION_PORT:
		// What the connection is for, which the port of the tunnel's end is not.
		if t, err := connect.ParseTarget(e.HBONEAddr); err == nil {
			return condition.Number(int64(t.TargetPort()))
		}
		return portOf(e.Dst.Addr)
	case telemetrypb.Expression_DESTINATION_PRINCIPAL:
		return text(e.Dst.Identity)
	case telemetrypb.Expression_DESTINATION_WORKLOAD:
		return text(e.Dst.Workload)
	case telemetrypb.Expression_DESTINATION_NAMESPACE:
		return text(e.Dst.Namespace)
	case telemetrypb.Expression_DESTINATION_SERVICE:
		return text(e.Service)
	case telemetrypb.Expression_CONNECTION_MTLS:
		return condition.Truth(e.Src.Identity != "" || e.Dst.Identity != "")
	case telemetrypb.Expression_CONNECTION_TERMINATION_DETAILS:
		if e.Reason != reason.OK {
			return condition.Text(e.Reason.String())
		}
	default: // such as the name of the server, which is not read
	}
	return condition.Value{}
}

func addressOf(a netip.AddrPort) condition.Value {
	if !a.IsValid() {
		return condition.Value{}
	}
	return condition.Text(a.String())
}

func portOf(a netip.AddrPort) condition.Value {
	if !a.IsValid() {
		return condition.Value{}
	}
	return condition.Number(int64(a.Port()))
}

// text returns a text as a value; an empty one is none.
func text(s string) condition.Value {
	if s == "" {
		return condition.Value{}
	}
	return condition.Text(s)
}
