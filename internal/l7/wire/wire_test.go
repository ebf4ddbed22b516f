package wire

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	routepb "github.com/ambit-mesh/ambit/api/route"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

var web = route.PortKey{Namespace: "shop", Hostname: "web.shop.svc.cluster.local", Port: 80}

func upstream(name string, weight uint32) route.Backend {
	return route.Backend{Name: route.PortKey{Namespace: "shop", Hostname: name, Port: 80}.UpstreamName(), Weight: weight}
}

func authorizer() *extauthz.Provider {
	p, err := extauthz.Compile(&authzpb.Provider{
		Name: "HTTPRoute shop/web, rule 2", Namespace: "auth", Hostname: "a", Port: 80, TimeoutMs: 2000, StatusOnError: 403, Body: &authzpb.CheckBody{MaxBytes: 9},
		Protocol: &authzpb.Provider_Http{Http: &authzpb.HTTPCheck{PathPrefix: "/check", IncludeHeaders: []string{"x-a"}, AllToUpstream: true}},
	})
	if err != nil {
		panic(err)
	}
	return p
}

// sameAuthorizer compares what was compiled by what it was compiled from.
var sameAuthorizer = cmp.Comparer(func(a, b *extauthz.Provider) bool {
	return (a == nil) == (b == nil) && (a == nil || proto.Equal(a.Proto(), b.Proto()))
})

// full has a value in every field that a message has.
func full() *Rule {
	r := &Rule{
		Origin:  Origin{"HTTPRoute", "shop", "web", 2, "main", time.Unix(1700000000, 0).UTC()},
		Parents: []Parent{{web, ""}, {route.PortKey{Namespace: "egress", Hostname: "*.example.org", Port: 443}, "shop"}},
		Rule: route.Rule{
			GRPC: true, Guarded: true,
			Matches: []route.Match{
				{Path: route.Path{Kind: route.Segments, Value: "/a"}, Method: "GET", Headers: []route.Value{{Name: "x-a", Kind: route.Exact, Value: "1"}}},
				{Path: route.Path{Kind: route.Segments, Value: "/b"}, Query: []route.Value{{Name: "q", Kind: route.Regex, Value: "a|b"}}},
			},
			Backends: []route.Backend{upstream("v1", 3), {Weight: 1, Invalid: "no such Service"}, {Name: "shop/v2:81", Invalid: "not permitted", Weight: 2}},
			Filters: route.Filters{
				Request:  &route.HeaderEdit{Set: []route.Field{{Name: "a", Value: "1"}}, Add: []route.Field{{Name: "b", Value: "2"}}, Remove: []string{"c"}},
				Response: &route.HeaderEdit{Remove: []string{"server"}},
				Rewrite:  &route.Rewrite{Host: "h", Path: &route.PathEdit{Prefix: true, Value: "/c"}},
				Mirrors:  []route.Mirror{{Backend: upstream("shadow", 0), Numerator: 1, Denominator: 3}},
				CORS:     &route.CORS{Origins: []string{"https://*.example.org"}, Methods: []string{"GET"}, Headers: []string{"x"}, Expose: []string{"*"}, Credentials: true, MaxAge: 5 * time.Second},

				ExternalAuth: authorizer(),
			},
			Timeouts: route.Timeouts{Request: time.Second, Try: time.Millisecond},
			Retry:    &route.Retry{Codes: []int{503}, Attempts: 2, Backoff: time.Millisecond},
			Session:  &route.Session{Name: "s", Absolute: time.Minute, Permanent: true},
		},
	}
	r.Rule.Backends[0].Filters.Response = &route.HeaderEdit{Set: []route.Field{{Name: "a", Value: ""}}}
	r.fill()
	return r
}

func redirect() *Rule {
	r := full()
	r.Rule.Backends, r.Rule.Filters.Rewrite = nil, nil
	r.Rule.Session = &route.Session{Name: "x-s", Header: true}
	r.Rule.Filters.Redirect = &route.Redirect{Scheme: "https", Host: "h", Port: 8443, Path: &route.PathEdit{Value: "/"}, Status: 308}
	return r
}

func dropped() *Rule {
	r := full()
	r.Dropped, r.Rule = "a regular expression with a mistake", route.Rule{}
	r.fill()
	return r
}

// byName is a rule for connections.
func byName() *Rule {
	r := full()
	r.Rule = route.Rule{Carries: route.TLS, Hosts: []string{"a.example.org", "*.b"}, Backends: []route.Backend{{Name: "shop/v1.shop.svc:443", Weight: 1}, {Weight: 2, Invalid: "no grant"}}}
	r.fill()
	return r
}

