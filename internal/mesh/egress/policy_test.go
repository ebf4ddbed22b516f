package egress

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	egresspb "github.com/ambit-mesh/ambit/api/egress"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func policy(ns, name string, entries ...Entry) *Policy {
	return &Policy{Namespace: ns, Name: name, Root: ns == "root", RootNamespace: "root", To: entries}
}

func with(p *Policy, f func(*Policy)) *Policy { f(p); return p }

func hosts(h ...string) Entry { return Entry{Hosts: h} }

func cidrs(texts ...string) (e Entry) {
	for _, t := range texts {
		p, err := ParseCIDR(t)
		if err != nil {
			panic(err)
		}
		e.CIDRs = append(e.CIDRs, p)
	}
	return e
}

func (e Entry) on(ports ...uint16) Entry { e.Ports = ports; return e }

func call(addr string, port uint16, names ...string) *Call {
	c := &Call{Addr: netip.MustParseAddr(addr), Port: port}
	for _, n := range names {
		host, entry, _ := strings.Cut(n, "@")
		c.Names = append(c.Names, Name{host, Origin{entry}})
	}
	return c
}

func opened(c *Call, o Opening, sni string) *Call { c.Opening, c.SNI = o, sni; return c }

// TestDecide: what each kind of entry allows, and how policies compose.
func TestDecide(t *testing.T) {
	api := policy("shop", "api", hosts("api.example").on(443))
	wild := policy("shop", "wild", hosts("*.example"))
	net := policy("root", "net", cidrs("192.0.2.0/24", "2001:db8::/32").on(443, 80))
	broken := with(policy("shop", "broken", hosts("api.example")), func(p *Policy) { p.Invalid = "to[0]: bad" })
	dry := with(policy("shop", "dry", hosts("dry.example")), func(p *Policy) { p.DryRun = true })
	for _, tt := range []struct {
		name     string
		policies []*Policy
		call     *Call
		want     Outcome
		listed   bool
		cause    string
	}{
		{"no policy", nil, call("192.0.2.1", 443), Allowed, false, ""},
		{"an empty list", []*Policy{policy("shop", "none")}, call("192.0.2.1", 443), Refused, false, "no entry of EgressPolicy shop/none"},
		{"an empty entry", []*Policy{policy("shop", "all", Entry{})}, call("192.0.2.1", 443), Allowed, false, ""},
		{"a port", []*Policy{policy("shop", "web", Entry{}.on(443))}, call("192.0.2.1", 443), Allowed, false, ""},
		{"another port", []*Policy{policy("shop", "web", Entry{}.on(443))}, call("192.0.2.1", 80), Refused, false, "no entry"},
		{"a range", []*Policy{net}, call("192.0.2.1", 80), Allowed, true, ""},
		{"a range, IPv4 in IPv6", []*Policy{net}, call("::ffff:192.0.2.1", 80), Allowed, true, ""},
		{"a range, IPv6", []*Policy{net}, call("2001:db8::1", 80), Allowed, true, ""},
		{"another port of a range", []*Policy{net}, call("192.0.2.1", 81), Refused, false, "no entry"},
		{"beside a range", []*Policy{net}, call("192.0.3.1", 80), Refused, false, "no entry"},
		{"a host that a waypoint finds has no address", []*Policy{net}, &Call{Port: 80}, Refused, false, "no entry"},

		{"a host, without a look-up", []*Policy{api}, call("192.0.2.1", 443), Refused, false, "no look-up"},
		{"a host, before the first bytes", []*Policy{api}, call("192.0.2.1", 443, "api.example"), Undecided, true, ""},
		{"a host, no TLS", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Allowed, true, ""},
		{"a host, TLS", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example"), TLS, "api.example"), Allowed, true, ""},
		{"a host, TLS without a name", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example"), TLS, ""), Refused, false, "names no server"},
		{"a host, TLS with another name", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example"), TLS, "evil.example"), Refused, false, "evil.example"},
		{"a host, TLS with a name of its address that is not listed", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example", "evil.example"), TLS, "evil.example"), Refused, false, "evil.example"},
		{"a listed name that another address has", []*Policy{wild}, opened(call("192.0.2.1", 443, "api.example"), TLS, "b.example"), Refused, false, "b.example"},
		{"another port of a host", []*Policy{api}, call("192.0.2.1", 80, "api.example"), Refused, false, "api.example"},
		{"another name", []*Policy{api}, call("192.0.2.1", 443, "evil.example"), Refused, false, "evil.example"},
		{"a name below", []*Policy{wild}, opened(call("192.0.2.1", 443, "a.b.example"), TLS, "a.b.example"), Allowed, true, ""},
		{"the domain itself", []*Policy{wild}, call("192.0.2.1", 443, "example"), Refused, false, "no entry"},
		{"a name that only ends alike", []*Policy{wild}, call("192.0.2.1", 443, "badexample"), Refused, false, "no entry"},
		{"a host that a waypoint finds", []*Policy{api}, &Call{Port: 443, Unsniffed: true, Names: []Name{{"api.example", Origin{"shop"}}}}, Allowed, true, ""},

		{"host and range of one entry", []*Policy{policy("shop", "both", Entry{Hosts: []string{"api.example"}, CIDRs: cidrs("192.0.2.0/24").CIDRs})}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Allowed, true, ""},
		{"host and another range", []*Policy{policy("shop", "both", Entry{Hosts: []string{"api.example"}, CIDRs: cidrs("192.0.3.0/24").CIDRs})}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Refused, false, "no entry"},
		{"one of two entries", []*Policy{policy("shop", "two", hosts("x.example"), cidrs("192.0.2.0/24"))}, call("192.0.2.1", 443), Allowed, true, ""},
		{"a range before a host", []*Policy{policy("shop", "two", hosts("api.example"), cidrs("192.0.2.0/24"))}, call("192.0.2.1", 443, "api.example"), Allowed, true, ""},
		{"one of two policies", []*Policy{policy("shop", "none"), wild}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Allowed, true, ""},

		{"both levels", []*Policy{net, api}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Allowed, true, ""},
		{"the root's alone", []*Policy{net, api}, call("192.0.2.1", 443), Refused, false, "shop/api"},
		{"the namespace's alone", []*Policy{net, api}, call("192.0.3.1", 443, "api.example"), Refused, false, "root/net"},
		{"the root's refuses, the namespace's allows all", []*Policy{net, policy("shop", "all", Entry{})}, call("192.0.3.1", 443), Refused, false, "root/net"},

		{"a policy that cannot be used", []*Policy{broken}, call("192.0.2.1", 443, "api.example"), Refused, false, "to[0]: bad"},
		{"another policy beside it", []*Policy{broken, wild}, opened(call("192.0.2.1", 443, "api.example"), NoTLS, ""), Allowed, true, ""},
		{"a dry run does not count", []*Policy{dry}, call("192.0.2.1", 443), Allowed, false, ""},
		{"a dry run allows nothing", []*Policy{api, dry}, call("192.0.2.1", 443, "dry.example"), Refused, false, "no entry"},

		{"a name of the own namespace's ServiceEntry", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example@shop"), NoTLS, ""), Allowed, true, ""},
		{"a name of the root namespace's ServiceEntry", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example@root"), NoTLS, ""), Allowed, true, ""},
		{"a name of another namespace's ServiceEntry", []*Policy{api}, opened(call("192.0.2.1", 443, "api.example@yard"), NoTLS, ""), Refused, false, "namespace yard"},
		{"the root's policy, a name of a namespace's ServiceEntry", []*Policy{policy("root", "api", hosts("api.example"))}, opened(call("192.0.2.1", 443, "api.example@shop"), NoTLS, ""), Refused, false, "namespace shop"},
	} {
		d := Decide(tt.policies, tt.call, false)
		if d.Outcome != tt.want || d.Listed != tt.listed || !strings.Contains(d.Cause, tt.cause) || (d.Cause == "") != (tt.want != Refused) {
			t.Errorf("%s: %+v", tt.name, d)
		}
	}
	if d := Decide([]*Policy{dry}, call("192.0.2.1", 443), true); d.Outcome != Refused {
		t.Errorf("a dry run that is tried: %+v", d)
	}
	if d := Decide([]*Policy{api, dry}, opened(call("192.0.2.1", 443, "dry.example"), NoTLS, ""), true); d.Outcome != Allowed {
		t.Errorf("entries of a dry run, tried: %+v", d)
	}
}

var (
	drawHost   = rapid.SampledFrom([]string{"a.test", "b.test", "c.a.test", "*.test", "*.a.test"})
	drawName   = rapid.SampledFrom([]string{"a.test", "b.test", "c.a.test", "evil.other"})
	drawAddr   = rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", "198.51.100.1", "2001:db8::1"})
	drawRange  = rapid.SampledFrom([]string{"192.0.2.0/31", "192.0.2.0/24", "2001:db8::/64"})
	drawPort   = rapid.Uint16Range(1, 3)
	drawOrigin = rapid.SampledFrom([]string{"", "shop", "root", "yard"})
)

func drawPolicy(t *rapid.T, ns string) *Policy {
	p := policy(ns, rapid.StringMatching("[a-c]").Draw(t, "name"))
	for range rapid.IntRange(0, 3).Draw(t, "entries") {
		e := Entry{Hosts: rapid.SliceOfN(drawHost, 0, 2).Draw(t, "hosts"), Ports: rapid.SliceOfN(drawPort, 0, 2).Draw(t, "ports")}
		e.CIDRs = cidrs(rapid.SliceOfN(drawRange, 0, 2).Draw(t, "cidrs")...).CIDRs
		p.To = append(p.To, e)
	}
	p.DryRun = rapid.IntRange(0, 4).Draw(t, "dry") == 0
	if rapid.IntRange(0, 5).Draw(t, "broken") == 0 {
		p.Invalid = "it is broken"
	}
	return p
}

func drawCall(t *rapid.T) *Call {
	c := call(drawAddr.Draw(t, "address"), drawPort.Draw(t, "port"))
	for range rapid.IntRange(0, 3).Draw(t, "names") {
		c.Names = append(c.Names, Name{drawName.Draw(t, "found"), Origin{drawOrigin.Draw(t, "origin")}})
	}
	c.Opening = Opening(rapid.IntRange(0, 2).Draw(t, "opening"))
	if c.Opening == TLS {
		c.SNI = rapid.OneOf(drawName, rapid.Just("")).Draw(t, "sni")
	}
	return c
}

func drawPolicies(t *rapid.T) (all []*Policy) {
	for range rapid.IntRange(0, 4).Draw(t, "policies") {
		all = append(all, drawPolicy(t, rapid.SampledFrom([]string{"root", "shop"}).Draw(t, "namespace")))
	}
	return all
}

// TestNamespacesDoNotLoosen: whatever policies a namespace adds, nothing is allowed that the
// root namespace's policies refuse; and whatever is tried, nothing that is enforced changes.
func TestNamespacesDoNotLoosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, c := drawPolicies(t), drawCall(t)
		roots := slices.DeleteFunc(slices.Clone(all), func(p *Policy) bool { return !p.Root })
		enforced := slices.DeleteFunc(slices.Clone(all), func(p *Policy) bool { return p.DryRun })
		d := Decide(all, c, false)
		if r := Decide(roots, c, false); d.Outcome > r.Outcome {
			t.Fatalf("%v, and the root's alone %v", d, r)
		}
		if e := Decide(enforced, c, true); !reflect.DeepEqual(d, e) {
			t.Fatalf("%v, and %v without what is only tried", d, e)
		}
		if d.Outcome == Refused && (d.Cause == "" || d.Listed || len(d.Policies) == 0) {
			t.Fatalf("a refusal without a cause: %+v", d)
		}
		slices.Reverse(all)
		if back := Decide(all, c, false); back.Outcome != d.Outcome || back.Listed != d.Listed {
			t.Fatalf("the order matters: %v, %v", d, back)
		}
	})
}

// TestNothingUnlistedPasses: what is allowed is what a search finds: of each level that has
// policies, one entry whose every field matches, and for a host a name of the address, which
// TLS must name.
func TestNothingUnlistedPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, c := drawPolicies(t), drawCall(t)
		want := true
		for _, root := range []bool{true, false} {
			exist, allowed := false, false
			for _, p := range all {
				if p.Root != root || p.DryRun {
					continue
				}
				exist = true
				for _, e := range p.To {
					ok := p.Invalid == "" && (len(e.Ports) == 0 || slices.Contains(e.Ports, c.Port))
					in := len(e.CIDRs) == 0
					for _, r := range e.CIDRs {
						in = in || r.Contains(c.Addr)
					}
					host := len(e.Hosts) == 0
					for _, n := range c.Names {
						listed := slices.Contains(e.Hosts, n.Host)
						for _, h := range e.Hosts {
							listed = listed || h[0] == '*' && strings.HasSuffix(n.Host, h[1:])
						}
						ours := n.Origin.Entry == "" || n.Origin.Entry == "root" || n.Origin.Entry == p.Namespace
						host = host || listed && ours && (c.Opening == NoTLS || c.Opening == TLS && n.Host == c.SNI)
					}
					allowed = allowed || ok && in && host
				}
			}
			want = want && (!exist || allowed)
		}
		if d := Decide(all, c, false); (d.Outcome == Allowed) != want {
			t.Fatalf("%+v, and a search finds %v", d, want)
		}
		if c.Opening != NotSeen {
			return
		}
		// What is undecided is decided by the first bytes, and what is decided stays.
		d := Decide(all, c, false)
		for _, o := range []*Call{opened(clone(c), NoTLS, ""), opened(clone(c), TLS, ""), opened(clone(c), TLS, "a.test")} {
			later := Decide(all, o, false)
			if later.Outcome == Undecided || d.Outcome != Undecided && later.Outcome != d.Outcome {
				t.Fatalf("%v before, %v after the first bytes", d, later)
			}
		}
	})
}

