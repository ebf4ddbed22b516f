package wire

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

var (
	web81 = route.PortKey{Namespace: web.Namespace, Hostname: web.Hostname, Port: 81}
	other = route.PortKey{Namespace: "market", Hostname: "other", Port: 80}
)

// simple is a rule for all requests to its parents.
func simple(name string, parents ...Parent) *Rule {
	return &Rule{
		Origin: Origin{Kind: "HTTPRoute", Namespace: "shop", Name: name}, Parents: parents,
		Rule: route.Rule{Backends: []route.Backend{upstream(name, 1)}},
	}
}

// finds returns the name of the route that a request takes: "none" without a
// table, "404" without a rule.
func finds(c *route.Config, k route.PortKey, clients string) string {
	t := c.Port(k).TableFor(clients)
	if t == nil {
		return "none"
	}
	hit := t.Lookup(&message.Head{Method: []byte("GET"), Path: []byte("/")})
	if hit == nil {
		return "404"
	}
	return c.Upstreams[hit.Rule.Backends[0].Name].Service.Hostname
}

func TestTablesOfAService(t *testing.T) {
	s := NewStore()
	set := func(r *Rule) {
		t.Helper()
		if err := s.Set(r.Origin.Name, encoded(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		c := s.Config()
		got := fmt.Sprintf("80 %s, 81 %s, client: 80 %s, 81 %s", finds(c, web, "other"), finds(c, web81, "other"), finds(c, web, "client"), finds(c, web81, "client"))
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	check("80 none, 81 none, client: 80 none, 81 none")
	set(simple("port", Parent{web, ""}))
	check("80 port, 81 none, client: 80 port, 81 none")
	set(simple("all", Parent{web, ""}, Parent{web81, ""}, Parent{web81, ""}))
	check("80 all, 81 all, client: 80 all, 81 all") // both are for 80, and "all" precedes
	set(simple("consumer", Parent{web81, "client"}))
	check("80 all, 81 all, client: 80 all, 81 consumer")
	d := simple("consumer", Parent{web81, "client"}, Parent{web, "client"})
	d.Dropped, d.Rule = "a mistake", route.Rule{}
	set(d)
	check("80 all, 81 all, client: 80 404, 81 404")
	s.Remove("all")
	check("80 port, 81 none, client: 80 404, 81 404")
	if err := s.Set("port", []byte("\xff")); err == nil {
		t.Error("a broken message is accepted")
	}
	check("80 port, 81 none, client: 80 404, 81 404")
	s.Remove("port")
	s.Remove("consumer")
	check("80 none, 81 none, client: 80 none, 81 none")
	if c := s.Config(); len(c.Ports)+len(c.Upstreams)+len(s.ports)+len(s.upstreams)+len(s.rules) != 0 {
		t.Errorf("something is left: %+v", s)
	}
}

// TestAChangeCompilesItsPortsOnly: the tables of other ports stay the same
// values, and so does what the Config of before has.
func TestAChangeCompilesItsPortsOnly(t *testing.T) {
	s := NewStore()
	s.put("a", simple("a", Parent{Port: web}))
	s.put("b", simple("b", Parent{Port: other}))
	before := s.Config()
	s.put("a", simple("a2", Parent{Port: web}))
	after := s.Config()
	if before.Port(other) != after.Port(other) || before.Port(web) == after.Port(web) {
		t.Error("the wrong tables were compiled")
	}
	if b := upstream("b", 1).Name; before.Upstreams[b] != after.Upstreams[b] || before.Upstreams[b] == nil {
		t.Error("an upstream that stays is another value")
	}
	if got := finds(before, web, "") + finds(after, web, ""); got != "aa2" {
		t.Error(got)
	}
	if s.Config() != after {
		t.Error("without a change there is a new Config")
	}
}

// TestStoreIsWhatItWouldBeAnew: after any series of changes the tables are those
// of the rules that are there.
func TestStoreIsWhatItWouldBeAnew(t *testing.T) {
	ports := []route.PortKey{web, web81, other}
	rapid.Check(t, func(t *rapid.T) {
		s := NewStore()
		parent := rapid.Custom(func(t *rapid.T) Parent {
			return Parent{rapid.SampledFrom(ports).Draw(t, "port"), rapid.SampledFrom([]string{"", "c"}).Draw(t, "clients")}
		})
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			if rapid.Bool().Draw(t, "remove") {
				s.Remove(name)
			} else {
				s.put(name, simple(name, rapid.SliceOfN(parent, 1, 3).Draw(t, "parents")...))
			}
			if rapid.Bool().Draw(t, "look") {
				s.Config()
			}
		}
		c := s.Config()
		for _, k := range ports {
			for _, clients := range []string{"", "c", "d"} {
				if got, want := finds(c, k, clients), naive(s.Rules(), k, clients); got != want {
					t.Fatalf("%v for %q: %s, want %s", k, clients, got, want)
				}
			}
		}
		if len(c.Upstreams) != len(s.Rules()) {
			t.Fatalf("%d upstreams of %d rules", len(c.Upstreams), len(s.Rules()))
		}
	})
}

// naive looks at every rule: those for the client's namespace, else those for
// everybody. The first name wins, because all else is equal.
func naive(rules map[string]*Rule, k route.PortKey, clients string) string {
	for _, c := range []string{clients, ""} {
		var found []string
		for name, r := range rules {
			if slices.Contains(r.Parents, Parent{k, c}) {
				found = append(found, name)
			}
		}
		if len(found) > 0 {
			return slices.Min(found)
		}
	}
	return "none"
}

// TestStoreOfConnections: rules for requests and for connections of one port are in
// tables of their own, those of consumers apart. A rule of TLS that is dropped lets no
// connection of TLS through.
func TestStoreOfConnections(t *testing.T) {
	s := NewStore()
	set := func(name string, edit func(*Rule)) {
		t.Helper()
		r := byName()
		r.Origin.Name, r.Parents = name, []Parent{{web, ""}}
		edit(r)
		if err := s.Set(name, encoded(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	set("tls", func(*Rule) {})
	set("tcp", func(r *Rule) { r.Rule.Carries, r.Rule.Hosts = route.Anything, nil })
	p := s.Config().Port(web)
	if p.TableFor("") != nil || p.ConnectionsFor("").Lookup("a.example.org").Rule.Route != "shop/tls" || p.ConnectionsFor("any").Plain().Rule.Route != "shop/tcp" {
		t.Errorf("%+v", p)
	}
	if p.ConnectionsFor("").Lookup("other") != nil {
		t.Error("a name without a route has one")
	}
	set("own", func(r *Rule) { r.Parents[0].Clients, r.Rule.Carries, r.Rule.Hosts = "market", route.Anything, nil })
	p = s.Config().Port(web)
	if p.ConnectionsFor("market").Named() || p.ConnectionsFor("market").Plain().Rule.Route != "shop/own" || p.ConnectionsFor("shop").Plain().Rule.Route != "shop/tcp" {
		t.Error("the routes of consumers")
	}
	set("tls", func(r *Rule) {
		r.Dropped, r.Rule = "a name that is none", route.Rule{Carries: route.TLS}
		r.fill()
	})
	if c := s.Config().Port(web).ConnectionsFor(""); !c.Named() || c.Lookup("a.example.org") != nil {
		t.Error("a rule that is dropped lets connections through")
	}
	for _, name := range []string{"tls", "tcp", "own"} {
		s.Remove(name)
	}
	if s.Config().Port(web) != nil {
		t.Error("routes are left")
	}
}