func encoded(t testing.TB, r *Rule) []byte {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for name, r := range map[string]*Rule{"full": full(), "redirect": redirect(), "dropped": dropped(), "connections": byName()} {
		got, err := Decode(encoded(t, r))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(r, got, sameAuthorizer); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

// TestEveryFieldOfTheMessageIsUsed: the rules of TestRoundTrip set every field.
func TestEveryFieldOfTheMessageIsUsed(t *testing.T) {
	used := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			used[f.FullName()] = true
			switch {
			case f.Message() != nil && f.IsList():
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			case f.Message() != nil:
				walk(v.Message())
			}
			return true
		})
	}
	for _, r := range []*Rule{full(), redirect(), dropped(), byName()} {
		walk(r.proto().ProtoReflect())
	}
	messages := routepb.File_route_route_proto.Messages()
	for i := range messages.Len() {
		fields := messages.Get(i).Fields()
		for j := range fields.Len() {
			if name := fields.Get(j).FullName(); !used[name] {
				t.Errorf("no rule has %s", name)
			}
		}
	}
}

// TestRejected: what a gateway cannot execute is rejected by both ends, with
// the field and the value in the error.
func TestRejected(t *testing.T) {
	for want, spoil := range map[string]func(*routepb.Rule){
		`origin: "HTTPRoute shop/, rule 2 (main)"`: func(r *routepb.Rule) { r.Origin.Name = "" },
		`parents: 0`:                                         func(r *routepb.Rule) { r.Parents = nil },
		`parents[0].port: 65536`:                             func(r *routepb.Rule) { r.Parents[0].Port = 65536 },
		`parents[0]: service.hostname: ""`:                   func(r *routepb.Rule) { r.Parents[0].Service.Hostname = "" },
		`parents[1]: service.namespace: "a/b"`:               func(r *routepb.Rule) { r.Parents[1].Service.Namespace = "a/b" },
		`matches: 129`:                                       func(r *routepb.Rule) { r.Matches = make([]*routepb.Match, 129) },
		`matches[0]: path "a" does not start with a slash`:   func(r *routepb.Rule) { r.Matches[0].Path.Value = "a" },
		`matches[1]: path "/b" has no known kind`:            func(r *routepb.Rule) { r.Matches[1].Path.Kind = 0 },
		`ambit.route.v1.PathMatch.kind: value 77`:            func(r *routepb.Rule) { r.Matches[1].Path.Kind = 77 },
		`matches[0]: method: "G T"`:                          func(r *routepb.Rule) { r.Matches[0].Method = "G T" },
		`matches[0]: headers[0].name: ":path"`:               func(r *routepb.Rule) { r.Matches[0].Headers[0].Name = ":path" },
		`the kind of match of "x-a"`:                         func(r *routepb.Rule) { r.Matches[0].Headers[0].Kind = routepb.MatchKind_PATH_PREFIX },
		`matches[1]: error parsing regexp`:                   func(r *routepb.Rule) { r.Matches[1].Query[0].Value = "(" },
		`filters.request.set[0].name: "a b"`:                 func(r *routepb.Rule) { r.Filters.Request.Set[0].Name = "a b" },
		`filters.request.set[0].value: "a\nb"`:               func(r *routepb.Rule) { r.Filters.Request.Set[0].Value = "a\nb" },
		`filters.request.add[0].name: "Transfer-Encoding"`:   func(r *routepb.Rule) { r.Filters.Request.Add[0].Name = "Transfer-Encoding" },
		`filters.response.remove[0]: "Connection"`:           func(r *routepb.Rule) { r.Filters.Response.Remove[0] = "Connection" },
		`"x_forwarded_client_cert"`:                          func(r *routepb.Rule) { r.Filters.Request.Add[0].Name = "x_forwarded_client_cert" },
		`use URLRewrite`:                                     func(r *routepb.Rule) { r.Filters.Request.Add[0].Name = "Host" },
		`the rule has backends or a rewrite`:                 func(r *routepb.Rule) { r.Filters.Redirect = &routepb.Redirect{} },
		`filters.redirect.scheme: "ftp"`:                     func(r *routepb.Rule) { r.Filters.Redirect = &routepb.Redirect{Scheme: "ftp"} },
		`filters.redirect.status: 200`:                       func(r *routepb.Rule) { r.Filters.Redirect = &routepb.Redirect{Status: 200} },
		`filters.redirect.port: 99999`:                       func(r *routepb.Rule) { r.Filters.Redirect = &routepb.Redirect{Port: 99999} },
		`filters.redirect.hostname: "a:80"`:                  func(r *routepb.Rule) { r.Filters.Redirect = &routepb.Redirect{Hostname: "a:80"} },
		`filters.rewrite.path: neither full nor prefix`:      func(r *routepb.Rule) { r.Filters.Rewrite.Path.Edit = nil },
		`filters.rewrite.path: "x" does not start`:           func(r *routepb.Rule) { r.Filters.Rewrite.Path.Edit = &routepb.PathEdit_Full{Full: "x"} },
		`filters.rewrite.path: "/a b": ' '`:                  func(r *routepb.Rule) { r.Filters.Rewrite.Path.Edit = &routepb.PathEdit_Full{Full: "/a b"} },
		`filters.rewrite.path: prefix: "/c": a match`:        func(r *routepb.Rule) { r.Matches[0].Path = nil },
		`filters.rewrite.hostname: "a b"`:                    func(r *routepb.Rule) { r.Filters.Rewrite.Hostname = "a b" },
		`filters.mirrors[0]: 4 of 3`:                         func(r *routepb.Rule) { r.Filters.Mirrors[0].Numerator = 4 },
		`filters.mirrors[0]: 0 of 0`:                         func(r *routepb.Rule) { r.Filters.Mirrors[0] = &routepb.Mirror{} },
		`filters.mirrors[0].backend: is invalid`:             func(r *routepb.Rule) { r.Filters.Mirrors[0].Backend.Invalid = "x" },
		`filters.mirrors[0].backend.upstream ""`:             func(r *routepb.Rule) { r.Filters.Mirrors[0].Backend = nil },
		`filters.cors.origins[0]: "a.org"`:                   func(r *routepb.Rule) { r.Filters.Cors.Origins[0] = "a.org" },
		`filters.cors.methods[1]: "*"`:                       func(r *routepb.Rule) { r.Filters.Cors.Methods = []string{"GET", "*"} },
		`backends[0]: port: 0`:                               func(r *routepb.Rule) { r.Backends[0].Port = 0 },
		`backends[0].upstream ""`:                            func(r *routepb.Rule) { r.Backends[0] = &routepb.Backend{Weight: 1} },
		`backends[0].filters: only request and response`:     func(r *routepb.Rule) { r.Backends[0].Filters.Cors = &routepb.CORS{} },
		`timeouts.request_ms: 1439985600001`:                 func(r *routepb.Rule) { r.Timeouts.RequestMs = maxMillis + 1 },
		`retry.codes[0]: 200`:                                func(r *routepb.Rule) { r.Retry.Codes[0] = 200 },
		`retry.attempts: 101`:                                func(r *routepb.Rule) { r.Retry.Attempts = 101 },
		`dropped: "x", and the rule has contents`:            func(r *routepb.Rule) { r.Dropped = "x" },
		`ambit.route.v1.Match has a field that is not known`: func(r *routepb.Rule) { addUnknown(r.Matches[1]) },
		`ambit.route.v1.Rule has a field that is not known`:  func(r *routepb.Rule) { addUnknown(r) },
	} {
		pb := full().proto()
		spoil(pb)
		body, err := proto.Marshal(pb)
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if _, err := Decode(body); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
	if _, err := Decode(make([]byte, maxMessage+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Error(err)
	}
	if _, err := Decode([]byte("\xff")); err == nil || !strings.Contains(err.Error(), "ambit.route.v1.Rule") {
		t.Error(err)
	}
}

func addUnknown(m proto.Message) {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
}

// TestNotEncoded: values that the messages do not have are rejected, not left
// out.
func TestNotEncoded(t *testing.T) {
	for want, spoil := range map[string]func(*Rule){
		"hosts":                    func(r *Rule) { r.Rule.Hosts = []string{"a"} },
		"kind of match of \"x-a\"": func(r *Rule) { r.Rule.Matches[0].Headers[0].Not = true },
		"kind of match of \"q\"":   func(r *Rule) { r.Rule.Matches[1].Query[0].Kind = route.Present },
		"has no kind of match":     func(r *Rule) { r.Rule.Matches[0].Path.Kind = route.Any },
		"fraction of a second":     func(r *Rule) { r.Origin.Created = time.Unix(0, 1).UTC() },
		"milliseconds":             func(r *Rule) { r.Rule.Timeouts.Try = time.Microsecond },
		"number of seconds":        func(r *Rule) { r.Rule.Filters.CORS.MaxAge = time.Millisecond },
	} {
		r := full()
		spoil(r)
		if _, err := r.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// draw returns a rule that may be in order or not.
func draw(t *rapid.T) *Rule {
	pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
	r := []func() *Rule{full, redirect, dropped}[rapid.IntRange(0, 2).Draw(t, "base")]()
	c := &r.Rule
	if rapid.Bool().Draw(t, "match") && len(c.Matches) > 0 {
		c.Matches[0].Path = route.Path{Kind: route.Kind(rapid.IntRange(0, 5).Draw(t, "kind")), Value: pick("path", "/", "/a", "a", "", "/(a")}
		c.Matches[0].Headers = append(c.Matches[0].Headers, route.Value{Name: pick("name", "x", "", "a b"), Kind: route.Kind(rapid.IntRange(0, 5).Draw(t, "kind")), Value: pick("value", "", "(")})
	}
	if rapid.Bool().Draw(t, "filters") && !empty(&c.Filters) {
		c.Filters.Request.Set[0].Name = pick("edit", "a", "HOST", "te", "")
		c.Filters.Mirrors[0].Numerator = rapid.Uint32().Draw(t, "numerator")
	}
	if rapid.Bool().Draw(t, "backends") && len(c.Backends) > 0 {
		c.Backends[0].Name = pick("upstream", "", "a/b:1", "a/b:0", "a/b", "a/b:00", "/:1")
		c.Backends[0].Weight = rapid.Uint32().Draw(t, "weight")
	}
	r.Parents[0].Port.Port = rapid.Uint16().Draw(t, "port")
	return r
}

// TestWhatIsEncodedIsDecoded: a rule is rejected by Encode, or it is the same
// at the other end.
func TestWhatIsEncodedIsDecoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := draw(t)
		body, err := r.Encode()
		if err != nil {
			return
		}
		got, err := Decode(body)
		if err != nil {
			t.Fatalf("%v\n%+v", err, r)
		}
		if d := cmp.Diff(r, got, sameAuthorizer); d != "" {
			t.Fatal(d)
		}
	})
}

// TestCompileOrdersByOrigin: the order in which rules arrive does not decide.
func TestCompileOrdersByOrigin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rules []*Rule
		for i := range 4 {
			r := full()
			r.Origin.Rule, r.Origin.Name = i, "b"
			r.Rule.Matches = nil
			rules = append(rules, r)
		}
		rules[3].Origin.Name = "a"
		drop := rapid.SampledFrom([]int{-1, 3}).Draw(t, "dropped")
		want := "HTTPRoute shop/a, rule 3 (main)"
		if drop == 3 {
			rules[3].Dropped, rules[3].Rule = "x", route.Rule{}
			want = "HTTPRoute shop/b, rule 0 (main)"
		}
		for _, r := range rules {
			r.fill()
		}
		table, _ := Compile(rapid.Permutation(rules).Draw(t, "order"))
		got := table.Lookup(&message.Head{Method: []byte("GET"), Path: []byte("/")})
		if got == nil || got.Rule.Origin != want {
			t.Fatalf("%+v, want %s", got, want)
		}
	})
}

