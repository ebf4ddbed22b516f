package traffic

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

const root = "istio-system"

func rule(namespace, name, host string, created int64, change ...func(*Rule)) *Rule {
	r := &Rule{Namespace: namespace, Name: name, Host: host, Created: created, Root: namespace == root}
	for _, f := range change {
		f(r)
	}
	return r
}

func own(r *Rule) { r.Own = true }

func seenBy(ns ...string) func(*Rule) { return func(r *Rule) { r.VisibleTo = ns } }

// TestFind: the client's namespace is asked first, then the service's, then the root
// namespace; within each the most specific host, then the oldest rule.
func TestFind(t *testing.T) {
	const host = "web.shop.svc.cluster.local"
	for name, c := range map[string]struct {
		rules  []*Rule
		client string
		want   string
	}{
		"none":                                {nil, "shop", ""},
		"the client's own comes first":        {[]*Rule{rule("shop", "a", host, 1), rule("street", "b", host, 2), rule(root, "c", host, 0)}, "street", "street/b"},
		"then the service's":                  {[]*Rule{rule("shop", "a", host, 1), rule(root, "c", host, 0)}, "street", "shop/a"},
		"then the root's":                     {[]*Rule{rule(root, "c", host, 0)}, "street", root + "/c"},
		"of a third namespace":                {[]*Rule{rule("market", "a", host, 1)}, "street", ""},
		"an exact host before a pattern":      {[]*Rule{rule("shop", "a", "*.shop.svc.cluster.local", 1), rule("shop", "b", host, 2)}, "street", "shop/b"},
		"a longer pattern":                    {[]*Rule{rule("shop", "a", "*", 1), rule("shop", "b", "*.cluster.local", 2), rule("shop", "c", "*.shop.svc.cluster.local", 3)}, "street", "shop/c"},
		"a pattern of the client's own":       {[]*Rule{rule("shop", "a", host, 1), rule("street", "b", "*", 2)}, "street", "street/b"},
		"the oldest":                          {[]*Rule{rule("shop", "a", host, 2), rule("shop", "b", host, 1)}, "street", "shop/b"},
		"the first by name of one age":        {[]*Rule{rule("shop", "b", host, 1), rule("shop", "a", host, 1)}, "street", "shop/a"},
		"another host":                        {[]*Rule{rule("shop", "a", "api.shop.svc.cluster.local", 1)}, "shop", ""},
		"one that only its namespace sees":    {[]*Rule{rule("shop", "a", host, 1, own)}, "street", ""},
		"and its namespace":                   {[]*Rule{rule("shop", "a", host, 1, own)}, "shop", "shop/a"},
		"one that others see":                 {[]*Rule{rule("shop", "a", host, 1, seenBy("market"))}, "street", ""},
		"and a namespace that sees it":        {[]*Rule{rule("shop", "a", host, 1, seenBy("market"))}, "market", "shop/a"},
		"hidden ones do not hide the next":    {[]*Rule{rule("shop", "a", host, 1, own), rule(root, "c", "*", 1)}, "street", root + "/c"},
		"the root's own clients, the service": {[]*Rule{rule("shop", "a", host, 1), rule(root, "c", "*", 0)}, root, "shop/a"},
		"the root's own clients, private":     {[]*Rule{rule("shop", "a", host, 1), rule(root, "c", "*", 0, own)}, root, root + "/c"},
		"a private one of the root":           {[]*Rule{rule(root, "c", host, 0, own)}, "street", ""},
		"a name that only ends alike":         {[]*Rule{rule("shop", "a", "*.shop.svc.cluster.local", 1)}, "street", "shop/a"},
	} {
		got := ""
		if r := NewSet(c.rules).Find(c.client, "shop", host); r != nil {
			got = r.Namespace + "/" + r.Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if (&Rule{Host: "*.shop"}).Matches("shop") || (&Rule{Host: "*.shop"}).Matches(".shop") {
		t.Error("a pattern fits its own suffix")
	}
}

// TestForeignRules: whatever rules there are, no client gets one of a namespace that is
// neither its own, nor the service's, nor the root, nor one that it does not see.
func TestForeignRules(t *testing.T) {
	namespaces := rapid.SampledFrom([]string{"a", "b", "c", root})
	hosts := rapid.SampledFrom([]string{"*", "*.b.svc.x", "w.b.svc.x", "v.a.svc.x"})
	rapid.Check(t, func(t *rapid.T) {
		var all []*Rule
		for i := range rapid.IntRange(0, 8).Draw(t, "rules") {
			r := rule(namespaces.Draw(t, "namespace"), string(rune('a'+i)), hosts.Draw(t, "host"), int64(rapid.IntRange(0, 3).Draw(t, "age")))
			switch rapid.IntRange(0, 2).Draw(t, "export") {
			case 0:
				r.Own = true
			case 1:
				r.VisibleTo = []string{namespaces.Draw(t, "to")}
			}
			all = append(all, r)
		}
		client := namespaces.Draw(t, "client")
		r := NewSet(all).Find(client, "b", "w.b.svc.x")
		if r == nil {
			return
		}
		if r.Namespace != client && r.Namespace != "b" && r.Namespace != root {
			t.Fatalf("clients of %s get %s", client, r)
		}
		if r.Namespace != client && (r.Own || r.VisibleTo != nil && r.VisibleTo[0] != client) {
			t.Fatalf("clients of %s get %s, which they do not see", client, r)
		}
		if !r.Matches("w.b.svc.x") {
			t.Fatalf("%s is for %s", r, r.Host)
		}
	})
}

func full() *Rule {
	s := Settings{
		MaxConnections: 3, ConnectTimeout: 2 * time.Second, Balance: RoundRobin,
		Outlier:  &Outlier{Consecutive: 5, Interval: 10 * time.Second, Base: 30 * time.Second, MaxPercent: 10, MinHealthPercent: 50},
		Locality: &Locality{Scopes: []Scope{Region, Zone, Subzone, NodeScope, Cluster, Network}, Failover: []Failover{{"a", "b"}}},
	}
	return &Rule{
		Namespace: "shop", Name: "web", Created: 7, Host: "*.shop.svc.cluster.local", VisibleTo: []string{"market"}, Root: true,
		Settings: s, Ports: map[uint16]Settings{9000: {MaxConnections: 1}, 80: s, 81: {Locality: &Locality{Disabled: true}}},
	}
}

// TestWire: a rule survives the wire, and what is out of bounds or unknown is rejected.
func TestWire(t *testing.T) {
	body, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(body); err != nil || !reflect.DeepEqual(got, full()) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Decode(append(body, protowire.AppendTag(nil, 99, protowire.VarintType)...)); err == nil {
		t.Error("a cut field is taken")
	}
	if _, err := Decode(protowire.AppendVarint(protowire.AppendTag(body, 99, protowire.VarintType), 1)); err == nil {
		t.Error("a field from the future is taken")
	}
	for name, change := range map[string]func(*Rule){
		"no name":              func(r *Rule) { r.Name = "" },
		"no host":              func(r *Rule) { r.Host = "" },
		"a host in upper case": func(r *Rule) { r.Host = "Web" },
		"a star inside":        func(r *Rule) { r.Host = "a.*.b" },
		"a star without a dot": func(r *Rule) { r.Host = "*web" },
		"port 0":               func(r *Rule) { r.Ports = map[uint16]Settings{0: {}} },
		"a long time":          func(r *Rule) { r.Settings.ConnectTimeout = MaxConnectTimeout + time.Second },
		"more than all":        func(r *Rule) { r.Settings.Outlier.MaxPercent = 101 },
		"no time":              func(r *Rule) { r.Settings.Outlier.Base = 0 },
		"a balance":            func(r *Rule) { r.Settings.Balance = 9 },
		"many namespaces":      func(r *Rule) { r.VisibleTo = make([]string, maxList+1) },
	} {
		r := full()
		change(r)
		if _, err := r.Encode(); err == nil {
			t.Errorf("%s is sent", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	body, _ := full().Encode()
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := Decode(body)
		if err != nil {
			return
		}
		if again, err := r.Encode(); err != nil {
			t.Fatalf("what was taken is not sent: %v", err)
		} else if same, err := Decode(again); err != nil || !reflect.DeepEqual(r, same) {
			t.Fatalf("%+v became %+v, %v", r, same, err)
		}
		NewSet([]*Rule{r}).Find("a", "b", "c")
		_ = r.Text()
	})
}
