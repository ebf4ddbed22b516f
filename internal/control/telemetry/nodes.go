package telemetry

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	apitelemetry "istio.io/api/telemetry/v1alpha1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/expr"
	"github.com/ambit-mesh/ambit/internal/l7/observe/connections"
)

// Nodes is a Telemetry as node proxies get it. It is immutable.
type Nodes struct {
	layers []*telemetrypb.Layer // one for both halves of connections, or one for each
	// Refused are fields that act at waypoints alone, Invalid those that mean nothing.
	Refused, Invalid []string
	// Effective is false when nothing is left that has an effect.
	Effective bool
}

// forNodes compiles a Telemetry for node proxies.
func forNodes(t *telemetryv1.Telemetry, mesh *Mesh, hosts Hosts) *Nodes {
	n := &Nodes{}
	var made [2]*Made
	for i, half := range [...]apitelemetry.WorkloadMode{apitelemetry.WorkloadMode_CLIENT, apitelemetry.WorkloadMode_SERVER} {
		m := translate(t, translator{mesh: mesh, hosts: hosts, half: half})
		for _, r := range m.Refused {
			if !slices.Contains(n.Refused, r) {
				n.Refused = append(n.Refused, r)
			}
		}
		for _, r := range m.Invalid {
			if !slices.Contains(n.Invalid, r) {
				n.Invalid = append(n.Invalid, r)
			}
		}
		n.Effective = n.Effective || m.Effective
		made[i] = m
	}
	if proto.Equal(made[0].layer, made[1].layer) {
		n.layers = []*telemetrypb.Layer{made[0].layer}
		return n
	}
	for i, side := range [...]telemetrypb.Side{telemetrypb.Side_CLIENT, telemetrypb.Side_SERVER} {
		if made[i].Effective {
			made[i].layer.Side = side
			n.layers = append(n.layers, made[i].layer)
		}
	}
	return n
}

// Messages returns the messages of an object without a selector, for its namespace, or, in
// the root namespace, for all; or for the workloads that it selects, by their UIDs in
// order. Their keys differ.
func (n *Nodes) Messages(root bool, workloads []string) map[string][]byte {
	scope := telemetrypb.Scope_NAMESPACE
	switch {
	case len(workloads) > 0:
		scope = telemetrypb.Scope_WORKLOAD
	case root:
		scope = telemetrypb.Scope_ROOT
	}
	out := map[string][]byte{}
	for _, l := range n.layers {
		l = proto.CloneOf(l)
		l.Scope, l.Workloads = scope, workloads
		out[strings.ToLower(l.GetSide().String())] = encode(l)
	}
	return out
}

// NodeLayer returns the layer of the mesh's settings for node proxies, which have their own
// line whatever the mesh's providers of access logs are.
func (m *Mesh) NodeLayer(hosts Hosts) []byte {
	l := m.layer(hosts)
	l.AccessLogging = nil
	return encode(l)
}

// connections reports whether the translation is for node proxies.
func (x *translator) connections() bool { return x.half != apitelemetry.WorkloadMode_CLIENT_AND_SERVER }

// check returns why the proxies that the translation is for would reject a layer.
func (x *translator) check(l *telemetrypb.Layer) error {
	if !x.connections() {
		return check(l)
	}
	_, err := connections.Language.Compile(l, nil, nil)
	return err
}

const noRequests = "node proxies carry connections, which have none"

// traceConnections leaves out of a rule what is of requests alone.
func (x *translator) traceConnections(at string, t *telemetrypb.Tracing) {
	if t.PropagationDisabled != nil {
		x.refuse(at+".disableContextPropagation", "it acts at waypoints: the context between two proxies joins their logs")
		t.PropagationDisabled = nil
	}
	if t.GetCustomTags() == nil {
		return
	}
	t.CustomTags.Tags = slices.DeleteFunc(t.CustomTags.Tags, func(tag *telemetrypb.CustomTag) bool {
		if tag.GetHeader() == "" {
			return false
		}
		x.refuse(at+".customTags["+tag.GetName()+"].header", "headers are of requests, and %s: spans of connections have the default", noRequests)
		tag.Header, tag.Literal, tag.Default = "", tag.GetDefault(), ""
		return tag.GetLiteral() == ""
	})
}

// roots are the attributes that connections have.
var roots = []string{"source", "destination", "connection"}

// otherRoots are those of requests.
var otherRoots = []string{"request", "response", "upstream", "xds", "metadata"}

// foreign returns an attribute that an expression uses and connections do not have, "" for
// none.
func foreign(c interface{ Uses(root string) bool }) string {
	for _, r := range otherRoots {
		if c.Uses(r) {
			return r
		}
	}
	return ""
}

// logConnections translates a rule about the access log. Node proxies have a line of their
// own on standard output. Rules that name a provider of lines there are about that.
func (x *translator) logConnections(at string, a *apitelemetry.AccessLogging) {
	out := &telemetrypb.AccessLogging{}
	ours := len(a.GetProviders()) == 0
	for j, p := range a.GetProviders() {
		at := fmt.Sprintf("%s.providers[%d]", at, j)
		log, err := x.mesh.logged(p.GetName(), x.hosts)
		switch {
		case err != nil:
			x.invalid(at, "%v", err)
		case log.GetCollector() != nil:
			x.refuse(at, "only waypoints send lines to collectors")
		default:
			ours = true
			// A rule that names a provider turns it on, unless it says otherwise.
			out.Disabled = proto.Bool(a.GetDisabled().GetValue())
			if log.GetText() != "" || log.GetJson() {
				x.refuse(at, "its format is for waypoints: node proxies have their own")
			}
		}
	}
	if !ours {
		return
	}
	if a.GetDisabled() != nil {
		out.Disabled = proto.Bool(a.GetDisabled().GetValue())
	}
	if f := a.GetFilter().GetExpression(); f != "" {
		c, err := expr.Compile(f)
		if err != nil {
			x.invalid(at+".filter.expression", "%v", err)
			return // without its filter it would log too much
		}
		if r := foreign(c); r != "" {
			x.refuse(at, "the filter names %s, and %s: write one of %s", r, noRequests, strings.Join(roots, ", "))
			return
		}
		if out.Checked, err = c.Tree(); err != nil {
			x.refuse(at+".filter.expression", "%v: the rule acts at waypoints", err)
			return
		}
		out.Filter = f
	}
	x.m.layer.AccessLogging = append(x.m.layer.AccessLogging, out)
}

// countConnections leaves out of an override what is of requests alone; nil when nothing is
// left.
func (x *translator) countConnections(at string, o *telemetrypb.MetricOverride) *telemetrypb.MetricOverride {
	if o == nil {
		return nil
	}
	for _, name := range o.GetMetrics() {
		if !strings.HasPrefix(name, "TCP_") {
			x.refuse(at+".match.metric", "%s is of requests, and %s", name, noRequests)
			return nil
		}
	}
	o.Tags = slices.DeleteFunc(o.Tags, func(t *telemetrypb.TagOverride) bool {
		if t.GetExpression() == "" {
			return false
		}
		v, err := expr.CompileValue(t.GetExpression())
		if err != nil {
			return false // was compiled
		}
		at := at + ".tagOverrides[" + t.GetName() + "]"
		if r := foreign(v); r != "" {
			x.refuse(at, "the value names %s, and %s", r, noRequests)
			return true
		}
		if t.Checked, err = v.Tree(); err != nil {
			x.refuse(at, "%v: the value is for waypoints", err)
			return true
		}
		return false
	})
	if o.Disabled == nil && len(o.Tags) == 0 {
		return nil
	}
	return o
}