// FuzzDecode: no message makes Decode panic. What it accepts says all that the
// message says: it encodes to an equal message, and compiles.
func FuzzDecode(f *testing.F) {
	for _, r := range []*Rule{full(), redirect(), dropped()} {
		f.Add(encoded(f, r))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := Decode(body)
		if err != nil {
			return
		}
		in := &routepb.Rule{}
		if err := proto.Unmarshal(body, in); err != nil {
			t.Fatal(err)
		}
		if out := r.proto(); !proto.Equal(plain(in), plain(out)) {
			t.Fatalf("decoded\n%v\nand encoded\n%v", in, out)
		}
		table, _ := Compile([]*Rule{r})
		table.Lookup(&message.Head{Method: []byte("GET"), Path: []byte("/a"), Authority: []byte("h")})
		if _, err := r.Encode(); err != nil {
			t.Fatalf("decoded, and not encoded: %v", err)
		}
	})
}

// plain removes messages that say the same as none.
func plain(r *routepb.Rule) *routepb.Rule {
	if r.Origin == nil {
		r.Origin = &routepb.Origin{}
	}
	if proto.Size(r.Timeouts) == 0 {
		r.Timeouts = nil
	}
	filters := func(f *routepb.Filters) *routepb.Filters {
		if proto.Size(f) == 0 {
			return nil
		}
		return f
	}
	backend := func(b *routepb.Backend) {
		if proto.Size(b.GetService()) == 0 && b.GetPort() == 0 {
			b.Service = nil
		}
		b.Filters = filters(b.Filters)
	}
	r.Filters = filters(r.Filters)
	for _, b := range r.Backends {
		backend(b)
	}
	for _, m := range r.Filters.GetMirrors() {
		backend(m.Backend)
	}
	return r
}

func TestUpstream(t *testing.T) {
	for _, s := range []string{"", "a", "a/b", "a/b:", "a/b:65536", "a/b:+1", "a:1/b"} {
		if u, err := ParseUpstream(s); err == nil {
			t.Errorf("%q is %v", s, u)
		}
	}
	if k, err := ParseUpstream(web.UpstreamName()); err != nil || k != web {
		t.Error(k, err)
	}
}
