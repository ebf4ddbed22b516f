package dns

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"
)

// pack writes a question.
func pack(t testing.TB, name string, kind uint16, edit ...func(*miekg.Msg)) []byte {
	t.Helper()
	m := new(miekg.Msg).SetQuestion(miekg.Fqdn(name), kind)
	for _, f := range edit {
		f(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}

// unpack reads an answer.
func unpack(t testing.TB, b []byte) *miekg.Msg {
	t.Helper()
	m := &miekg.Msg{}
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m
}

// records are those of an answer as text, in an order of their own.
func records(m *miekg.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *miekg.A:
			all = append(all, rr.A.String())
		case *miekg.AAAA:
			all = append(all, rr.AAAA.String())
		case *miekg.CNAME:
			all = append(all, "->"+strings.TrimSuffix(rr.Target, "."))
		default:
			all = append(all, rr.String())
		}
	}
	slices.Sort(all)
	return all
}

func TestResolve(t *testing.T) {
	s := world(t)
	bank := client
	bank.Namespace = "bank"
	four := client
	four.IPv6 = false
	none := []string{}
	for _, test := range []struct {
		name   string
		kind   uint16
		client Client
		want   []string // nil: forwarded
	}{
		{"web.shop.svc.cluster.local", TypeA, client, []string{"10.96.0.1"}},
		{"web.shop.svc.cluster.local", TypeAAAA, client, []string{"fd00:96::1"}},
		{"WEB.Shop.svc.cluster.LOCAL", TypeA, client, []string{"10.96.0.1"}},
		{"web", TypeA, client, []string{"10.96.0.1"}},
		{"web", TypeA, bank, []string{"10.96.0.4"}},
		{"web.bank", TypeA, client, []string{"10.96.0.4"}},
		{"web.bank.svc", TypeA, client, []string{"10.96.0.4"}},
		{"web.bank.svc.cluster", TypeA, client, nil},
		// The other family of a name that exists.
		{"db", TypeAAAA, client, none},
		{"six", TypeA, client, none},
		{"six", TypeAAAA, client, []string{"fd00:96::3"}},
		{"six", TypeAAAA, four, none},
		// What only name servers know.
		{"db.shop.svc.cluster.local", TypeSRV, client, nil},
		{"_http._tcp.db.shop.svc.cluster.local", TypeSRV, client, nil},
		{"www.example.com", TypeA, client, nil},
		{"nothing.shop.svc.cluster.local", TypeA, client, nil},
		{"10-0-0-1.shop.pod.cluster.local", TypeA, client, nil},
		{"svc.cluster.local", TypeA, client, nil},
		{"cluster.local", TypeA, client, nil},
		{"*.wide.example", TypeA, client, nil},
		// Headless services: endpoints that are ready, in the client's network.
		{"peers.shop.svc.cluster.local", TypeA, client, []string{"10.0.0.1", "10.0.0.2"}},
		{"peers.shop.svc.cluster.local", TypeAAAA, client, []string{"fd00::1"}},
		{"starting.shop.svc.cluster.local", TypeA, client, []string{"10.0.0.3"}},
		{"empty.shop.svc.cluster.local", TypeA, client, none},
		{"web-0.peers.shop.svc.cluster.local", TypeA, client, []string{"10.0.0.1"}},
		{"web-0.peers.shop.svc.cluster.local", TypeAAAA, client, []string{"fd00::1"}},
		{"web-1.peers.shop.svc.cluster.local", TypeAAAA, client, none},
		{"web-2.peers.shop.svc.cluster.local", TypeA, client, none},
		{"10-0-0-2.peers.shop.svc.cluster.local", TypeA, client, []string{"10.0.0.2"}},
		{"fd00--1.peers.shop.svc.cluster.local", TypeAAAA, client, []string{"fd00::1"}},
		{"10-0-0-9.peers.shop.svc.cluster.local", TypeA, client, nil},
		{"many-1.peers.shop.svc.cluster.local", TypeA, client, nil},
		{"web-0.web.shop.svc.cluster.local", TypeA, client, nil},
		// Hosts of ServiceEntries.
		{"api.example.com", TypeA, client, []string{"240.240.0.1"}},
		{"api.example.com", TypeA, bank, []string{"240.240.0.1"}},
		{"named.example.com", TypeA, client, nil},
		{"far.example", TypeA, client, nil},
		{"secret.example.com", TypeA, client, nil},
		{"secret.example.com", TypeA, bank, []string{"240.240.0.3"}},
		{"twice.example.com", TypeA, client, []string{"240.240.0.5"}},
		{"twice.example.com", TypeA, bank, []string{"240.240.0.4"}},
		{"a.wide.example", TypeA, client, []string{"240.240.0.6"}},
		{"a.b.wide.example", TypeA, client, []string{"240.240.0.6"}},
		{"a.narrow.wide.example", TypeA, client, []string{"240.240.0.7"}},
		{"narrow.wide.example", TypeA, client, []string{"240.240.0.6"}},
		{"wide.example", TypeA, client, nil},
		{strings.Repeat("a.", 30) + "wide.example", TypeA, client, nil},
		// What another namespace claims.
		{"web.shop", TypeA, client, []string{"10.96.0.1"}},
		{"web.shop", TypeA, bank, []string{"6.6.6.1"}}, // for its own clients
		{"web.shop.shop.svc.cluster.local", TypeA, client, nil},
		{"web.shop.svc.cluster.local", TypeA, client, []string{"10.96.0.1"}},
		{"lost.shop.svc.cluster.local", TypeA, client, nil},
		{"lost.shop.svc.cluster.local", TypeA, bank, []string{"->lost.shop", "6.6.6.6"}},
		{"lost", TypeA, client, nil},
		{"lonely", TypeA, client, []string{"6.6.6.3"}}, // Kubernetes has no names without a dot
		{"lonely.shop.svc.cluster.local", TypeA, client, nil},
		{"x.peers.shop.svc.cluster.local", TypeA, client, nil},
		{"y.shop.svc.cluster.local", TypeA, client, nil},
		// With a search domain that the program has appended.
		{"api.example.com.shop.svc.cluster.local", TypeA, client, []string{"->api.example.com", "240.240.0.1"}},
		{"api.example.com.svc.cluster.local", TypeAAAA, client, []string{"->api.example.com", "2001:2::1"}},
		{"api.example.com.cluster.local", TypeA, client, []string{"->api.example.com", "240.240.0.1"}},
		{"x.wide.example.shop.svc.cluster.local", TypeA, client, []string{"->x.wide.example", "240.240.0.6"}},
		{"short.shop.svc.cluster.local", TypeA, client, []string{"->short", "240.240.0.8"}},
		{"secret.example.com.shop.svc.cluster.local", TypeA, client, nil},
		{"api.example.com.bank.svc.cluster.local", TypeA, client, nil},
		{"api.example.com.corp.test", TypeA, client, nil},
		{"web.svc.cluster.local", TypeA, client, nil},
	} {
		r := Resolver{Domain: domain}
		var q Question
		b := pack(t, test.name, test.kind)
		q.Parse(b)
		a, _, d := r.Resolve(s, &test.client, &q, 1)
		if d != Answered {
			if test.want != nil {
				t.Errorf("%s %d is forwarded, want %v", test.name, test.kind, test.want)
			}
			continue
		}
		m := unpack(t, q.Append(nil, b, a, true))
		got := records(m)
		if test.want == nil || !slices.Equal(got, test.want) && len(got)+len(test.want) > 0 {
			t.Errorf("%s %d from %s: %v, want %v", test.name, test.kind, test.client.Namespace, got, test.want)
		}
		if m.Rcode != miekg.RcodeSuccess || !m.Authoritative || !m.Response || !m.RecursionAvailable || !m.RecursionDesired {
			t.Errorf("%s: %v", test.name, m)
		}
		if m.Question[0].Name != test.name+"." {
			t.Errorf("the question came back as %s", m.Question[0].Name)
		}
	}
}

