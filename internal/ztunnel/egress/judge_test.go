package egress

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds/localxdstest"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

// hello returns the first bytes of a TLS client.
func hello(t testing.TB, sni string) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer func() { _ = a.Close() }()
	go func() {
		_ = tls.Client(b, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake() //nolint:gosec // only its first bytes
	}()
	buf := make([]byte, 16<<10)
	_ = a.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// judged is a gate with one policy for a pod.
func judged(t testing.TB, p *egress.Policy) (*Gate, *Pod, *workload.Workload, *workload.Snapshot) {
	s := localxdstest.Snapshot(t, mesh)
	traits := *s.WorkloadByUID("c//Pod/shop/client").Traits
	traits.Outbound, traits.Egress = egress.AllowAny, []string{p.Key()}
	w := *s.WorkloadByUID("c//Pod/shop/client")
	w.Traits = &traits
	g := &Gate{Log: slog.New(slog.DiscardHandler), Policies: NewPolicies(slog.New(slog.DiscardHandler)), Exempt: Servers("192.0.2.99:15012")}
	body, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	g.Policies.Apply(xds.Delta{Updated: []xds.Resource{{Name: "nodes/" + p.Key(), Body: body}}})
	return g, &Pod{}, &w, s
}

func attempt(s *workload.Snapshot, w *workload.Workload, to string) *Attempt {
	dst := netip.MustParseAddrPort(to)
	r, err := route.Outbound(route.Out{Snapshot: s, Source: w, Src: netip.MustParseAddrPort("10.0.0.1:9"), Dst: dst, Rand: func(uint64) uint64 { return 0 }})
	if err != nil {
		panic(err)
	}
	return &Attempt{
		Conn: Conn{Snapshot: s, Source: w, Src: netip.MustParseAddrPort("10.0.0.1:9"), Dst: dst}, Route: &r,
		Open: &conns.Conn{}, Local: func() (*workload.Snapshot, *workload.Workload) { return s, w },
	}
}

// TestOutside: what stays in the mesh is not asked about; all else is, by where it really goes.
func TestOutside(t *testing.T) {
	g, p, w, s := judged(t, &egress.Policy{Namespace: "shop", Name: "none"})
	for to, want := range map[string]string{
		"10.96.0.1:80": "", "127.0.0.1:9": "", "192.0.2.99:15012": "", "10.0.0.2:1234": "", "10.3.0.1:22": "",
		"192.0.2.77:443": "192.0.2.77:443", "10.1.0.1:10250": "10.1.0.1:10250", "192.0.2.1:22": "192.0.2.1:22", "10.3.0.2:22": "10.3.0.2:22",
		"240.240.0.1:443": "192.0.2.1:8443", "240.240.0.3:443": "240.240.0.3:443", "198.51.100.9:443": "198.51.100.9:443",
		"[::ffff:192.0.2.77]:443": "192.0.2.77:443", "192.0.2.99:15014": "192.0.2.99:15014",
	} {
		if to == "10.96.0.1:80" {
			continue // has no endpoint in this mesh
		}
		a := attempt(s, w, to)
		a.Exempt = g.Exempt
		c, outside := a.Outside()
		got := ""
		if outside {
			got = netip.AddrPortFrom(c.Addr, c.Port).String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
		if hold, err := g.Judge(p, attempt(s, w, to)); (err != nil) != outside || hold != nil || err != nil && err.Reason != reason.EgressDenied {
			t.Errorf("%s is judged %v", to, err)
		}
	}
}

// TestJudge: a host needs a look-up, and the first bytes; the decision is counted and recorded.
func TestJudge(t *testing.T) {
	g, p, w, s := judged(t, &egress.Policy{Namespace: "shop", Name: "a", To: []egress.Entry{{Hosts: []string{"a.test"}}, {CIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/24")}}}})
	if hold, err := g.Judge(p, attempt(s, w, "198.18.0.1:80")); err != nil || hold != nil {
		t.Errorf("a range: %v, %v", hold, err)
	}
	if _, err := g.Judge(p, attempt(s, w, "192.0.2.77:443")); err == nil || !strings.Contains(err.Error(), "capture of look-ups") {
		t.Errorf("without look-ups: %v", err)
	}
	p.Answers.Add("a.test", egress.Origin{}, netip.MustParseAddr("192.0.2.77"), time.Minute, time.Now())
	p.Answers.Add("evil.test", egress.Origin{}, netip.MustParseAddr("192.0.2.77"), time.Minute, time.Now())
	good, evil, none := hello(t, "a.test"), hello(t, "evil.test"), hello(t, "")
	for _, tt := range []struct {
		name  string
		first []byte
		end   bool
		want  relay.Verdict
	}{
		{"the host", good, false, relay.Pass}, {"another host", evil, false, relay.Refuse}, {"no name", none, false, relay.Refuse},
		{"a part", good[:len(good)-1], false, relay.Wait}, {"a byte", good[:1], false, relay.Wait}, {"another host, a part", evil[:50], false, relay.Wait},
		{"plain", []byte("GET / HTTP/1.1\r\n"), false, relay.Pass}, {"nothing", nil, true, relay.Pass}, {"broken", []byte{22, 3, 1, 0, 0}, false, relay.Refuse},
	} {
		a := attempt(s, w, "192.0.2.77:443")
		hold, err := g.Judge(p, a)
		if err != nil || hold == nil {
			t.Fatalf("%v, %v", hold, err)
		}
		v, why := hold.Decide(tt.first, tt.end)
		if v != tt.want || (why != nil) != (v == relay.Refuse) {
			t.Errorf("%s: %v, %v", tt.name, v, why)
		}
		p.Ended(a.Open)
	}
	hold, _ := g.Judge(p, attempt(s, w, "192.0.2.77:443"))
	if v, why := hold.Late(); v != relay.Refuse || why.Reason != reason.EgressDenied {
		t.Errorf("a ClientHello that stops: %v, %v", v, why)
	}
	// The policy goes while the connection waits for its first bytes.
	hold, _ = g.Judge(p, attempt(s, w, "192.0.2.77:443"))
	g.Policies.Apply(xds.Delta{Removed: []string{"nodes/shop/a"}})
	g.Policies.Prune(func(string) bool { return false })
	if v, why := hold.Decide(good, false); v != relay.Refuse || why.Reason != reason.PolicyUnavailable {
		t.Errorf("without the policy: %v, %v", v, why)
	}
	calls, _ := p.Record.Calls()
	sum := uint64(0)
	for _, c := range calls {
		sum += c.Count
	}
	state := g.State(p, w)
	if sum != state.PolicyAllowed+state.PolicyRefused || state.PolicyAllowed != 4 || state.PolicyRefused != 5 {
		t.Errorf("%d calls recorded, %d allowed, %d refused: %+v", sum, state.PolicyAllowed, state.PolicyRefused, calls)
	}
}

// TestRecordIsBounded: what has no row is counted.
func TestRecordIsBounded(t *testing.T) {
	var r Record
	for i := range maxRows + 10 {
		for range 2 {
			r.add(row{port: uint16(i + 1), decision: decidedAllowed}) //nolint:gosec // small
		}
	}
	if calls, others := r.Calls(); len(calls) != maxRows || others != 20 {
		t.Errorf("%d rows, %d others", len(calls), others)
	}
}

// BenchmarkJudge: a pod without policies pays nothing.
func BenchmarkJudge(b *testing.B) {
	s := localxdstest.Snapshot(b, mesh)
	traits := *s.WorkloadByUID("c//Pod/shop/client").Traits
	traits.Outbound = egress.AllowAny
	w := *s.WorkloadByUID("c//Pod/shop/client")
	w.Traits = &traits
	g := Gate{Log: slog.New(slog.DiscardHandler), Policies: NewPolicies(slog.New(slog.DiscardHandler))}
	var pod Pod
	a := attempt(s, &w, "192.0.2.77:443")
	b.ReportAllocs()
	for b.Loop() {
		if hold, err := g.Judge(&pod, a); err != nil || hold != nil {
			b.Fatal(err)
		}
	}
}