func clone(c *Call) *Call { out := *c; return &out }

func TestParseEntries(t *testing.T) {
	for text, want := range map[string]string{
		"a.test": "a.test", "A.Test.": "a.test", "*.A.test": "*.a.test", "x": "x", "_sip.a.test": "_sip.a.test",
		"": "", "*": "", "*.": "", "a.*.test": "", "*a.test": "", "a..test": "", ".test": "", "https://a.test": "", "a.test:443": "", "192.0.2.1": "", "2001:db8::1": "",
		"bücher.test": "", strings.Repeat("a", 64) + ".test": "", strings.Repeat("a.", 127) + "a": "",
	} {
		got, err := ParseHost(text)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("host %q: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"192.0.2.0/24": "192.0.2.0/24", "192.0.2.1": "192.0.2.1/32", "2001:db8::/32": "2001:db8::/32", "2001:db8::1": "2001:db8::1/128", "0.0.0.0/0": "0.0.0.0/0",
		"": "", "192.0.2.1/24": "", "192.0.2.0/33": "", "::ffff:192.0.2.0/120": "", "::ffff:192.0.2.1": "", "fe80::1%eth0": "", "a.test": "",
	} {
		got, err := ParseCIDR(text)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("range %q: %v, %v", text, got, err)
		}
	}
}