// TestOwned: other questions for names of the mesh are forwarded, and the name exists.
func TestOwned(t *testing.T) {
	s := world(t)
	r := Resolver{Domain: domain}
	for name, want := range map[string]Decision{"api.example.com": ForwardOwned, "www.example.com": Forward} {
		for _, kind := range []uint16{TypeTXT, TypeSRV, 65, 255} {
			var q Question
			q.Parse(pack(t, name, kind))
			if _, _, d := r.Resolve(s, &client, &q, 0); d != want {
				t.Errorf("%s %d: decision %d", name, kind, d)
			}
		}
		var q Question
		q.Parse(pack(t, name, TypeA, func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }))
		if _, _, d := r.Resolve(s, &client, &q, 0); d != Forward {
			t.Errorf("%s of class CHAOS: decision %d", name, d)
		}
	}
	no := unpack(t, pack(t, "api.example.com", TypeTXT))
	no.Response, no.Rcode = true, miekg.RcodeNameError
	b, err := no.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if !Exists(b) || unpack(t, b).Rcode != miekg.RcodeSuccess || Exists(b) {
		t.Error("the name does not exist")
	}
}

// TestTruncated: over UDP a client gets what it takes, with the bit that sends it to TCP;
// over TCP it gets everything.
func TestTruncated(t *testing.T) {
	s := world(t)
	r := Resolver{Domain: domain}
	for _, test := range []struct {
		size uint16 // 0: no EDNS
		udp  bool
		cut  bool
		most int
	}{
		{0, true, true, 512}, {100, true, true, 512}, {1232, true, true, 1232}, {4096, true, false, 4096}, {65535, true, false, 4096}, {0, false, false, MaxMessage},
	} {
		b := pack(t, "many.shop.svc.cluster.local", TypeA, func(m *miekg.Msg) {
			if test.size > 0 {
				m.SetEdns0(test.size, true)
			}
		})
		var q Question
		q.Parse(b)
		a, _, d := r.Resolve(s, &client, &q, 7)
		out := q.Append(nil, b, a, test.udp)
		m := unpack(t, out)
		if d != Answered || len(out) > test.most || m.Truncated != test.cut || !test.cut && len(m.Answer) != manyPods || test.cut && len(m.Answer) < 20 {
			t.Errorf("size %d: %d bytes, %d records, cut=%v", test.size, len(out), len(m.Answer), m.Truncated)
		}
		if opt := m.IsEdns0(); (opt != nil) != (test.size > 0) || opt != nil && opt.UDPSize() != ednsSize {
			t.Errorf("size %d: EDNS %v", test.size, opt)
		}
	}
}

