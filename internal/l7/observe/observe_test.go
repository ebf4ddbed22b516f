package observe

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/logline"
)

func collector(name string) *telemetrypb.Collector {
	return &telemetrypb.Collector{Provider: name, Service: &telemetrypb.Service{Namespace: "o", Hostname: name}, Port: 4317}
}

func layer(scope telemetrypb.Scope, namespace, name string, t *telemetrypb.Tracing, services ...string) *telemetrypb.Layer {
	l := &telemetrypb.Layer{Scope: scope, Namespace: namespace, Name: name, Tracing: t}
	for _, s := range services {
		ns, host, _ := strings.Cut(s, "/")
		l.Services = append(l.Services, &telemetrypb.Service{Namespace: ns, Hostname: host})
	}
	return l
}

func store(t rapid.TB, layers ...*telemetrypb.Layer) *Store {
	s := NewStore(language, "home", func(k string) (string, bool) { return "value of " + k, k == "SET" })
	for i, l := range layers {
		body, err := proto.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(fmt.Sprint(i), body); err != nil {
			t.Fatalf("%v: %v", l, err)
		}
	}
	return s
}

// TestOrder: the layers of a service decide before those of its gateway, its namespace,
// the gateway's namespace and the mesh; fields that one does not set come from the next.
func TestOrder(t *testing.T) {
	all := []*telemetrypb.Layer{
		layer(telemetrypb.Scope_MESH, "", "", &telemetrypb.Tracing{Collector: collector("mesh"), Sampling: proto.Float64(1)}),
		layer(telemetrypb.Scope_ROOT, "root", "r", &telemetrypb.Tracing{Collector: collector("root")}),
		layer(telemetrypb.Scope_CLASS, "root", "c", &telemetrypb.Tracing{Collector: collector("class")}),
		layer(telemetrypb.Scope_NAMESPACE, "home", "h", &telemetrypb.Tracing{Collector: collector("home")}),
		layer(telemetrypb.Scope_NAMESPACE, "shop", "n", &telemetrypb.Tracing{Collector: collector("shop")}),
		layer(telemetrypb.Scope_GATEWAY, "home", "g", &telemetrypb.Tracing{Collector: collector("gateway")}),
		layer(telemetrypb.Scope_SERVICE, "shop", "s", &telemetrypb.Tracing{Collector: collector("service")}, "shop/web"),
	}
	for n, want := range map[int]map[Service]string{
		1: {{"shop", "web"}: "mesh"},
		2: {{"shop", "web"}: "root"},
		3: {{"shop", "web"}: "class"},
		4: {{"shop", "web"}: "home", {"home", ""}: "home"},
		5: {{"shop", "web"}: "shop", {"home", "x"}: "home", {"market", ""}: "home"},
		6: {{"shop", "web"}: "gateway", {"home", "x"}: "gateway"},
		7: {{"shop", "web"}: "service", {"shop", "other"}: "gateway"},
	} {
		set := store(t, all[:n]...).Set()
		for svc, name := range want {
			if got := set.For(svc).Tracing; got == nil || got.Collector.Provider != name || !got.Share.Take(0, 0) {
				t.Errorf("%d layers, %v: %+v, want %s", n, svc, got, name)
			}
		}
	}
	var none *Set
	if none.For(Service{}).Tracing != nil {
		t.Error("nothing has come, and there are traces")
	}
}

