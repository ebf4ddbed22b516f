package scenario

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// Hosts outside of the mesh: the partner's, and an attacker's, who has one address of his own
// and shares the partner's, as at a content network.
var (
	partner  = map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.10"), true: netip.MustParseAddr("2001:db8::10")}
	attacker = map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.66"), true: netip.MustParseAddr("2001:db8::66")}
)

// egressPolicy returns an EgressPolicy with the inside of a spec.
func egressPolicy(namespace, name, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: ambit.mesh/v1alpha1\nkind: EgressPolicy\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", name, namespace, spec)
}

// internet has the hosts outside serve: TLS at 443 and 8443, a server that speaks first at 25,
// an echo at 80; and name servers at the machine of ambitd, which is trusted, and at the
// attacker's address.
func internet(w *rig.World) {
	w.T().Helper()
	addresses(w.T().(*testing.T), w, lab.LAN, partner[false].String(), partner[true].String(), attacker[false].String(), attacker[true].String())
	certificate := selfSigned(w.T())
	for _, port := range []string{":443", ":8443"} {
		l := tls.NewListener(w.Listen(lab.LAN, port), &tls.Config{Certificates: []tls.Certificate{certificate}}) //nolint:gosec // a test's
		go echoAll(l)
	}
	go echoAll(w.Listen(lab.LAN, ":80"))
	first := w.Listen(lab.LAN, ":25")
	go func() {
		for {
			c, err := first.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.WriteString(c, "hello\n")
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	honest := func(name string, v6 bool) (netip.Addr, bool) {
		switch name {
		case "api.partner.test.", "cdn.partner.test.", "evil.test.":
			return partner[v6], true
		case "own.evil.test.", "doh.test.":
			return attacker[v6], true
		}
		return netip.Addr{}, false
	}
	lies := func(_ string, v6 bool) (netip.Addr, bool) { return attacker[v6], true }
	for _, v6 := range []bool{false, true} {
		resolverAt(w, netip.AddrPortFrom(lanAddr(v6), 53), honest)
		resolverAt(w, netip.AddrPortFrom(attacker[v6], 53), lies)
	}
}

// resolverAt serves names at an address of the machine of ambitd.
func resolverAt(w *rig.World, at netip.AddrPort, find func(name string, v6 bool) (netip.Addr, bool)) {
	w.T().Helper()
	h := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name, v6 := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype == dns.TypeAAAA
		a, ok := find(name, v6)
		switch {
		case !ok:
			m.Rcode = dns.RcodeNameError
		case v6:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: 5}, AAAA: a.AsSlice()})
		case q.Question[0].Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: a.AsSlice()})
		}
		_ = rw.WriteMsg(m)
	})
	var pc net.PacketConn
	var ln net.Listener
	w.Eventually("the address can be used", func() error {
		return w.Netns(lab.LAN).Do(func() (err error) {
			if pc, err = net.ListenPacket("udp", at.String()); err != nil {
				return err
			}
			if ln, err = net.Listen("tcp", at.String()); err != nil {
				_ = pc.Close()
			}
			return err
		})
	})
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		go func() { _ = srv.ActivateAndServe() }()
		w.T().Cleanup(func() { _ = srv.Shutdown() })
	}
}

var selfSigned = func() func(t testing.TB) tls.Certificate {
	var once sync.Once
	var out tls.Certificate
	return func(t testing.TB) tls.Certificate {
		once.Do(func() {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"partner.test"}, NotAfter: time.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			out = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		})
		return out
	}
}()

// finds has a pod look a name up at a name server.
func finds(w *rig.World, from lab.Where, at netip.Addr, network, name string, v6 bool, want netip.Addr) {
	w.T().Helper()
	kind := dns.TypeA
	if v6 {
		kind = dns.TypeAAAA
	}
	m, err := look(w, from, at, network, ask(name, kind))
	if err != nil || strings.Join(found(m), " ") != want.String() {
		w.T().Fatalf("%s looks %s up at %s: %v, %v; want %s", from, name, at, m, err, want)
	}
}

