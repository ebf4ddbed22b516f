// Package traffic turns DestinationRules into the rules that node proxies execute (package
// traffic of mesh), decides which nodes are sent each, and what its status says. A field
// that node proxies do not honour is named.
package traffic

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	api "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Made is what became of a DestinationRule.
type Made struct {
	rule *rules.Rule // nil when it has no effect
	// Honoured are the fields that act, Refused those that do not and why, Invalid what
	// keeps the rule from being used at all.
	Honoured, Refused, Invalid []string
}

// Effective reports whether anything of the object acts.
func (m *Made) Effective() bool { return m.rule != nil }

// Place is what the host of a rule is read by.
type Place struct {
	Domain        string // of the cluster
	RootNamespace string
}

// honoured are the fields of a DestinationRule that act. Those of trafficPolicy may stand
// in an entry of portLevelSettings as well.
var honoured = []string{
	"host", "exportTo",
	"trafficPolicy.connectionPool.tcp.maxConnections", "trafficPolicy.connectionPool.tcp.connectTimeout",
	"trafficPolicy.outlierDetection.consecutive5xxErrors", "trafficPolicy.outlierDetection.consecutiveGatewayErrors",
	"trafficPolicy.outlierDetection.consecutiveLocalOriginFailures", "trafficPolicy.outlierDetection.splitExternalLocalOriginErrors",
	"trafficPolicy.outlierDetection.interval", "trafficPolicy.outlierDetection.baseEjectionTime",
	"trafficPolicy.outlierDetection.maxEjectionPercent", "trafficPolicy.outlierDetection.minHealthPercent",
	"trafficPolicy.loadBalancer.simple",
	"trafficPolicy.loadBalancer.localityLbSetting.enabled", "trafficPolicy.loadBalancer.localityLbSetting.failover",
	"trafficPolicy.loadBalancer.localityLbSetting.failoverPriority",
	"trafficPolicy.portLevelSettings.port",
}

// Honoured returns the fields that act, for the reference.
func Honoured() []string { return slices.Clone(honoured) }

// because are the fields that do not act, by the start of their paths.
var because = []struct{ field, why string }{
	{"workloadSelector", "the whole rule has no effect: it would be for more clients than the selector names"},
	{"subsets", "nothing in this mesh names subsets: name a Service for each version in a TCPRoute"},
	{"trafficPolicy.connectionPool.http", "it is of requests, and node proxies carry connections"},
	{"trafficPolicy.connectionPool.tcp", "node proxies have no such setting"},
	{"trafficPolicy.tls", "the mesh encrypts between its pods without a rule, and to no other"},
	{"trafficPolicy.loadBalancer.consistentHash", "write sessionAffinity: ClientIP into the Service for clients that keep their endpoint"},
	{"trafficPolicy.loadBalancer.localityLbSetting.distribute", "shares of localities cannot be set: use failover or failoverPriority"},
	{"trafficPolicy.retryBudget", "it is of requests, and node proxies carry connections"},
}

// Translate turns an object into a rule.
func Translate(d *networkingv1.DestinationRule, at Place) *Made {
	m := &Made{}
	x := translator{m: m}
	x.fields(d.Spec.ProtoReflect(), "", "")
	out := &rules.Rule{Namespace: d.Namespace, Name: d.Name, Created: max(d.CreationTimestamp.Unix(), 0), Root: d.Namespace == at.RootNamespace}
	out.Host = x.host(d.Spec.GetHost(), d.Namespace, at.Domain)
	x.export(out, d.Spec.GetExportTo())
	p := d.Spec.GetTrafficPolicy()
	out.Settings = x.settings("trafficPolicy", p.GetConnectionPool(), p.GetOutlierDetection(), p.GetLoadBalancer())
	for i, port := range p.GetPortLevelSettings() {
		at := fmt.Sprintf("trafficPolicy.portLevelSettings[%d]", i)
		n := port.GetPort().GetNumber()
		if n == 0 || n > math.MaxUint16 {
			x.invalid(at+".port.number", "%d is not a port from 1 to 65535", n)
			continue
		}
		if _, twice := out.Ports[uint16(n)]; twice {
			x.invalid(at+".port.number", "port %d has settings already", n)
			continue
		}
		if out.Ports == nil {
			out.Ports = map[uint16]rules.Settings{}
		}
		out.Ports[uint16(n)] = x.settings(at, port.GetConnectionPool(), port.GetOutlierDetection(), port.GetLoadBalancer())
	}
	if len(m.Invalid) > 0 || d.Spec.GetWorkloadSelector() != nil {
		return m
	}
	if out.Settings == (rules.Settings{}) && len(out.Ports) == 0 {
		// It is the rule of its host nevertheless, and keeps others away, as in Istio.
		m.Honoured = slices.DeleteFunc(m.Honoured, func(f string) bool { return strings.HasPrefix(f, "trafficPolicy") })
	}
	if _, err := out.Encode(); err != nil {
		x.invalid("trafficPolicy", "%v", err)
		return m
	}
	m.rule = out
	return m
}

