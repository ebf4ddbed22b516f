package telemetry

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	apitelemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
)

// Made is a Telemetry as gateways get it. It is immutable.
type Made struct {
	layer *telemetrypb.Layer // lacks its scope and what it is for: see For
	// Refused are fields that gateways do not honour, each with its cause. Invalid are
	// those that mean nothing. The rest of the object is in effect.
	Refused, Invalid []string
	// Effective is false when nothing is left that has an effect.
	Effective bool
	// Nodes is the same for node proxies.
	Nodes *Nodes
}

// Translate compiles a Telemetry for gateways and node proxies.
func Translate(t *telemetryv1.Telemetry, mesh *Mesh, hosts Hosts) *Made {
	m := translate(t, translator{mesh: mesh, hosts: hosts})
	m.Nodes = forNodes(t, mesh, hosts)
	return m
}

func translate(t *telemetryv1.Telemetry, x translator) *Made {
	m := &Made{layer: &telemetrypb.Layer{Namespace: t.Namespace, Name: t.Name, Created: t.CreationTimestamp.Unix()}}
	if t.CreationTimestamp.IsZero() {
		m.layer.Created = 0
	}
	x.m = m
	x.tracing(t.Spec.GetTracing())
	x.logs(t.Spec.GetAccessLogging())
	x.metrics(t.Spec.GetMetrics())
	m.Effective = m.layer.Tracing != nil || len(m.layer.AccessLogging) > 0 || len(m.layer.Metrics) > 0
	return m
}

type translator struct {
	m     *Made
	mesh  *Mesh
	hosts Hosts
	// half is set for node proxies: CLIENT or SERVER.
	half apitelemetry.WorkloadMode
}

func (x *translator) refuse(at, format string, args ...any) {
	x.m.Refused = append(x.m.Refused, at+": "+fmt.Sprintf(format, args...))
}

func (x *translator) invalid(at, format string, args ...any) {
	x.m.Invalid = append(x.m.Invalid, at+": "+fmt.Sprintf(format, args...))
}

// serves reports whether a mode has to do with a waypoint, which reports as the server, or
// with the half of a node proxy.
func (x *translator) serves(at string, mode apitelemetry.WorkloadMode) bool {
	if x.connections() {
		return mode == apitelemetry.WorkloadMode_CLIENT_AND_SERVER || mode == x.half
	}
	if mode == apitelemetry.WorkloadMode_CLIENT {
		x.refuse(at+".match.mode", "a waypoint reports as the server; write SERVER, or leave it out")
		return false
	}
	return true
}

func (x *translator) tracing(list []*apitelemetry.Tracing) {
	used := false
	for i, t := range list {
		at := fmt.Sprintf("spec.tracing[%d]", i)
		switch {
		case !x.serves(at, t.GetMatch().GetMode()):
			continue
		case used:
			x.refuse(at, "only the first rule is used")
			continue
		}
		used = true
		if pb := x.rule(at, t); pb != nil {
			x.m.layer.Tracing = pb
		}
	}
}

// rule translates one rule of tracing; nil when nothing of it has a meaning.
func (x *translator) rule(at string, t *apitelemetry.Tracing) *telemetrypb.Tracing {
	out := &telemetrypb.Tracing{}
	if list := t.GetProviders(); len(list) > 0 {
		if len(list) > 1 {
			x.refuse(at+".providers", "only the first provider is used")
		}
		c, err := x.mesh.traced(list[0].GetName(), x.hosts)
		if err != nil {
			x.invalid(at+".providers[0]", "%v", err)
		}
		out.Collector = c
	}
	if v := t.GetRandomSamplingPercentage(); v != nil {
		one := &telemetrypb.Tracing{Sampling: proto.Float64(v.GetValue())}
		if err := check(&telemetrypb.Layer{Tracing: one}); err != nil {
			x.invalid(at+".randomSamplingPercentage", "%v is not between 0 and 100", v.GetValue())
		} else {
			out.Sampling = one.Sampling
		}
	}
	if v := t.GetDisableSpanReporting(); v != nil {
		out.ReportingDisabled = proto.Bool(v.GetValue())
	}
	if v := t.GetDisableContextPropagation(); v != nil {
		out.PropagationDisabled = proto.Bool(v.GetValue())
	}
	if v := t.GetEnableIstioTags(); v != nil {
		out.IstioTags = proto.Bool(v.GetValue())
	}
	if t.GetUseRequestIdForTraceSampling().GetValue() {
		x.refuse(at+".useRequestIdForTraceSampling", "the decision is in traceparent or in the headers of B3, and never in X-Request-Id; write false, or leave it out")
	}
	if len(t.GetCustomTags()) > 0 {
		out.CustomTags = &telemetrypb.CustomTags{}
		for _, name := range slices.Sorted(maps.Keys(t.GetCustomTags())) {
			if tag := x.tag(at+".customTags["+name+"]", name, t.GetCustomTags()[name]); tag != nil {
				out.CustomTags.Tags = append(out.CustomTags.Tags, tag)
			}
		}
	}
	if x.connections() {
		x.traceConnections(at, out)
	}
	if err := check(&telemetrypb.Layer{Tracing: out}); err != nil {
		x.invalid(at, "%v", err) // such as too many of something
		return nil
	}
	return out
}

func (x *translator) tag(at, name string, t *apitelemetry.Tracing_CustomTag) *telemetrypb.CustomTag {
	out := &telemetrypb.CustomTag{Name: name}
	switch {
	case t.GetLiteral() != nil:
		out.Literal = t.GetLiteral().GetValue()
	case t.GetEnvironment() != nil:
		out.Environment, out.Default = t.GetEnvironment().GetName(), t.GetEnvironment().GetDefaultValue()
	case t.GetHeader() != nil:
		out.Header, out.Default = t.GetHeader().GetName(), t.GetHeader().GetDefaultValue()
	case t.GetFormatter() != nil:
		x.refuse(at+".formatter", "waypoints do not honour it; use literal, environment or header")
		return nil
	}
	if err := check(&telemetrypb.Layer{Tracing: &telemetrypb.Tracing{CustomTags: &telemetrypb.CustomTags{Tags: []*telemetrypb.CustomTag{out}}}}); err != nil {
		x.invalid(at, "%v", err)
		return nil
	}
	return out
}

// For returns the message for some services, or, without any, for a gateway.
func (m *Made) For(services []authz.Service) []byte {
	l := proto.CloneOf(m.layer)
	l.Scope = telemetrypb.Scope_GATEWAY
	for _, s := range services {
		l.Scope = telemetrypb.Scope_SERVICE
		l.Services = append(l.Services, &telemetrypb.Service{Namespace: s.Namespace, Hostname: s.Hostname})
	}
	return encode(l)
}

// ForClass returns the message for the gateways of a class.
func (m *Made) ForClass() []byte { return m.scoped(telemetrypb.Scope_CLASS) }

// ForNamespace returns the message of an object without targets: for its namespace, or,
// in the root namespace, for all.
func (m *Made) ForNamespace(root bool) []byte {
	if root {
		return m.scoped(telemetrypb.Scope_ROOT)
	}
	return m.scoped(telemetrypb.Scope_NAMESPACE)
}

func (m *Made) scoped(s telemetrypb.Scope) []byte {
	l := proto.CloneOf(m.layer)
	l.Scope = s
	return encode(l)
}

// Check is Translate without the mesh's settings: any provider may exist.
func Check(t *telemetryv1.Telemetry) *Made {
	return Translate(t, &Mesh{unchecked: true}, func(string) (string, bool) { return "any", true })
}