// TestOrderOfLayers: the order in which layers come decides nothing, and each field is
// that of the first layer that sets it, by scope and then by age.
func TestOrderOfLayers(t *testing.T) {
	scopes := []telemetrypb.Scope{telemetrypb.Scope_MESH, telemetrypb.Scope_ROOT, telemetrypb.Scope_CLASS, telemetrypb.Scope_NAMESPACE, telemetrypb.Scope_GATEWAY, telemetrypb.Scope_SERVICE}
	rapid.Check(t, func(t *rapid.T) {
		var layers []*telemetrypb.Layer
		for i := range rapid.IntRange(0, 12).Draw(t, "n") {
			l := layer(rapid.SampledFrom(scopes).Draw(t, "scope"), rapid.SampledFrom([]string{"home", "shop", "else"}).Draw(t, "namespace"), fmt.Sprint(i), &telemetrypb.Tracing{})
			l.Created = rapid.Int64Range(0, 3).Draw(t, "created")
			if l.Scope == telemetrypb.Scope_SERVICE {
				l.Services = []*telemetrypb.Service{{Namespace: "shop", Hostname: rapid.SampledFrom([]string{"web", "other"}).Draw(t, "host")}}
			}
			if rapid.Bool().Draw(t, "collector") {
				l.Tracing.Collector = collector(fmt.Sprint("c", i))
			}
			if rapid.Bool().Draw(t, "tags") {
				l.Tracing.CustomTags = &telemetrypb.CustomTags{Tags: []*telemetrypb.CustomTag{{Name: "from", Literal: fmt.Sprint("t", i)}}}
			}
			layers = append(layers, l)
		}
		// better reports whether a decides before b.
		rank := func(l *telemetrypb.Layer) int {
			if l.Scope == telemetrypb.Scope_NAMESPACE && l.Namespace == "home" {
				return 2*int(l.Scope) - 1
			}
			return 2 * int(l.Scope)
		}
		better := func(a, b *telemetrypb.Layer) bool {
			switch {
			case rank(a) != rank(b):
				return rank(a) > rank(b)
			case a.Created != b.Created:
				return a.Created < b.Created
			}
			return a.Namespace+"/"+a.Name < b.Namespace+"/"+b.Name
		}
		concerns := func(l *telemetrypb.Layer) bool {
			switch l.Scope {
			case telemetrypb.Scope_NAMESPACE:
				return l.Namespace == "home" || l.Namespace == "shop"
			case telemetrypb.Scope_SERVICE:
				return l.Services[0].Hostname == "web"
			}
			return true
		}
		var from, tags *telemetrypb.Layer
		for _, l := range layers {
			if concerns(l) && l.Tracing.Collector != nil && (from == nil || better(l, from)) {
				from = l
			}
			if concerns(l) && l.Tracing.CustomTags != nil && (tags == nil || better(l, tags)) {
				tags = l
			}
		}
		for range 2 {
			got := store(t, rapid.Permutation(layers).Draw(t, "order")...).Set().For(Service{"shop", "web"}).Tracing
			if (got == nil) != (from == nil) {
				t.Fatalf("%+v, want that of %v", got, from)
			}
			if got == nil {
				continue
			}
			if got.Collector.Provider != from.Tracing.Collector.Provider {
				t.Fatalf("%s, want that of %v", got.Collector.Provider, from)
			}
			if tags == nil != (len(got.Tags) == 0) || tags != nil && got.Tags[0].Value != tags.Tracing.CustomTags.Tags[0].Literal {
				t.Fatalf("%v, want those of %v", got.Tags, tags)
			}
		}
	})
}

// TestFields: what the fields of tracing come to.
func TestFields(t *testing.T) {
	s := store(t, layer(telemetrypb.Scope_MESH, "", "", &telemetrypb.Tracing{
		Collector: collector("a"), Sampling: proto.Float64(100), CustomTags: &telemetrypb.CustomTags{Tags: []*telemetrypb.CustomTag{
			{Name: "l", Literal: "x"}, {Name: "e", Environment: "SET", Default: "no"}, {Name: "d", Environment: "UNSET", Default: "yes"}, {Name: "h", Header: "X-A", Default: "z"},
		}},
	}), layer(telemetrypb.Scope_SERVICE, "shop", "quiet", &telemetrypb.Tracing{ReportingDisabled: proto.Bool(true), PropagationDisabled: proto.Bool(true), IstioTags: proto.Bool(false)}, "shop/quiet"))
	got := s.Set().For(Service{"shop", "web"}).Tracing
	if !got.Propagate || !got.IstioTags || got.Tags[0].Value != "x" || got.Tags[1].Value != "value of SET" || got.Tags[2].Value != "yes" || !got.Tags[3].Header {
		t.Errorf("%+v", got)
	}
	quiet := s.Set().For(Service{"shop", "quiet"}).Tracing
	if quiet.Collector != nil || quiet.Propagate || quiet.IstioTags || len(quiet.Tags) != 4 {
		t.Errorf("%+v", quiet)
	}
	if n := len(s.Collectors()); n != 1 {
		t.Errorf("%d collectors", n)
	}
}