// tlsTo makes a TLS connection that names a server, and has bytes go both ways.
func tlsTo(w *rig.World, from lab.Where, to netip.AddrPort, sni string) error {
	for {
		began := time.Now()
		c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
		if err != nil {
			return err
		}
		p := &prompt{Conn: c}
		err = handshake(p, sni)
		_ = c.Close()
		// A client that is silent for so long counts as one without TLS: this one was meant not to be.
		if p.began.Sub(began) < opening.Silence {
			return err
		}
	}
}

// prompt notes when its first bytes have been sent.
type prompt struct {
	net.Conn
	began time.Time
}

func (p *prompt) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	if p.began.IsZero() {
		p.began = time.Now()
	}
	return n, err
}

func handshake(c net.Conn, sni string) error {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true}) //nolint:gosec // who answers is not the question
	if _, err := t.Write([]byte("ping\n")); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(t, b); err != nil || string(b) != "ping\n" {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}

// plainTo makes a connection without TLS, and has bytes go both ways.
func plainTo(w *rig.World, from lab.Where, to netip.AddrPort) error {
	c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

// serveOutside has addresses of the machine of ambitd echo, plain or in TLS.
func serveOutside(w *rig.World, plain map[string]bool) {
	w.T().Helper()
	certificate := selfSigned(w.T())
	for at, isPlain := range plain {
		l := w.Listen(lab.LAN, at)
		if !isPlain {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}}) //nolint:gosec // a test's
		}
		go echoAll(l)
	}
}

func isReset(err error) bool {
	return err != nil && strings.Contains(err.Error(), syscall.ECONNRESET.Error())
}

// chopped sends each write in pieces of a few bytes, each of which is a segment.
type chopped struct {
	net.Conn
	size int
}

func (c chopped) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(c.size, len(p))
		m, err := c.Conn.Write(p[:k])
		if n += m; err != nil {
			return n, err
		}
		p = p[k:]
		time.Sleep(time.Millisecond) // the segment leaves alone
	}
	return n, nil
}