type translator struct{ m *Made }

func (x *translator) invalid(field, format string, args ...any) {
	x.m.Invalid = append(x.m.Invalid, field+": "+fmt.Sprintf(format, args...))
}

func (x *translator) refuse(field, why string) {
	if text := field + ": " + why; !slices.Contains(x.m.Refused, text) {
		x.m.Refused = append(x.m.Refused, text)
	}
}

// fields sorts every field that is set into those that act and those that do not. path is
// how its author finds it, plain the same for the tables above.
func (x *translator) fields(m protoreflect.Message, path, plain string) {
	list := m.Descriptor().Fields()
	for i := range list.Len() {
		f := list.Get(i)
		if !m.Has(f) {
			continue
		}
		at, known := join(path, f.JSONName()), join(plain, f.JSONName())
		if known == "trafficPolicy.portLevelSettings" {
			for j := range m.Get(f).List().Len() {
				entry := m.Get(f).List().Get(j).Message()
				x.fields(entry, fmt.Sprintf("%s[%d]", at, j), "trafficPolicy")
			}
			continue
		}
		switch {
		case slices.Contains(honoured, known):
			if !slices.Contains(x.m.Honoured, at) {
				x.m.Honoured = append(x.m.Honoured, at)
			}
		case known == "trafficPolicy.port": // of portLevelSettings
		case !f.IsList() && !f.IsMap() && f.Message() != nil && slices.ContainsFunc(honoured, func(h string) bool { return strings.HasPrefix(h, known+".") }):
			x.fields(m.Get(f).Message(), at, known)
		default:
			x.refuse(at, why(known))
		}
	}
}

