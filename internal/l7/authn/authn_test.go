package authn

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	authnpb "github.com/ambit-mesh/ambit/api/authn"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

var now = time.Unix(1_800_000_000, 0)

// world has two issuers, and a third that no policy names.
type world struct{ a, b, evil *jwttest.Issuer }

func newWorld(t testing.TB) world {
	one := func(name string) *jwttest.Issuer { return jwttest.New(t, "https://"+name, "k", jose.EdDSA) }
	return world{one("a"), one("b"), one("evil")}
}

func (w world) provider(i *jwttest.Issuer) *authnpb.Provider {
	return &authnpb.Provider{Issuer: i.Name, Jwks: jwttest.Set(i), ClockSkewSeconds: 60}
}

// store takes policies for everything.
func store(t testing.TB, providers ...*authnpb.Provider) *Store {
	t.Helper()
	s := NewStore()
	body, err := Encode(&authnpb.Authentication{Namespace: "ns", Name: "p", Everything: true, Providers: providers})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("ns/p", body); err != nil {
		t.Fatal(err)
	}
	return s
}

// head makes a request of its target and its fields.
func head(path string, fields ...string) *message.Head {
	h := &message.Head{Method: []byte("GET"), Authority: []byte("api"), Path: []byte(path)}
	for i := 0; i+1 < len(fields); i += 2 {
		h.Add(message.NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func show(h *message.Head) string {
	out := []string{string(h.Path)}
	for i := range h.Fields {
		out = append(out, string(h.Fields[i].Name)+"="+string(h.Fields[i].Value))
	}
	return strings.Join(out, " ")
}

// why returns the refusal of a request, for tests.
func why(err *reason.Error) string {
	if err == nil {
		return ""
	}
	return err.Reason.String() + " " + err.Err.Error()
}

// TestPlaces: tokens are found where programs would find them, and taken out.
func TestPlaces(t *testing.T) {
	w := newWorld(t)
	token := w.a.Token(map[string]any{"sub": "s"})
	custom := w.provider(w.a)
	custom.FromHeaders = []*authnpb.Header{{Name: "X-Token"}, {Name: "x-other", Prefix: "Token "}}
	custom.FromParams, custom.FromCookies = []string{"t"}, []string{"session"}
	forward := w.provider(w.a)
	forward.Forward = true
	const bad = "INVALID_TOKEN Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	for name, tt := range map[string]struct {
		provider *authnpb.Provider
		head     *message.Head
		claims   int
		want     string // of the head afterwards; or the refusal
	}{
		"no token":                     {nil, head("/a?b", "x", "y"), 0, "/a?b x=y"},
		"a header":                     {nil, head("/", "x", "y", "Authorization", "Bearer "+token), 1, "/ x=y"},
		"its scheme in lower case":     {nil, head("/", "authorization", "bearer "+token), 1, "/"},
		"spaces":                       {nil, head("/", "authorization", "Bearer   "+token+"  "), 1, "/"},
		"a tab":                        {nil, head("/", "authorization", "Bearer\t"+token), 1, "/"},
		"another scheme":               {nil, head("/", "authorization", "Basic eDp5"), 0, "/ authorization=Basic eDp5"},
		"a scheme that begins alike":   {nil, head("/", "authorization", "BearerX y"), 0, "/ authorization=BearerX y"},
		"a scheme alone":               {nil, head("/", "authorization", "Bearer "), 0, "/ authorization=Bearer "},
		"no token behind the scheme":   {nil, head("/", "authorization", "Bearer secret"), 0, bad},
		"two in a line":                {nil, head("/", "authorization", "Bearer "+token+", Bearer "+token), 0, bad},
		"two lines":                    {nil, head("/", "authorization", "Bearer "+token, "authorization", "Bearer x"), 0, bad},
		"a parameter":                  {nil, head("/a?x=1&access_token=" + token + "&y"), 1, "/a?x=1&y"},
		"the only parameter":           {nil, head("/a?access_token=" + token), 1, "/a"},
		"the name encoded":             {nil, head("/a?%61ccess_token=" + token), 1, "/a"},
		"the value encoded":            {nil, head("/a?access_token=%65" + token[1:]), 1, "/a"},
		"a parameter twice":            {nil, head("/a?access_token=" + token + "&access_token=x"), 0, bad},
		"an empty parameter":           {nil, head("/a?access_token="), 0, "/a?access_token="},
		"another parameter":            {nil, head("/a?token=" + token), 0, "/a?token=" + token},
		"header and parameter":         {nil, head("/a?access_token="+token, "authorization", "Bearer "+token), 2, "/a"},
		"custom header":                {custom, head("/", "x-token", token), 1, "/"},
		"custom header, disguised":     {custom, head("/", "X_Token", token), 1, "/"},
		"custom header, disguised, ba": {custom, head("/", "X_Token", "x"), 0, bad},
		"custom prefix":                {custom, head("/", "x-other", "Token "+token), 1, "/"},
		"custom parameter":             {custom, head("/?t=" + token), 1, "/"},
		"a cookie stays":               {custom, head("/", "cookie", "a=b; session="+token+"; c=d"), 1, "/ cookie=a=b; session=" + token + "; c=d"},
		"a cookie in quotes":           {custom, head("/", "cookie", `session="`+token+`"`), 1, `/ cookie=session="` + token + `"`},
		"a cookie of several":          {custom, head("/", "cookie", "a=b", "cookie", "session=x"), 0, bad},
		"default places do not count":  {custom, head("/", "authorization", "Bearer x"), 0, "/ authorization=Bearer x"},
		"forwarded":                    {forward, head("/?access_token="+token, "authorization", "Bearer "+token), 2, "/?access_token=" + token + " authorization=Bearer " + token},
	} {
		t.Run(name, func(t *testing.T) {
			p := tt.provider
			if p == nil {
				p = w.provider(w.a)
			}
			c := NewCheck(NewVerifier(), nil)
			for range 2 { // the second time, they are remembered
				h := &message.Head{}
				h.CopyFrom(tt.head)
				err := c.Request(store(t, p).Set(), h, now)
				got := show(h)
				if err != nil {
					got = why(err)
				}
				if got != tt.want || len(c.Claims()) != tt.claims {
					t.Errorf("%d claims, %s\nwant %s", len(c.Claims()), got, tt.want)
				}
			}
		})
	}
	if h := head("/", "authorization", "Bearer x"); NewCheck(NewVerifier(), nil).Request(NewStore().Set(), h, now) != nil {
		t.Error("a token is looked at without a policy")
	}
}

// TestSeveral: of several tokens each is accepted by its own issuer, or the request is
// refused. The claims that count are those of the first issuer by name.
func TestSeveral(t *testing.T) {
	w := newWorld(t)
	a, b := w.provider(w.a), w.provider(w.b)
	b.FromHeaders = []*authnpb.Header{{Name: "x-b"}}
	s := store(t, b, a)
	tokenA, tokenB, evil := w.a.Token(map[string]any{"sub": "a"}), w.b.Token(map[string]any{"sub": "b"}), w.evil.Token(nil)
	expired := w.b.Token(map[string]any{"exp": now.Add(-time.Hour).Unix()})
	for name, tt := range map[string]struct {
		head *message.Head
		want string // subjects, or the refusal
	}{
		"each at its place":           {head("/", "x-b", tokenB, "authorization", "Bearer "+tokenA), "a b"},
		"one":                         {head("/", "x-b", tokenB), "b"},
		"at the place of the other":   {head("/", "authorization", "Bearer "+tokenB), "INVALID_TOKEN Jwt issuer is not configured"},
		"one of nobody":               {head("/", "x-b", tokenB, "authorization", "Bearer "+evil), "INVALID_TOKEN Jwt issuer is not configured"},
		"the other expired":           {head("/", "x-b", expired, "authorization", "Bearer "+tokenA), "INVALID_TOKEN Jwt is expired"},
		"the other with a bad format": {head("/", "x-b", "x", "authorization", "Bearer "+tokenA), "INVALID_TOKEN Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
		"too many":                    {head("/?" + strings.TrimSuffix(strings.Repeat("access_token="+tokenA+"&", 9), "&")), "INVALID_TOKEN Too many Jwts"},
	} {
		c := NewCheck(NewVerifier(), nil)
		got := why(c.Request(s.Set(), tt.head, now))
		if got == "" {
			var subjects []string
			for _, claims := range c.Claims() {
				subjects = append(subjects, claims.Subject)
			}
			got = strings.Join(subjects, " ")
		} else if len(c.Claims()) > 0 {
			t.Errorf("%s: a request that is refused has claims", name)
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	// Two that read the same place: each issuer's own token is accepted.
	both := store(t, w.provider(w.a), w.provider(w.b))
	for _, token := range []string{tokenA, tokenB} {
		if err := NewCheck(NewVerifier(), nil).Request(both.Set(), head("/", "authorization", "Bearer "+token), now); err != nil {
			t.Error(why(err))
		}
	}
	wrong := w.b.Token(map[string]any{"nbf": now.Add(time.Hour).Unix()})
	if err := NewCheck(NewVerifier(), nil).Request(both.Set(), head("/", "authorization", "Bearer "+wrong), now); why(err) != "INVALID_TOKEN Jwt not yet valid" {
		t.Errorf("the refusal of the token's own issuer counts: %s", why(err))
	}
}

// TestOutputs: headers that tokens give come from nowhere else.
func TestOutputs(t *testing.T) {
	w := newWorld(t)
	p := w.provider(w.a)
	p.PayloadHeader = "X-Payload"
	p.ClaimHeaders = []*authnpb.ClaimHeader{{Header: "X-Sub", Claim: []string{"sub"}}, {Header: "x-deep", Claim: []string{"a", "b"}}, {Header: "x-list", Claim: []string{"l"}}}
	s := store(t, p)
	token := w.a.Token(map[string]any{"sub": "ann", "a": map[string]any{"b": 7}, "l": []string{"x"}})
	forged := []string{"x-sub", "root", "X-SUB", "root", "x_sub", "root", "X_Payload", "e30", "x-deep", "1", "x-list", "y", "other", "z"}
	for name, tt := range map[string]struct {
		head *message.Head
		want string
	}{
		"no token": {head("/", forged...), "/ other=z"},
		"a token":  {head("/", append(slices.Clone(forged), "authorization", "Bearer "+token)...), "/ other=z x-payload=" + strings.Split(token, ".")[1] + " x-sub=ann x-deep=7 x-list=WyJ4Il0="},
		"a claim that is missing": {head("/", append(slices.Clone(forged), "authorization", "Bearer "+w.a.Token(map[string]any{"sub": "ann"}))...),
			"/ other=z x-payload=" + strings.Split(w.a.Token(map[string]any{"sub": "ann"}), ".")[1] + " x-sub=ann"},
		"a preflight request": {func() *message.Head {
			h := head("/", "x-sub", "root", "origin", "https://x", "access-control-request-method", "PUT", "authorization", "Bearer x")
			h.Method = []byte("OPTIONS")
			return h
		}(), "/ origin=https://x access-control-request-method=PUT authorization=Bearer x"},
	} {
		c := NewCheck(NewVerifier(), nil)
		if err := c.Request(s.Set(), tt.head, now); err != nil || show(tt.head) != tt.want {
			t.Errorf("%s: %s %s\nwant %s", name, why(err), show(tt.head), tt.want)
		}
	}
	// A claim cannot write another header.
	evil := w.a.Token(map[string]any{"sub": "a\r\nx-admin: yes"})
	h := head("/", "authorization", "Bearer "+evil)
	if err := NewCheck(NewVerifier(), nil).Request(s.Set(), h, now); err != nil || strings.Contains(show(h), "admin") || strings.Contains(show(h), "x-sub") {
		t.Errorf("%s %q", why(err), show(h))
	}
	// A request that is refused has no token in its path: logs see it.
	h = head("/a?access_token=x.y.z&b")
	if err := NewCheck(NewVerifier(), nil).Request(s.Set(), h, now); err == nil || string(h.Path) != "/a?b" {
		t.Errorf("%s %s", why(err), h.Path)
	}
	// It has no forged headers either: routes see it.
	h = head("/", "authorization", "Bearer x", "x-sub", "root")
	if err := NewCheck(NewVerifier(), nil).Request(s.Set(), h, now); err == nil || strings.Contains(show(h), "root") {
		t.Errorf("%s %s", why(err), show(h))
	}
}

// TestForgedHeaders: whatever fields a request has, programs get headers of tokens from
// tokens alone.
func TestForgedHeaders(t *testing.T) {
	w := newWorld(t)
	p := w.provider(w.a)
	p.ClaimHeaders = []*authnpb.ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}
	set, token := store(t, p).Set(), w.a.Token(map[string]any{"sub": "ann"})
	rapid.Check(t, func(t *rapid.T) {
		h := head("/")
		names := rapid.SliceOf(rapid.SampledFrom([]string{"x-sub", "X-Sub", "x_sub", "X_SUB", "x-subs", "authorization", "y"})).Draw(t, "names")
		tokens := 0
		for _, n := range names {
			v := "forged"
			if n == "authorization" && tokens < maxTokens {
				v, tokens = "Bearer "+token, tokens+1
			}
			h.Add(message.NewKey(n), []byte(v))
		}
		if err := NewCheck(NewVerifier(), nil).Request(set, h, now); err != nil {
			t.Fatal(why(err))
		}
		got := 0
		for i := range h.Fields {
			if f := &h.Fields[i]; resembles(f.Name, "x-sub") {
				if got++; string(f.Value) != "ann" {
					t.Fatal(show(h))
				}
			}
		}
		if got != min(tokens, 1) {
			t.Fatalf("%d tokens, %s", tokens, show(h))
		}
	})
}

// TestServices: a policy is for its services, and one that cannot be read for everything.
func TestServices(t *testing.T) {
	w := newWorld(t)
	s := NewStore()
	pb := &authnpb.Authentication{Namespace: "ns", Name: "p", Services: []*authnpb.Service{{Namespace: "ns", Hostname: "web"}}, Providers: []*authnpb.Provider{w.provider(w.a)}}
	body, err := Encode(pb)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("gw/ns/p", body); err != nil {
		t.Fatal(err)
	}
	bad := func() *message.Head { return head("/", "authorization", "Bearer x") }
	verifier := NewVerifier()
	web, other := NewCheck(verifier, []Service{{"ns", "web"}}), NewCheck(verifier, []Service{{"ns", "other"}})
	expect := func(when string, c *Check, h *message.Head, want reason.Reason) {
		t.Helper()
		got := reason.OK
		if err := c.Request(s.Set(), h, now); err != nil {
			got = err.Reason
		}
		if got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	expect("the service", web, bad(), reason.InvalidToken)
	expect("another service", other, bad(), reason.OK)
	other.Services([]Service{{"ns", "other"}, {"ns", "web"}})
	expect("a pod of both", other, bad(), reason.InvalidToken)
	before := s.Set()
	if s.Set() != before {
		t.Error("a Set without a change is another")
	}
	if err := s.Put("gw/ns/p", []byte{0xff}); err == nil {
		t.Error("a message that is none is taken")
	}
	expect("unreadable, without a token", web, head("/"), reason.PolicyUnsupported)
	expect("unreadable, another service", NewCheck(verifier, nil), head("/"), reason.PolicyUnsupported)
	if sum := s.Summaries(); len(sum) != 1 || sum[0].Error == "" || sum[0].Policy != "ns/p" {
		t.Errorf("%+v", sum)
	}
	s.Remove("gw/ns/p")
	s.Remove("gw/ns/p")
	expect("removed", web, bad(), reason.OK)
}

// TestKeysStay: keys that were known stay when none come from the same place, and no
// others do.
func TestKeysStay(t *testing.T) {
	w := newWorld(t)
	s := NewStore()
	put := func(p *authnpb.Provider) {
		t.Helper()
		body, err := Encode(&authnpb.Authentication{Namespace: "ns", Name: "p", Everything: true, Providers: []*authnpb.Provider{p}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put("x", body); err != nil {
			t.Fatal(err)
		}
	}
	token := w.a.Token(nil)
	verifier := NewVerifier()
	got := func() string {
		return why(NewCheck(verifier, nil).Request(s.Set(), head("/", "authorization", "Bearer "+token), now))
	}
	none := &authnpb.Provider{Issuer: w.a.Name, Source: "https://keys"}
	put(none)
	const refused = "INVALID_TOKEN Jwks remote fetch is failed"
	if got() != refused {
		t.Errorf("without keys: %s", got())
	}
	with := proto.CloneOf(none)
	with.Jwks = jwttest.Set(w.a)
	put(with)
	if got() != "" {
		t.Errorf("with keys: %s", got())
	}
	put(none)
	if got() != "" {
		t.Errorf("the same place has none any more: %s", got())
	}
	rotated := proto.CloneOf(with)
	rotated.Jwks = jwttest.Set(w.b)
	put(rotated)
	if got() != "INVALID_TOKEN Jwt verification fails" {
		t.Errorf("with another key, of a token that is remembered: %s", got())
	}
	put(with)
	elsewhere := proto.CloneOf(none)
	elsewhere.Source = "https://others"
	put(elsewhere)
	if got() != refused {
		t.Errorf("another place has none: %s", got())
	}
}

// TestRemembered: a token that is remembered ends when it does, and is no other
// provider's.
func TestRemembered(t *testing.T) {
	w := newWorld(t)
	narrow := w.provider(w.a)
	narrow.Audiences = []string{"x"}
	wide, strict := store(t, w.provider(w.a)), store(t, narrow)
	token := w.a.Token(map[string]any{"exp": now.Add(time.Minute).Unix(), "aud": "y"})
	ask := func(c *Check, s *Store, at time.Time) string {
		return why(c.Request(s.Set(), head("/", "authorization", "Bearer "+token), at))
	}
	v := NewVerifier()
	c := NewCheck(v, nil)
	for _, tt := range []struct {
		s    *Store
		at   time.Time
		want string
	}{
		{wide, now, ""}, {wide, now.Add(2*time.Minute - time.Second), ""}, {wide, now.Add(2 * time.Minute), "INVALID_TOKEN Jwt is expired"},
		{strict, now, "TOKEN_AUDIENCE Audiences in Jwt are not allowed"}, {wide, now, ""},
	} {
		if got := ask(c, tt.s, tt.at); got != tt.want {
			t.Errorf("at %v: %q, want %q", tt.at.Sub(now), got, tt.want)
		}
	}
	if c.Request(NewStore().Set(), head("/"), now); v.cache.Size() != 0 {
		t.Errorf("%d bytes of providers that are gone", v.cache.Size())
	}
}

// TestMessages: what a gateway cannot execute is rejected, by its field.
func TestMessages(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		edit func(*authnpb.Authentication)
		want string
	}{
		"no name": {func(p *authnpb.Authentication) { p.Name = "" }, "name"},
		"nothing": {func(p *authnpb.Authentication) { p.Everything = false }, "services"},
		"both":    {func(p *authnpb.Authentication) { p.Services = []*authnpb.Service{{Namespace: "a", Hostname: "b"}} }, "services"},
		"a host in capitals": {func(p *authnpb.Authentication) {
			p.Everything, p.Services = false, []*authnpb.Service{{Namespace: "a", Hostname: "B"}}
		}, "services[0]"},
		"keys that are none":  {func(p *authnpb.Authentication) { p.Providers[0].Jwks = "{}" }, "providers[0].jwks"},
		"an empty audience":   {func(p *authnpb.Authentication) { p.Providers[0].Audiences = []string{""} }, "audiences"},
		"a name that is none": {func(p *authnpb.Authentication) { p.Providers[0].FromHeaders = []*authnpb.Header{{Name: "a b"}} }, "from_headers[0]"},
		"an empty parameter":  {func(p *authnpb.Authentication) { p.Providers[0].FromParams = []string{""} }, "from"},
		"the header Host":     {func(p *authnpb.Authentication) { p.Providers[0].PayloadHeader = "Host" }, "payload_header"},
		"Transfer-Encoding": {func(p *authnpb.Authentication) {
			p.Providers[0].ClaimHeaders = []*authnpb.ClaimHeader{{Header: "transfer-encoding", Claim: []string{"a"}}}
		}, "claim_headers[0]"},
		"in disguise": {func(p *authnpb.Authentication) { p.Providers[0].PayloadHeader = "content_length" }, "payload_header"},
		"a claim without a name": {func(p *authnpb.Authentication) {
			p.Providers[0].ClaimHeaders = []*authnpb.ClaimHeader{{Header: "x", Claim: []string{"a", ""}}}
		}, "claim_headers[0].claim"},
		"a skew of a day":        {func(p *authnpb.Authentication) { p.Providers[0].ClockSkewSeconds = 86400 }, "clock_skew"},
		"a field of a later day": {func(p *authnpb.Authentication) { p.Providers[0].ProtoReflect().SetUnknown([]byte{0xf8, 0x01, 1}) }, "field"},
	} {
		p := &authnpb.Authentication{Namespace: "ns", Name: "p", Everything: true, Providers: []*authnpb.Provider{w.provider(w.a)}}
		tt.edit(p)
		if _, err := Encode(p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// steady is a policy that does everything, and requests.
func steady(t testing.TB) (*Set, map[string]*message.Head) {
	w := newWorld(t)
	p := w.provider(w.a)
	p.PayloadHeader, p.Audiences = "x-payload", []string{"me"}
	p.ClaimHeaders = []*authnpb.ClaimHeader{{Header: "x-sub", Claim: []string{"sub"}}}
	token := w.a.Token(map[string]any{"sub": "ann", "aud": "me", "exp": now.Add(time.Hour).Unix(), "pad": strings.Repeat("x", 600)})
	return store(t, p, w.provider(w.b)).Set(), map[string]*message.Head{
		"a header":    head("/a", "x-sub", "forged", "accept", "*/*", "authorization", "Bearer "+token),
		"a parameter": head("/a?b=1&access_token=" + token),
		"no token":    head("/a?b=1", "accept", "*/*"),
	}
}

func BenchmarkRemembered(b *testing.B) {
	set, heads := steady(b)
	c, h := NewCheck(NewVerifier(), nil), &message.Head{}
	b.ReportAllocs()
	for b.Loop() {
		h.CopyFrom(heads["a header"])
		if err := c.Request(set, h, now); err != nil {
			b.Fatal(why(err))
		}
	}
}

func BenchmarkForged(b *testing.B) {
	w := newWorld(b)
	set, c, h := store(b, w.provider(w.a)).Set(), NewCheck(NewVerifier(), nil), &message.Head{}
	forged := jwttest.New(b, w.a.Name, "k", jose.EdDSA).Token(nil)
	for b.Loop() {
		h.CopyFrom(head("/", "authorization", "Bearer "+forged))
		if c.Request(set, h, now) == nil {
			b.Fatal("accepted")
		}
	}
}

// FuzzRequest: no request makes the check panic, or gives claims without a signature.
func FuzzRequest(f *testing.F) {
	w := newWorld(f)
	p := w.provider(w.a)
	p.FromHeaders, p.FromParams, p.FromCookies = []*authnpb.Header{{Name: "authorization", Prefix: "Bearer "}}, []string{"access_token"}, []string{"c"}
	set, token := store(f, p).Set(), w.a.Token(map[string]any{"sub": "ann"})
	f.Add("/a?access_token="+token+"&b", "Bearer "+token, "c="+token)
	f.Add("/?%61ccess_token=%", "bearer", ";;c=;=c")
	f.Fuzz(func(t *testing.T, path, authorization, cookie string) {
		h := head(path, "authorization", authorization, "cookie", cookie)
		c := NewCheck(NewVerifier(), nil)
		if err := c.Request(set, h, now); err != nil {
			return
		}
		for _, claims := range c.Claims() {
			if claims.Subject != "ann" {
				t.Fatal(claims)
			}
		}
	})
}