// TestEgressHosts: a pod whose policy allows a host reaches it once it has looked it up, by TLS
// that names it, and by what is no TLS. Nothing else passes: each attack is refused, at once.
func TestEgressHosts(t *testing.T) {
	world := policied(t)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		resolver := lanAddr(v6)
		api, own := netip.AddrPortFrom(partner[v6], 443), netip.AddrPortFrom(attacker[v6], 443)
		w.Eventually("no policy is enforced", func() error { return tlsTo(w, looker, api, "api.partner.test") })
		w.MustApply(egressPolicy("shop", "partner", "to: [{hosts: [api.partner.test], ports: [443, 25, 80]}]"))
		t.Cleanup(func() { world.MustDelete("EgressPolicy", "shop", "partner") })
		refused := func(what string, to netip.AddrPort, sni string, parts ...string) {
			t.Helper()
			if err := tlsTo(w, looker, to, sni); !isReset(err) {
				t.Errorf("%s: %v, want a reset", what, err)
			}
			if len(parts) > 0 {
				w.Logs("node2", append([]string{`src.workload="looker"`, "dst.addr=" + to.String(), `reason="EGRESS_DENIED"`}, parts...)...)
			}
		}
		w.Eventually("the policy is enforced", func() error {
			if err := tlsTo(w, looker, api, "api.partner.test"); !isReset(err) {
				return fmt.Errorf("a hard-coded address: %w", errors.Join(err, errors.New("not refused")))
			}
			return nil
		})
		refused("a hard-coded address", api, "api.partner.test", "shop/partner", "look-up")

		finds(w, looker, resolver, "udp", "api.partner.test", v6, partner[v6])
		if err := tlsTo(w, looker, api, "api.partner.test"); err != nil {
			t.Fatalf("the host that is allowed: %v", err)
		}
		if err := tlsTo(w, looker, api, "API.Partner.TEST"); err != nil {
			t.Errorf("in other letters: %v", err)
		}
		refused("a name that was not looked up", api, "evil.test", "evil.test")
		finds(w, looker, resolver, "tcp", "evil.test", v6, partner[v6])
		refused("a name of the same address that is not allowed", api, "evil.test", "evil.test")
		refused("no name", api, "", "names no server")
		finds(w, looker, resolver, "udp", "own.evil.test", v6, attacker[v6])
		refused("another address, with the name that is allowed", own, "api.partner.test")
		refused("another address, with its own name", own, "own.evil.test")
		refused("another port", netip.AddrPortFrom(partner[v6], 8443), "api.partner.test")

		// Look-ups by HTTPS, at a server that is not listed.
		finds(w, looker, resolver, "udp", "doh.test", v6, attacker[v6])
		refused("DNS over HTTPS", own, "doh.test")

		// A resolver of the attacker's, which gives the name that is allowed to his own address.
		for _, network := range []string{"udp", "tcp"} {
			finds(w, looker, attacker[v6], network, "api.partner.test", v6, attacker[v6])
			refused("an answer of a resolver that is not trusted", own, "api.partner.test")
		}

		// A ClientHello in many segments is the same ClientHello.
		for sni, allowed := range map[string]bool{"api.partner.test": true, "evil.test": false} {
			err := handshake(chopped{w.MustDial(looker, api), 7}, sni)
			if (err == nil) != allowed || !allowed && !isReset(err) {
				t.Errorf("in segments, with %s: %v", sni, err)
			}
		}
		// What begins like TLS and is none.
		for _, bad := range [][]byte{{22, 3, 1, 0, 0}, {22, 3, 1, 0, 4, 2, 0, 0, 0}, append([]byte{22, 3, 1, 0x40, 0}, bytes.Repeat([]byte{1, 0xff, 0xff, 0xff}, 4096)...)} {
			c := w.MustDial(looker, api)
			_, _ = c.Write(bad)
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !isReset(err) {
				t.Errorf("% x: %v", bad[:5], err)
			}
		}

		// No TLS, and a server that speaks first.
		sendAndGet(t, w.MustDial(looker, netip.AddrPortFrom(partner[v6], 80)))
		for _, tlsLater := range []bool{false, true} {
			c := w.MustDial(looker, netip.AddrPortFrom(partner[v6], 25))
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			b := make([]byte, 6)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello\n" {
				t.Errorf("a server that speaks first: %q, %v", b, err)
			}
			if !tlsLater {
				sendAndGet(t, c)
			} else if err := handshake(c, "evil.test"); !isReset(err) {
				t.Errorf("TLS with a name that is not allowed, after a while: %v", err)
			}
		}

		// A pod whose look-ups are not captured reaches no host, and the log has the cause.
		reset(w, far, api)
		w.Logs("node2", `src.workload="far"`, `reason="EGRESS_DENIED"`, "capture of look-ups")
		// Another namespace, and the mesh itself.
		if err := tlsTo(w, digger, api, "evil.test"); err != nil {
			t.Errorf("a pod without a policy: %v", err)
		}
		w.MustGet(looker, netip.AddrPortFrom(w.Service("shop", "web", v6), 80))
		w.MustGet(looker, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080))

		// The root namespace's policy holds besides; the namespace's does not loosen it.
		w.MustApply(rig.NamespaceObject("istio-system", false) + egressPolicy("istio-system", "mesh", "selector: {matchLabels: {}}, to: [{cidrs: [203.0.113.0/24]}]"))
		w.Eventually("the mesh's policy is enforced", func() error {
			if err := tlsTo(w, looker, api, "api.partner.test"); !isReset(err) {
				return fmt.Errorf("looker: %w", errors.Join(err, errors.New("not refused")))
			}
			if err := tlsTo(w, digger, api, "evil.test"); !isReset(err) {
				return fmt.Errorf("digger: %w", errors.Join(err, errors.New("not refused")))
			}
			return nil
		})
		w.MustDelete("EgressPolicy", "istio-system", "mesh")
		w.Eventually("the mesh's policy is gone", func() error { return tlsTo(w, digger, api, "evil.test") })
	})
}

// policied is the mesh of TestEgressHosts, with a pod whose look-ups are captured.
func policied(t *testing.T) *rig.World {
	w := rig.Start(t, lab.Config{
		YAML: confined + captured("looker", ""),
		Env:  map[string][]string{"ztunnel": {"EGRESS_NAME_SERVERS=" + lanAddr(false).String() + "," + lanAddr(true).String()}},
	})
	internet(w)
	return w
}

// policyCount returns how many connections the EgressPolicies of a node decided about.
func policyCount(w *rig.World, node, decision string) (sum float64) {
	w.T().Helper()
	for _, s := range w.Metrics(node, "ambit_egress_policy_connections_total") {
		if s.Labels["decision"] == decision {
			sum += s.Value
		}
	}
	return sum
}