func why(field string) string {
	for _, b := range because {
		if field == b.field || strings.HasPrefix(field, b.field+".") {
			return b.why
		}
	}
	return "node proxies have no such setting"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// host makes the host of a rule full, as Istio does: a name without a dot is a Service of
// the rule's namespace.
func (x *translator) host(host, namespace, domain string) string {
	full := strings.ToLower(strings.TrimSuffix(host, "."))
	switch {
	case full == "":
		x.invalid("host", "it is empty")
	case strings.Contains(full, "*") && full != "*" && (!strings.HasPrefix(full, "*.") || strings.Count(full, "*") > 1):
		x.invalid("host", "%q is no host: a pattern is *, or *. and a domain", host)
	case !strings.ContainsAny(full, ".*"):
		full += "." + namespace + ".svc." + domain
	}
	return full
}

// export reads who sees the rule.
func (x *translator) export(out *rules.Rule, to []string) {
	if len(to) == 0 || slices.Contains(to, "*") {
		return
	}
	var others []string
	for _, ns := range to {
		if ns != "." && ns != "~" && ns != out.Namespace && !slices.Contains(others, ns) {
			others = append(others, ns)
		}
	}
	slices.Sort(others)
	out.VisibleTo, out.Own = others, len(others) == 0
}

func (x *translator) settings(at string, pool *api.ConnectionPoolSettings, o *api.OutlierDetection, lb *api.LoadBalancerSettings) (s rules.Settings) {
	tcp := pool.GetTcp()
	if n := tcp.GetMaxConnections(); n < 0 {
		x.invalid(at+".connectionPool.tcp.maxConnections", "%d is negative", n)
	} else {
		s.MaxConnections = uint32(n)
	}
	if d := tcp.GetConnectTimeout(); d != nil {
		s.ConnectTimeout = x.duration(at+".connectionPool.tcp.connectTimeout", d)
		if s.ConnectTimeout > rules.MaxConnectTimeout {
			s.ConnectTimeout = rules.MaxConnectTimeout
			x.refuse(at+".connectionPool.tcp.connectTimeout", fmt.Sprintf("a node proxy waits for %v at most", rules.MaxConnectTimeout))
		}
	}
	s.Outlier = x.outlier(at+".outlierDetection", o)
	x.balance(at+".loadBalancer", lb, &s)
	return s
}

// duration reads a time. Those of less than a millisecond are invalid, as in Istio.
func (x *translator) duration(at string, d *durationpb.Duration) time.Duration {
	switch t := d.AsDuration(); {
	case d.CheckValid() != nil || t < time.Millisecond:
		x.invalid(at, "%v is less than 1ms", d.AsDuration())
		return time.Millisecond
	default:
		return min(t, 24*time.Hour) // what is longer makes no difference
	}
}

// outlier reads when endpoints are ejected. A connection fails as a gateway error and as a
// 5xx do in Envoy, unless failures of the proxy itself are counted apart.
func (x *translator) outlier(at string, o *api.OutlierDetection) *rules.Outlier {
	if o == nil {
		return nil
	}
	out := &rules.Outlier{Interval: 10 * time.Second, Base: 30 * time.Second, MaxPercent: 10}
	least := func(n uint32) {
		if n > 0 && (out.Consecutive == 0 || int(n) < out.Consecutive) {
			out.Consecutive = int(min(n, 1<<20))
		}
	}
	if o.GetSplitExternalLocalOriginErrors() {
		if c := o.GetConsecutiveLocalOriginFailures(); c != nil {
			least(c.GetValue())
		} else {
			least(5)
		}
	} else {
		if c := o.GetConsecutive_5XxErrors(); c != nil {
			least(c.GetValue())
		} else {
			least(5)
		}
		least(o.GetConsecutiveGatewayErrors().GetValue())
		if o.GetConsecutiveLocalOriginFailures() != nil {
			x.refuse(at+".consecutiveLocalOriginFailures", "it acts with splitExternalLocalOriginErrors: true alone")
		}
	}
	if d := o.GetInterval(); d != nil {
		out.Interval = x.duration(at+".interval", d)
	}
	if d := o.GetBaseEjectionTime(); d != nil {
		out.Base = x.duration(at+".baseEjectionTime", d)
	}
	percent := func(field string, n int32, to *int) {
		if n < 0 || n > 100 {
			x.invalid(at+"."+field, "%d is not from 0 to 100", n)
		} else if n > 0 {
			*to = int(n)
		}
	}
	percent("maxEjectionPercent", o.GetMaxEjectionPercent(), &out.MaxPercent)
	percent("minHealthPercent", o.GetMinHealthPercent(), &out.MinHealthPercent)
	return out
}

func (x *translator) balance(at string, lb *api.LoadBalancerSettings, s *rules.Settings) {
	if p, ok := lb.GetLbPolicy().(*api.LoadBalancerSettings_Simple); ok {
		switch p.Simple {
		case api.LoadBalancerSettings_UNSPECIFIED:
		case api.LoadBalancerSettings_RANDOM:
			s.Balance = rules.Random
		case api.LoadBalancerSettings_ROUND_ROBIN:
			s.Balance = rules.RoundRobin
		case api.LoadBalancerSettings_LEAST_CONN, api.LoadBalancerSettings_LEAST_REQUEST: //nolint:staticcheck // the old name
			s.Balance = rules.LeastRequest
		default:
			x.refuse(at+".simple", p.Simple.String()+" is not honoured: the proxy balances as without it")
		}
	}
	l := lb.GetLocalityLbSetting()
	if l == nil {
		return
	}
	if e := l.GetEnabled(); e != nil && !e.GetValue() {
		s.Locality = &rules.Locality{Disabled: true}
		return
	}
	out := &rules.Locality{Scopes: []rules.Scope{rules.Region, rules.Zone, rules.Subzone}}
	if len(l.GetFailoverPriority()) > 0 {
		out.Scopes = nil
	}
	for i, label := range l.GetFailoverPriority() {
		scope, known := labels[label]
		if !known {
			x.refuse(fmt.Sprintf("%s.localityLbSetting.failoverPriority[%d]", at, i), fmt.Sprintf("%q and what follows: endpoints are compared by %s alone", label, strings.Join(slices.Sorted(maps.Keys(labels)), ", ")))
			break
		}
		if !slices.Contains(out.Scopes, scope) {
			out.Scopes = append(out.Scopes, scope)
		}
	}
	for _, f := range l.GetFailover() {
		out.Failover = append(out.Failover, rules.Failover{From: f.GetFrom(), To: f.GetTo()})
	}
	s.Locality = out
}

// labels are those that locality is made of.
var labels = map[string]rules.Scope{
	wellknown.LabelRegion: rules.Region, wellknown.LabelZone: rules.Zone, wellknown.LabelSubzone: rules.Subzone,
	wellknown.LabelNetwork: rules.Network, "topology.istio.io/cluster": rules.Cluster, "kubernetes.io/hostname": rules.NodeScope,
}
