package traffic

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	api "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
)

var place = Place{Domain: "cluster.local", RootNamespace: "istio-system"}

func object(t testing.TB, spec string) *networkingv1.DestinationRule {
	t.Helper()
	d := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	if err := yaml.Unmarshal([]byte("spec: "+spec), d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTranslate(t *testing.T) {
	outliers := func(o rules.Outlier) *rules.Outlier {
		if o.Interval == 0 {
			o.Interval = 10 * time.Second
		}
		if o.Base == 0 {
			o.Base = 30 * time.Second
		}
		if o.MaxPercent == 0 {
			o.MaxPercent = 10
		}
		return &o
	}
	all := []rules.Scope{rules.Region, rules.Zone, rules.Subzone}
	for name, c := range map[string]struct {
		policy           string
		want             rules.Settings
		refused, invalid string // parts
	}{
		"nothing":                 {"{}", rules.Settings{}, "", ""},
		"connections":             {"{connectionPool: {tcp: {maxConnections: 5, connectTimeout: 2s}}}", rules.Settings{MaxConnections: 5, ConnectTimeout: 2 * time.Second}, "", ""},
		"a long connect timeout":  {"{connectionPool: {tcp: {connectTimeout: 60s}}}", rules.Settings{ConnectTimeout: 10 * time.Second}, "10s at most", ""},
		"a negative limit":        {"{connectionPool: {tcp: {maxConnections: -1}}}", rules.Settings{}, "", "maxConnections: -1 is negative"},
		"a short timeout":         {"{connectionPool: {tcp: {connectTimeout: 0.0001s}}}", rules.Settings{}, "", "less than 1ms"},
		"requests":                {"{connectionPool: {http: {http1MaxPendingRequests: 1}, tcp: {maxConnections: 1}}}", rules.Settings{MaxConnections: 1}, "trafficPolicy.connectionPool.http: it is of requests", ""},
		"keepalive":               {"{connectionPool: {tcp: {tcpKeepalive: {probes: 3}}}}", rules.Settings{}, "trafficPolicy.connectionPool.tcp.tcpKeepalive: node proxies have no such setting", ""},
		"outliers by default":     {"{outlierDetection: {}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 5})}, "", ""},
		"5xx":                     {"{outlierDetection: {consecutive5xxErrors: 7}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 7})}, "", ""},
		"the smaller one":         {"{outlierDetection: {consecutive5xxErrors: 7, consecutiveGatewayErrors: 3}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 3})}, "", ""},
		"gateway errors, 5xx off": {"{outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 9}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 9})}, "", ""},
		"both off":                {"{outlierDetection: {consecutive5xxErrors: 0}}", rules.Settings{Outlier: outliers(rules.Outlier{})}, "", ""},
		"local failures":          {"{outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2, consecutive5xxErrors: 1}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 2})}, "", ""},
		"local without the split": {"{outlierDetection: {consecutiveLocalOriginFailures: 2}}", rules.Settings{Outlier: outliers(rules.Outlier{Consecutive: 5})}, "splitExternalLocalOriginErrors: true alone", ""},
		"all of outliers": {"{outlierDetection: {interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50, minHealthPercent: 20}}",
			rules.Settings{Outlier: &rules.Outlier{Consecutive: 5, Interval: time.Second, Base: 3 * time.Second, MaxPercent: 50, MinHealthPercent: 20}}, "", ""},
		"a percentage":         {"{outlierDetection: {maxEjectionPercent: 101}}", rules.Settings{}, "", "101 is not from 0 to 100"},
		"balance":              {"{loadBalancer: {simple: ROUND_ROBIN}}", rules.Settings{Balance: rules.RoundRobin}, "", ""},
		"the old name":         {"{loadBalancer: {simple: LEAST_CONN}}", rules.Settings{Balance: rules.LeastRequest}, "", ""},
		"random":               {"{loadBalancer: {simple: RANDOM}}", rules.Settings{Balance: rules.Random}, "", ""},
		"passthrough":          {"{loadBalancer: {simple: PASSTHROUGH}}", rules.Settings{}, "PASSTHROUGH is not honoured", ""},
		"hashes":               {"{loadBalancer: {consistentHash: {useSourceIp: true}}}", rules.Settings{}, "sessionAffinity", ""},
		"locality":             {"{loadBalancer: {localityLbSetting: {enabled: true}}}", rules.Settings{Locality: &rules.Locality{Scopes: all}}, "", ""},
		"no locality":          {"{loadBalancer: {localityLbSetting: {enabled: false}}}", rules.Settings{Locality: &rules.Locality{Disabled: true}}, "", ""},
		"failover":             {"{loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}]}}}", rules.Settings{Locality: &rules.Locality{Scopes: all, Failover: []rules.Failover{{From: "a", To: "b"}}}}, "", ""},
		"priorities":           {"{loadBalancer: {localityLbSetting: {failoverPriority: [topology.istio.io/network, topology.kubernetes.io/zone]}}}", rules.Settings{Locality: &rules.Locality{Scopes: []rules.Scope{rules.Network, rules.Zone}}}, "", ""},
		"a label of no place":  {"{loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/zone, version, topology.istio.io/subzone]}}}", rules.Settings{Locality: &rules.Locality{Scopes: []rules.Scope{rules.Zone}}}, `failoverPriority[1]: "version"`, ""},
		"shares of localities": {"{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 100}}]}}}", rules.Settings{Locality: &rules.Locality{Scopes: all}}, "localityLbSetting.distribute: shares", ""},
		"tls":                  {"{tls: {mode: SIMPLE}, connectionPool: {tcp: {maxConnections: 1}}}", rules.Settings{MaxConnections: 1}, "trafficPolicy.tls: ", ""},
	} {
		m := Translate(object(t, "{host: web, trafficPolicy: "+c.policy+"}"), place)
		if refused := strings.Join(m.Refused, "; "); !strings.Contains(refused, c.refused) || c.refused == "" && refused != "" {
			t.Errorf("%s: refused %q, want %q", name, refused, c.refused)
		}
		if invalid := strings.Join(m.Invalid, "; "); !strings.Contains(invalid, c.invalid) || c.invalid == "" && invalid != "" {
			t.Errorf("%s: invalid %q, want %q", name, invalid, c.invalid)
		}
		if c.invalid != "" {
			if m.Effective() {
				t.Errorf("%s: it has an effect", name)
			}
			continue
		}
		if got := fmt.Sprint(text(m.rule.Settings)); m.rule.Host != "web.shop.svc.cluster.local" || got != fmt.Sprint(text(c.want)) {
			t.Errorf("%s: %s for %s, want %s", name, got, m.rule.Host, text(c.want))
		}
	}
}

// text has what pointers lead to.
func text(s rules.Settings) string {
	o, l := rules.Outlier{}, rules.Locality{}
	if s.Outlier != nil {
		o = *s.Outlier
	}
	if s.Locality != nil {
		l = *s.Locality
	}
	return fmt.Sprintf("%d %v %v %v %+v %v %+v", s.MaxConnections, s.ConnectTimeout, s.Balance, s.Outlier != nil, o, s.Locality != nil, l)
}

// TestPorts: the settings of a port replace all others.
func TestPorts(t *testing.T) {
	m := Translate(object(t, `{host: web, trafficPolicy: {outlierDetection: {}, connectionPool: {tcp: {maxConnections: 5}},
  portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 1}, http: {maxRetries: 1}}}]}}`), place)
	if s := m.rule.For(80); s.MaxConnections != 1 || s.Outlier != nil {
		t.Errorf("port 80: %s", s)
	}
	if s := m.rule.For(81); s.MaxConnections != 5 || s.Outlier == nil {
		t.Errorf("port 81: %s", s)
	}
	if want := "trafficPolicy.portLevelSettings[0].connectionPool.http: it is of requests"; !strings.HasPrefix(strings.Join(m.Refused, ""), want) {
		t.Errorf("%q", m.Refused)
	}
	for _, bad := range []string{"[{port: {number: 0}}]", "[{port: {number: 70000}}]", "[{port: {number: 1}}, {port: {number: 1}}]"} {
		if m := Translate(object(t, "{host: web, trafficPolicy: {portLevelSettings: "+bad+"}}"), place); len(m.Invalid) != 1 || m.Effective() {
			t.Errorf("%s: %q", bad, m.Invalid)
		}
	}
}

// TestHostsAndExports: what a host means, who sees a rule, and which nodes need it.
func TestHostsAndExports(t *testing.T) {
	for _, c := range []struct{ spec, host, reach string }{
		{"{host: web}", "web.shop.svc.cluster.local", "[]"},
		{"{host: WEB.shop.svc.cluster.local.}", "web.shop.svc.cluster.local", "[]"},
		{"{host: web.market.svc.cluster.local}", "web.market.svc.cluster.local", "[shop]"},
		{"{host: example.com}", "example.com", "[]"},
		{`{host: "*"}`, "*", "[]"},
		{`{host: "*.market.svc.cluster.local"}`, "*.market.svc.cluster.local", "[shop]"},
		{`{host: web, exportTo: ["."]}`, "web.shop.svc.cluster.local", "[shop]"},
		{`{host: web, exportTo: [shop]}`, "web.shop.svc.cluster.local", "[shop]"},
		{`{host: web, exportTo: ["~"]}`, "web.shop.svc.cluster.local", "[shop]"},
		{`{host: web, exportTo: ["*", market]}`, "web.shop.svc.cluster.local", "[]"},
		{`{host: web, exportTo: [market, "."]}`, "web.shop.svc.cluster.local", "[shop market]"},
	} {
		m := Translate(object(t, c.spec), place)
		if m.rule == nil || m.rule.Host != c.host || fmt.Sprint(reach(m.rule, place.Domain)) != c.reach {
			t.Errorf("%s: %+v, %q", c.spec, m.rule, m.Invalid)
		}
	}
	for _, bad := range []string{"{}", `{host: "a.*"}`, `{host: "*a"}`, `{host: "*.*.a"}`} {
		if m := Translate(object(t, bad), place); m.Effective() || len(m.Invalid) == 0 {
			t.Errorf("%s has an effect", bad)
		}
	}
	if m := Translate(object(t, "{host: web, workloadSelector: {matchLabels: {a: b}}}"), place); m.Effective() || len(m.Refused) != 1 {
		t.Errorf("a rule for fewer clients has an effect: %q", m.Refused)
	}
}

// TestNoFieldIsSilent: whichever field of the API is set, alone, it acts or is named.
func TestNoFieldIsSilent(t *testing.T) {
	var paths []string
	fields(t, (&api.DestinationRule{}).ProtoReflect(), nil, func(path string, m *api.DestinationRule) {
		d := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
		m.DeepCopyInto(&d.Spec)
		if d.Spec.Host == "" {
			d.Spec.Host = "web"
		}
		made := Translate(d, place)
		named := slices.ContainsFunc(slices.Concat(made.Honoured, made.Refused, made.Invalid), func(s string) bool {
			field, _, _ := strings.Cut(s, ": ")
			return field == path || strings.HasPrefix(path, field+".") || strings.HasPrefix(field, path)
		})
		if !named {
			t.Errorf("%s: nothing is reported of it: %+v", path, made)
		}
		paths = append(paths, path)
	})
	if len(paths) < 25 {
		t.Errorf("only %d fields were tried: %q", len(paths), paths)
	}
}

// fields calls f for each field of the first three levels, set alone.
func fields(t *testing.T, m protoreflect.Message, above []protoreflect.FieldDescriptor, f func(string, *api.DestinationRule)) {
	list := m.Descriptor().Fields()
	for i := range list.Len() {
		fd := list.Get(i)
		chain := append(slices.Clip(above), fd)
		if fd.Message() != nil && !fd.IsList() && !fd.IsMap() && len(chain) < 4 && !strings.HasPrefix(string(fd.Message().FullName()), "google.") {
			fields(t, m.Get(fd).Message(), chain, f)
			continue
		}
		root := &api.DestinationRule{}
		at, path := root.ProtoReflect(), ""
		for _, c := range chain[:len(chain)-1] {
			at, path = at.Mutable(c).Message(), path+c.JSONName()+"."
		}
		switch {
		case fd.IsList():
			l := at.Mutable(fd).List()
			switch {
			case fd.Message() != nil:
				l.AppendMutable()
			case fd.Kind() == protoreflect.StringKind:
				l.Append(protoreflect.ValueOfString("x"))
			default:
				l.Append(l.NewElement())
			}
		case fd.IsMap():
			continue
		case fd.Message() != nil:
			at.Mutable(fd)
		case fd.Kind() == protoreflect.StringKind:
			at.Set(fd, protoreflect.ValueOfString("x"))
		case fd.Kind() == protoreflect.BoolKind:
			at.Set(fd, protoreflect.ValueOfBool(true))
		case fd.Kind() == protoreflect.EnumKind:
			at.Set(fd, protoreflect.ValueOfEnum(1))
		case fd.Kind() == protoreflect.Int32Kind:
			at.Set(fd, protoreflect.ValueOfInt32(1))
		case fd.Kind() == protoreflect.Uint32Kind:
			at.Set(fd, protoreflect.ValueOfUint32(1))
		case fd.Kind() == protoreflect.DoubleKind:
			at.Set(fd, protoreflect.ValueOfFloat64(1))
		case fd.Kind() == protoreflect.Uint64Kind:
			at.Set(fd, protoreflect.ValueOfUint64(1))
		default:
			t.Fatalf("%s%s has a kind that the test does not set: %v", path, fd.JSONName(), fd.Kind())
		}
		f(path+fd.JSONName(), root)
	}
}