// TestEgressReport: a dry run refuses nothing and reports what it would refuse; the policy that
// the report makes of it allows exactly that; a new destination is refused then. All of it is
// shown.
func TestEgressReport(t *testing.T) {
	w := policied(t)
	w.MustApply(egressPolicy("shop", "tried", "mode: DryRun, to: [{hosts: [api.partner.test]}]"))
	egressShows := func(parts ...string) {
		t.Helper()
		w.Eventually(fmt.Sprintf("the state has %q", parts), func() error {
			out, err := w.Ambit("ztunnel-config", "egress", "--node", "node2")
			return errors.Join(err, contains(out, parts...))
		})
	}
	egressShows("looker", "shop/tried (DryRun)")
	calls := func() (errs []error) {
		for _, v6 := range []bool{false, true} {
			finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, partner[v6])
			finds(w, looker, lanAddr(v6), "udp", "cdn.partner.test", v6, partner[v6])
			for _, sni := range []string{"api.partner.test", "cdn.partner.test"} {
				if err := tlsTo(w, looker, netip.AddrPortFrom(partner[v6], 443), sni); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", sni, err))
				}
			}
		}
		c, err := w.Dial(t.Context(), looker, "tcp", netip.AddrPortFrom(attacker[false], 80).String())
		if err != nil {
			return append(errs, err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Write([]byte("ping\n")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("an address: %w", err))
		}
		return errs
	}
	if errs := calls(); len(errs) > 0 {
		t.Fatal(errs)
	}
	w.Eventually("the log has what would be refused", func() error {
		return contains(w.Log("ztunnel/node2"), "EgressPolicy would refuse the connection", `workload="shop/looker"`, "shop/tried")
	})
	for _, decision := range []string{"reported", "allowed"} {
		w.Eventually(decision+" connections are counted", func() error {
			if policyCount(w, "node2", decision) == 0 {
				return errors.New("there are none")
			}
			return nil
		})
	}
	out, err := w.Ambit("egress", "report", "-n", "shop", "--pod", "looker")
	if err := errors.Join(err, contains(out, "looker", "api.partner.test", "192.0.2.10", "443", "allowed"), contains(out, "cdn.partner.test", "reported"), contains(out, "192.0.2.66", "80", "reported")); err != nil {
		t.Fatal(err)
	}
	policy, err := w.Ambit("egress", "report", "-n", "shop", "-o", "policy")
	if err := errors.Join(err, contains(policy, `{hosts: ["api.partner.test"], ports: [443]}`), contains(policy, `{hosts: ["cdn.partner.test"], ports: [443]}`), contains(policy, `{cidrs: ["192.0.2.66"], ports: [80]}`)); err != nil {
		t.Fatal(err)
	}
	if out, err := w.Ambit("egress", "report", "-n", "yard"); err != nil || strings.Contains(out, "looker") {
		t.Errorf("another namespace: %q, %v", out, err)
	}
	if _, err := w.Ambit("egress", "report", "-n", "yard", "-o", "policy"); err == nil {
		t.Error("a policy of nothing")
	}

	w.MustApply("\n" + policy)
	w.MustDelete("EgressPolicy", "shop", "tried")
	egressShows("looker", "shop/report (Enforce)")
	if errs := calls(); len(errs) > 0 {
		t.Errorf("what was reported is refused: %v", errs)
	}
	for _, v6 := range []bool{false, true} {
		reset(w, looker, netip.AddrPortFrom(partner[v6], 80))
		reset(w, looker, netip.AddrPortFrom(attacker[v6], 443))
	}
	if n := policyCount(w, "node2", "refused"); n < 4 {
		t.Errorf("%v refused connections are counted", n)
	}
	out, err = w.Ambit("why", "pod/looker.shop", "192.0.2.66:443")
	if err == nil || contains(out, "EGRESS_DENIED") != nil || contains(out, "shop/report") != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = w.Ambit("why", "pod/looker.shop", "192.0.2.10:443"); err != nil || contains(out, "allowed for", "api.partner.test") != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = w.Ambit("describe pod", "looker", "-n", "shop"); err != nil || contains(out, "Egress", "shop/report (Enforce)", "refused") != nil {
		t.Errorf("%v\n%s", err, out)
	}

	// An entry counts as registered, and is needed beside a registry's.
	w.MustApply(outbound("shop", "REGISTRY_ONLY"))
	egressShows("looker", "REGISTRY_ONLY")
	if errs := calls(); len(errs) > 0 {
		t.Errorf("with REGISTRY_ONLY: %v", errs)
	}
	w.MustApply(entry("shop", "listed", "*", "240.240.8.1", lanAddr(false)))
	w.Eventually("the registry's entry alone is not enough", func() error {
		if len(w.Log("ztunnel/node2")) == 0 {
			return errors.New("no log")
		}
		reset(w, looker, netip.AddrPortFrom(lanAddr(false), 7070))
		return w.ExpectLines("node2", "dst.addr="+netip.AddrPortFrom(lanAddr(false), 7070).String(), `reason="EGRESS_DENIED"`)
	})

	// A policy that has a mistake refuses, and its status has the field.
	w.MustDelete("EgressPolicy", "shop", "report")
	w.MustApply(egressPolicy("shop", "broken", "to: [{hosts: [api.partner.test]}, {cidrs: [10.0.0.1/8]}]"))
	w.MustApply(rig.NamespaceObject("shop", true))
	egressShows("looker", "ALLOW_ANY", "shop/broken (Invalid)")
	finds(w, looker, lanAddr(false), "udp", "api.partner.test", false, partner[false])
	reset(w, looker, netip.AddrPortFrom(partner[false], 443))
	w.Logs("node2", `reason="EGRESS_DENIED"`, "to[1].cidrs[0]")
}