// TestReject: what cannot be executed is refused by name, and what was there stays.
func TestReject(t *testing.T) {
	s := store(t, layer(telemetrypb.Scope_MESH, "", "", &telemetrypb.Tracing{Collector: collector("a")}))
	for _, tt := range []struct {
		named string
		l     *telemetrypb.Layer
	}{
		{"randomSamplingPercentage", layer(0, "", "", &telemetrypb.Tracing{Sampling: proto.Float64(100.1)})},
		{"randomSamplingPercentage", layer(0, "", "", &telemetrypb.Tracing{Sampling: proto.Float64(math.NaN())})},
		{"port", layer(0, "", "", &telemetrypb.Tracing{Collector: &telemetrypb.Collector{Service: &telemetrypb.Service{Namespace: "a", Hostname: "b"}, Port: 1 << 16}})},
		{"service", layer(0, "", "", &telemetrypb.Tracing{Collector: &telemetrypb.Collector{Port: 1}})},
		{"http.path", layer(0, "", "", &telemetrypb.Tracing{Collector: &telemetrypb.Collector{Service: &telemetrypb.Service{Namespace: "a", Hostname: "b"}, Port: 1, Path: "x\r\n"}})},
		{"header", layer(0, "", "", &telemetrypb.Tracing{Collector: &telemetrypb.Collector{Service: &telemetrypb.Service{Namespace: "a", Hostname: "b"}, Port: 1, Headers: []*telemetrypb.Header{{Name: "a", Value: "b\nc"}}}})},
		{"customTags", layer(0, "", "", &telemetrypb.Tracing{CustomTags: &telemetrypb.CustomTags{Tags: []*telemetrypb.CustomTag{{Name: "x"}}}})},
		{"customTags", layer(0, "", "", &telemetrypb.Tracing{CustomTags: &telemetrypb.CustomTags{Tags: make([]*telemetrypb.CustomTag, 65)}})},
		{"not known", layer(99, "", "", nil)},
	} {
		body, err := proto.Marshal(tt.l)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put("0", body); err == nil || !strings.Contains(err.Error(), tt.named) {
			t.Errorf("%v: %v", tt.l, err)
		}
	}
	if s.Put("0", []byte{0xff}) == nil {
		t.Error("bytes that are no message are accepted")
	}
	if got := s.Set().For(Service{}).Tracing; got == nil || got.Collector.Provider != "a" {
		t.Errorf("what was there is gone: %+v", got)
	}
}

// TestMetrics: overrides apply in order, those of the service last, each to its metrics.
func TestMetrics(t *testing.T) {
	root := layer(telemetrypb.Scope_ROOT, "root", "r", nil)
	root.Metrics = []*telemetrypb.MetricOverride{
		{Disabled: proto.Bool(true)},
		{Metrics: []string{"REQUEST_COUNT"}, Disabled: proto.Bool(false), Tags: []*telemetrypb.TagOverride{{Name: "a", Value: "1"}, {Name: "b", Remove: true}}},
	}
	web := layer(telemetrypb.Scope_SERVICE, "shop", "s", nil, "shop/web")
	web.Metrics = []*telemetrypb.MetricOverride{{Metrics: []string{"REQUEST_COUNT"}, Tags: []*telemetrypb.TagOverride{{Name: "a", Remove: true}, {Name: "b", Value: "2"}}}}
	set := store(t, root, web).Set()
	other, mine := set.For(Service{"shop", "x"}).Metrics, set.For(Service{"shop", "web"}).Metrics
	if c := other["REQUEST_COUNT"]; !set.Metrics || c.Disabled || c.Set["a"] != "1" || fmt.Sprint(c.Remove) != "[b]" || !other["REQUEST_SIZE"].Disabled {
		t.Errorf("%+v", other)
	}
	if c := mine["REQUEST_COUNT"]; c.Disabled || c.Set["b"] != "2" || len(c.Set) != 1 || fmt.Sprint(c.Remove) != "[a]" || !mine["REQUEST_SIZE"].Disabled {
		t.Errorf("%+v", mine)
	}
	web.Metrics = []*telemetrypb.MetricOverride{
		{Tags: []*telemetrypb.TagOverride{{Name: "a", Expression: "request.host"}, {Name: "b", Expression: "request.method"}}},
		{Metrics: []string{"REQUEST_SIZE"}, Tags: []*telemetrypb.TagOverride{{Name: "c", Expression: "request.path"}}}, // which is disabled
		{Metrics: []string{"REQUEST_COUNT"}, Tags: []*telemetrypb.TagOverride{{Name: "b", Value: "2"}}},
	}
	made := store(t, root, web).Set().For(Service{"shop", "web"})
	if c := made.Metrics["REQUEST_COUNT"]; c.From["a"].String() != "request.host" || len(c.From) != 1 || c.Set["b"] != "2" || len(c.Set) != 1 || len(c.Remove) != 0 || fmt.Sprint(made.Values) != "[request.host]" {
		t.Errorf("%+v, %v", c, made.Values)
	}
	for _, tags := range [][]*telemetrypb.TagOverride{
		{{Name: "a", Expression: "request."}}, {{Name: "a", Expression: "1", Value: "1"}}, {{Name: "a", Expression: "1", Remove: true}}, {{Name: "le", Value: "1"}},
		{{Name: "__x", Value: "1"}}, {{Name: "a", Value: "\xff"}}, many(maxExpressions + 1),
	} {
		if _, err := language.Compile(&telemetrypb.Layer{Metrics: []*telemetrypb.MetricOverride{{Tags: tags}}}, nil, nil); err == nil {
			t.Errorf("%v is accepted", tags)
		}
	}
	if set := store(t, layer(0, "", "", nil)).Set(); set.Metrics || set.For(Service{}).Metrics != nil {
		t.Error("there are overrides")
	}
}