// TestPoliciesTravel: each policy survives the wire; a message of the future does not become a
// smaller policy.
func TestPoliciesTravel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t, rapid.SampledFrom([]string{"root", "shop"}).Draw(t, "namespace"))
		if p.Invalid != "" {
			p.To = nil
		}
		body, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(body)
		if err != nil {
			t.Fatal(err)
		}
		again, err := got.Encode()
		if err != nil || string(again) != string(body) || got.Key() != p.Key() || len(got.To) != len(p.To) {
			t.Fatalf("%+v arrives as %+v, %v", p, got, err)
		}
		if _, err := Decode(protowire.AppendVarint(protowire.AppendTag(slices.Clone(body), 99, protowire.VarintType), 1)); err == nil {
			t.Fatal("an unknown field is left out")
		}
	})
	for _, bad := range []*egresspb.Entry{{Hosts: []string{"*"}}, {Cidrs: []string{"x"}}, {Ports: []uint32{0}}, {Ports: []uint32{65536}}, {Ports: make([]uint32, MaxList+1)}} {
		if _, err := ReadEntries([]*egresspb.Entry{{}, bad}); err == nil || !strings.HasPrefix(err.Error(), "to[1].") {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if _, err := ReadEntries(make([]*egresspb.Entry, MaxEntries+1)); err == nil {
		t.Error("a list without a bound")
	}
}

func TestSelection(t *testing.T) {
	if Select(nil) != nil || Selected(nil) != nil {
		t.Error("a workload without policies has an extension")
	}
	names := []string{"root/a", "shop/b"}
	if got := Selected(Select(names)); !slices.Equal(got, names) {
		t.Errorf("%q", got)
	}
	for what, config := range map[string]*anypb.Any{
		"nothing": nil, "another type": {TypeUrl: "type.googleapis.com/ambit.egress.v1.Policy"}, "garbage": {TypeUrl: Select(names)[0].Config.TypeUrl, Value: []byte{0xff}},
		"no names":   {TypeUrl: Select(names)[0].Config.TypeUrl},
		"the future": {TypeUrl: Select(names)[0].Config.TypeUrl, Value: protowire.AppendVarint(protowire.AppendTag(slices.Clone(Select(names)[0].Config.Value), 9, protowire.VarintType), 1)},
	} {
		if got := Selected([]*workloadpb.Extension{{Name: wellknown.ExtensionEgress, Config: config}}); !slices.Equal(got, []string{Unreadable}) {
			t.Errorf("%s: %q", what, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	body, _ := policy("shop", "a", hosts("*.a.test").on(443), cidrs("192.0.2.0/24")).Encode()
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := Decode(body)
		if err != nil {
			return
		}
		if _, err := p.Encode(); err != nil {
			t.Fatalf("%+v was read, and cannot be written: %v", p, err)
		}
		Decide([]*Policy{p}, call("192.0.2.1", 443, "a.test"), true)
	})
}

func BenchmarkDecide(b *testing.B) {
	p := policy("shop", "a", hosts("a.test", "*.b.test").on(443), cidrs("192.0.2.0/24"))
	for name, c := range map[string]*Call{"range": call("192.0.2.1", 80), "host": opened(call("198.51.100.1", 443, "x.b.test"), TLS, "x.b.test")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			all := []*Policy{p}
			for b.Loop() {
				if Decide(all, c, false).Outcome != Allowed {
					b.Fatal("refused")
				}
			}
		})
	}
}