// TestEgressEntries: who writes ServiceEntries in a namespace gives names to addresses. That is
// enough for a policy of his namespace, and not for one of the root namespace; and where an
// entry leads counts for ranges, not the address that it has made up.
func TestEgressEntries(t *testing.T) {
	world := policied(t)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		vip := map[bool]string{false: "240.240.8.7", true: "2001:2::807"}[v6]
		named := func(namespace string) string {
			return strings.Replace(strings.Replace(entry(namespace, "api.partner", "*", vip, attacker[v6]), "number: 7070", "number: 80", 1), "name: api.partner,", "name: partner,", 1)
		}
		to := netip.AddrPortFrom(netip.MustParseAddr(vip), 80)
		w.MustApply(rig.NamespaceObject("istio-system", false) + named("shop"))
		w.Eventually("the name of the entry is found", func() error {
			m, err := look(w, looker, lanAddr(v6), "udp", ask("api.partner.test", map[bool]uint16{false: dns.TypeA, true: dns.TypeAAAA}[v6]))
			if err != nil || strings.Join(found(m), " ") != vip {
				return fmt.Errorf("%v, %w", m, errors.Join(err, errors.New("not the entry's")))
			}
			return plainTo(w, looker, to)
		})
		finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, to.Addr())

		decides := func(what, namespace, spec string, allowed bool) {
			t.Helper()
			w.MustApply(egressPolicy(namespace, "tested", spec))
			// The proxy has it when its state has, and looks the name up once more: before the
			// first policy, nothing is remembered.
			w.Eventually(what+" is in force", func() error {
				out, err := w.Ambit("ztunnel-config", "egress", "--node", "node2")
				return errors.Join(err, contains(out, "looker", namespace+"/tested (Enforce)"))
			})
			w.Eventually(what, func() error {
				finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, to.Addr())
				if err := plainTo(w, looker, to); (err == nil) != allowed || err != nil && !isReset(err) {
					return fmt.Errorf("%w, allowed %v", errors.Join(err, errors.New(what)), allowed)
				}
				return nil
			})
			w.MustDelete("EgressPolicy", namespace, "tested")
			w.Eventually("it is gone", func() error { return plainTo(w, looker, to) })
		}
		decides("the namespace's own policy", "shop", "to: [{hosts: [api.partner.test]}]", true)
		decides("the mesh's policy", "istio-system", "to: [{hosts: [api.partner.test]}]", false)
		decides("the range of the address that the entry has made up", "shop", fmt.Sprintf("to: [{cidrs: [%q]}]", vip), false)
		decides("the range of where it leads", "shop", fmt.Sprintf("to: [{cidrs: [%q]}]", attacker[v6]), true)
		w.MustDelete("ServiceEntry", "shop", "partner")
	})
}