// TestSpread: clients that take the first address do not all take the same.
func TestSpread(t *testing.T) {
	s := world(t)
	r := Resolver{Domain: domain}
	firsts := map[string]bool{}
	b := pack(t, "peers.shop.svc.cluster.local", TypeA)
	for turn := range uint64(2) {
		var q Question
		q.Parse(b)
		a, _, _ := r.Resolve(s, &client, &q, turn)
		firsts[unpack(t, q.Append(nil, b, a, true)).Answer[0].String()] = true
	}
	if len(firsts) != 2 {
		t.Errorf("%v", firsts)
	}
}

func TestWanted(t *testing.T) {
	r := Resolver{Domain: domain}
	for name, want := range map[string][]string{
		"web":                                    {"shop/web", "shop/web.shop.svc.cluster.local"},
		"web.bank.svc.cluster.local":             {"bank/web.bank.svc.cluster.local", "shop/web.bank", "shop/web.bank.svc"},
		"web-0.peers.bank.svc.cluster.local":     {"bank/peers.bank.svc.cluster.local", "shop/web-0.peers.bank", "shop/web-0.peers.bank.svc"},
		"api.example.com":                        {"shop/api.example.com"},
		"api.example.com.shop.svc.cluster.local": {"shop/api.example.com", "shop/api.example.com.shop", "shop/api.example.com.shop.svc"},
	} {
		if got := r.Wanted(&client, []byte(name)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func BenchmarkResolve(b *testing.B) {
	s := world(b)
	for _, name := range []string{"web.shop.svc.cluster.local", "api.example.com.shop.svc.cluster.local", "peers.shop.svc.cluster.local", "www.example.com"} {
		b.Run(name, func(b *testing.B) {
			m := pack(b, name, TypeA)
			r := Resolver{Domain: domain}
			var q Question
			out := make([]byte, 0, maxUDP)
			b.ReportAllocs()
			for b.Loop() {
				q.Parse(m)
				a, _, d := r.Resolve(s, &client, &q, 1)
				if d == Answered {
					out = q.Append(out[:0], m, a, true)
				}
			}
		})
	}
}

// TestComplete: an alias of a name server that leads to a name of the mesh and no further
// gets the addresses of that name; everything else stays what it is.
func TestComplete(t *testing.T) {
	s := world(t)
	respond := func(code int, records ...string) func(*miekg.Msg) {
		return func(m *miekg.Msg) {
			m.Response, m.Rcode, m.Compress = true, code, true
			for _, text := range records {
				rr, err := miekg.NewRR(text)
				if err != nil {
					t.Fatal(err)
				}
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	const from = "old.shop.svc.cluster.local."
	loop := []string{from + " CNAME a.test.", "a.test. CNAME " + from}
	var long []string
	for i := range 2 * maxChain {
		long = append(long, fmt.Sprintf("n%d.test. CNAME n%d.test.", i, i+1))
	}
	for name, test := range map[string]struct {
		kind uint16
		edit func(*miekg.Msg)
		want []string // nil: left alone
	}{
		"an alias":          {TypeA, respond(miekg.RcodeNameError, from+" CNAME API.example.com."), []string{"->api.example.com", "240.240.0.1"}},
		"of the other kind": {TypeAAAA, respond(miekg.RcodeSuccess, from+" CNAME api.example.com."), []string{"->api.example.com", "2001:2::1"}},
		"two":               {TypeA, respond(miekg.RcodeSuccess, from+" CNAME x.test.", "x.test. CNAME api.example.com."), []string{"->api.example.com", "240.240.0.1"}},
		"of a wildcard":     {TypeA, respond(miekg.RcodeNameError, from+" CNAME x.wide.example."), []string{"->x.wide.example", "240.240.0.6"}},
		"of a service":      {TypeA, respond(miekg.RcodeNameError, from+" CNAME web.bank.svc.cluster.local."), []string{"->web.bank.svc.cluster.local", "10.96.0.4"}},
		"with an address":   {TypeA, respond(miekg.RcodeSuccess, from+" CNAME api.example.com.", "api.example.com. A 192.0.2.1"), nil},
		"of outside":        {TypeA, respond(miekg.RcodeNameError, from+" CNAME www.example.com."), nil},
		"of another's":      {TypeA, respond(miekg.RcodeNameError, from+" CNAME secret.example.com."), nil},
		"of another name":   {TypeA, respond(miekg.RcodeNameError, "other.test. CNAME api.example.com."), nil},
		"a failure":         {TypeA, respond(miekg.RcodeServerFailure, from+" CNAME api.example.com."), nil},
		"no answer":         {TypeA, respond(miekg.RcodeNameError), nil},
		"a loop":            {TypeA, respond(miekg.RcodeSuccess, loop...), nil},
		"a long chain":      {TypeA, respond(miekg.RcodeSuccess, long...), nil},
		"another question":  {TypeTXT, respond(miekg.RcodeNameError, from+" CNAME api.example.com."), nil},
		"cut":               {TypeA, func(m *miekg.Msg) { respond(0, from+" CNAME api.example.com.")(m); m.Truncated = true }, nil},
	} {
		r := Resolver{Domain: domain}
		var q Question
		question := pack(t, from, test.kind)
		q.Parse(question)
		a, _, ok := r.Complete(s, &client, &q, pack(t, from, test.kind, test.edit), 0)
		if ok != (test.want != nil) {
			t.Errorf("%s: completed is %v", name, ok)
		}
		if ok {
			if got := records(unpack(t, q.Append(nil, question, a, true))); !slices.Equal(got, test.want) {
				t.Errorf("%s: %v, want %v", name, got, test.want)
			}
		}
	}
}