// many are labels with an expression each.
func many(n int) (out []*telemetrypb.TagOverride) {
	for i := range n {
		out = append(out, &telemetrypb.TagOverride{Name: fmt.Sprint("l", i), Expression: fmt.Sprintf("'%d' + request.host", i)})
	}
	return out
}

// TestLogs: which lines a request has.
func TestLogs(t *testing.T) {
	rule := func(disabled *bool, filter string, providers ...string) *telemetrypb.AccessLogging {
		a := &telemetrypb.AccessLogging{Disabled: disabled, Filter: filter}
		for _, p := range providers {
			a.Providers = append(a.Providers, &telemetrypb.LogProvider{Name: p, Text: p})
		}
		return a
	}
	yes, no := proto.Bool(true), proto.Bool(false)
	for _, tt := range []struct {
		name          string
		mesh, service []*telemetrypb.AccessLogging
		want          string
	}{
		{"nothing", nil, nil, "own"},
		{"the mesh's", []*telemetrypb.AccessLogging{rule(nil, "", "a")}, nil, "a"},
		{"off", nil, []*telemetrypb.AccessLogging{rule(yes, "")}, ""},
		{"a filter of the own line", nil, []*telemetrypb.AccessLogging{rule(nil, "true")}, "own if true"},
		{"the mesh's, off", []*telemetrypb.AccessLogging{rule(nil, "", "a", "b")}, []*telemetrypb.AccessLogging{rule(yes, "")}, ""},
		{"one of two is off", []*telemetrypb.AccessLogging{rule(nil, "", "a", "b")}, []*telemetrypb.AccessLogging{rule(nil, "", "b"), rule(yes, "", "a")}, "b"},
		{"another one", []*telemetrypb.AccessLogging{rule(nil, "", "a")}, []*telemetrypb.AccessLogging{rule(nil, "", "b")}, "b"},
		{"a filter stays", []*telemetrypb.AccessLogging{rule(nil, "1 == 1", "a")}, []*telemetrypb.AccessLogging{rule(no, "", "a")}, "a if 1 == 1"},
		{"on again", []*telemetrypb.AccessLogging{rule(yes, "", "a")}, []*telemetrypb.AccessLogging{rule(no, "")}, "a"},
		{"off, and a filter", []*telemetrypb.AccessLogging{rule(yes, "", "a")}, []*telemetrypb.AccessLogging{rule(nil, "true")}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, s := layer(telemetrypb.Scope_MESH, "", "", nil), layer(telemetrypb.Scope_SERVICE, "shop", "s", nil, "shop/web")
			m.AccessLogging, s.AccessLogging = tt.mesh, tt.service
			var got []string
			for _, l := range store(t, m, s).Set().For(Service{"shop", "web"}).Logs {
				one := "own"
				if f, has := l.Format.(*logline.Format); has {
					one = strings.TrimSpace(string(f.Append(nil, &logline.Values{})))
				}
				if l.Filter != nil {
					one += " if " + l.Filter.String()
				}
				got = append(got, one)
			}
			if strings.Join(got, ", ") != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
