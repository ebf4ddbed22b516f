package scenario

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// looker is a pod whose look-ups are captured.
var looker = lab.InPod("shop", "looker")

// named is a mesh with names that nothing but the mesh has.
var named = shop + captured("looker", "") + rig.PodObject("street", "tower", "node2", "") + `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ledger, namespace: shop}
spec:
  hosts: [ledger.example]
  addresses: [240.240.7.1, "2001:2::701"]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// captured returns a pod of the shop whose look-ups are captured.
func captured(name, rest string) string {
	pod := rig.PodObject("shop", name, "node2", "")
	return strings.Replace(pod, "labels: {}}", fmt.Sprintf("labels: {}, annotations: {%s: \"true\"%s}}", wellknown.AnnotationDNSCapture, rest), 1)
}

// dnsServer is a name server in a pod.
type dnsServer struct {
	mu   sync.Mutex // guards what follows
	seen []*dns.Msg
	// lastPort is the port that the last question came from.
	lastPort uint16
	reply    func(q *dns.Msg, tcp bool) []*dns.Msg
}

// nameServerIn serves names over UDP and TCP from all addresses of a pod.
func nameServerIn(w *rig.World, namespace, name string) *dnsServer {
	w.T().Helper()
	s := &dnsServer{reply: usual}
	ns := w.Netns(lab.InPod(namespace, name))
	for _, v6 := range []bool{false, true} {
		at := net.JoinHostPort(w.Pod(namespace, name, v6).String(), "53")
		var pc net.PacketConn
		var ln net.Listener
		err := ns.Do(func() (err error) {
			if pc, err = net.ListenPacket("udp", at); err == nil {
				ln, err = net.Listen("tcp", at)
			}
			return err
		})
		if err != nil {
			w.T().Fatal(err)
		}
		for _, srv := range []*dns.Server{{PacketConn: pc, Handler: s}, {Listener: ln, Handler: s}} {
			srv.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
			go func() { _ = srv.ActivateAndServe() }()
			w.T().Cleanup(func() { _ = srv.Shutdown() })
		}
	}
	return s
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(rw dns.ResponseWriter, q *dns.Msg) {
	_, tcp := rw.RemoteAddr().(*net.TCPAddr)
	s.mu.Lock()
	s.seen = append(s.seen, q)
	if from, err := netip.ParseAddrPort(rw.RemoteAddr().String()); err == nil {
		s.lastPort = from.Port()
	}
	reply := s.reply
	s.mu.Unlock()
	for _, m := range reply(q, tcp) {
		_ = rw.WriteMsg(m)
	}
}

// asked returns how often the server was asked for a name.
func (s *dnsServer) asked(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.seen {
		if len(q.Question) == 1 && strings.EqualFold(q.Question[0].Name, dns.Fqdn(name)) {
			n++
		}
	}
	return n
}

func (s *dnsServer) answer(f func(q *dns.Msg, tcp bool) []*dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply = f
}

// usual answers for the names below outside.test, and with the codes that a name server
// has for what it does not know or do.
func usual(q *dns.Msg, tcp bool) []*dns.Msg {
	m := new(dns.Msg).SetReply(q)
	if q.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented
		return []*dns.Msg{m}
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return []*dns.Msg{m}
	}
	name := strings.ToLower(q.Question[0].Name)
	add := func(text string, a ...any) {
		rr, err := dns.NewRR(fmt.Sprintf(q.Question[0].Name+" 7 IN "+text, a...))
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	switch {
	case !strings.HasSuffix(name, "outside.test."):
		m.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		add("A 192.0.2.9")
	case q.Question[0].Qtype == dns.TypeAAAA:
		add("AAAA 2001:db8::9")
	case q.Question[0].Qtype == dns.TypeTXT && !tcp:
		m.Truncated = true
	case q.Question[0].Qtype == dns.TypeTXT:
		for i := range 200 {
			add("TXT \"%d %s\"", i, strings.Repeat("x", 200))
		}
	}
	return []*dns.Msg{m}
}

// look asks a name server from a pod, by UDP or TCP.
func look(w *rig.World, from lab.Where, at netip.Addr, network string, q *dns.Msg) (*dns.Msg, error) {
	w.T().Helper()
	return lookAt(w, from, netip.AddrPortFrom(at, 53), network, q)
}

func lookAt(w *rig.World, from lab.Where, at netip.AddrPort, network string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := w.Dial(ctx, from, network, at.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	conn := &dns.Conn{Conn: c, UDPSize: 4096}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	return conn.ReadMsg()
}

func ask(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), kind) }

// found returns the addresses, aliases and other records of an answer.
func found(m *dns.Msg) (all []string) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		case *dns.CNAME:
			all = append(all, "->"+strings.TrimSuffix(rr.Target, "."))
		case *dns.SRV:
			all = append(all, fmt.Sprintf("%s:%d", strings.TrimSuffix(rr.Target, "."), rr.Port))
		default:
			all = append(all, rr.String())
		}
	}
	return all
}

// TestDNS: a pod's look-ups of the mesh's names are answered by its node's proxy, whether
// or not there is a name server; all others reach the name server that the pod has asked,
// and its answers come back as they are.
func TestDNS(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	ns := nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		gone := netip.MustParseAddr("192.0.2.53")
		if v6 {
			gone = netip.MustParseAddr("2001:db8::53")
		}
		web4, web6 := w.Pod("shop", "web", false).String(), w.Pod("shop", "web", true).String()
		vip4, vip6 := w.Service("shop", "web", false).String(), w.Service("shop", "web", true).String()
		for _, test := range []struct {
			name string
			kind uint16
			want []string
		}{
			{"ledger.example", dns.TypeA, []string{"240.240.7.1"}},
			{"ledger.example", dns.TypeAAAA, []string{"2001:2::701"}},
			{"LedGer.EXAMPLE", dns.TypeA, []string{"240.240.7.1"}},
			{"ledger.example.shop.svc.cluster.local", dns.TypeA, []string{"->ledger.example", "240.240.7.1"}},
			{"ledger.example.svc.cluster.local", dns.TypeA, []string{"->ledger.example", "240.240.7.1"}},
			{"web", dns.TypeA, []string{vip4}},
			{"web.shop", dns.TypeAAAA, []string{vip6}},
			{"web.shop.svc", dns.TypeA, []string{vip4}},
			{"web.shop.svc.cluster.local", dns.TypeA, []string{vip4}},
			{"peers.shop.svc.cluster.local", dns.TypeA, []string{web4}},
			{"peers.shop.svc.cluster.local", dns.TypeAAAA, []string{web6}},
			{"web.peers.shop.svc.cluster.local", dns.TypeA, []string{web4}},
			{strings.ReplaceAll(web4, ".", "-") + ".peers.shop.svc.cluster.local", dns.TypeA, []string{web4}},
		} {
			before := ns.asked(test.name)
			for _, network := range []string{"udp", "tcp"} {
				for _, server := range []netip.Addr{at, gone} {
					m, err := look(w, looker, server, network, ask(test.name, test.kind))
					if err != nil || m.Rcode != dns.RcodeSuccess || !slices.Equal(found(m), test.want) || m.Question[0].Name != dns.Fqdn(test.name) {
						t.Errorf("%s of %s over %s at %s: %v, %v", dns.TypeToString[test.kind], test.name, network, server, m, err)
					}
				}
			}
			if n := ns.asked(test.name) - before; n > 0 {
				t.Errorf("the name server was asked for %s %d times", test.name, n)
			}
		}
		// The answer leads through the mesh.
		to := netip.MustParseAddrPort("240.240.7.1:80")
		if v6 {
			to = netip.MustParseAddrPort("[2001:2::701]:80")
		}
		want(t, "answer", w.MustGet(looker, to).Name, "web")

		for _, network := range []string{"udp", "tcp"} {
			m, err := look(w, looker, at, network, ask("Www.outside.test", dns.TypeA))
			if err != nil || !slices.Equal(found(m), []string{"192.0.2.9"}) || m.Answer[0].Header().Ttl != 7 || m.Question[0].Name != "Www.outside.test." {
				t.Errorf("an outside name over %s: %v, %v", network, m, err)
			}
			m, err = look(w, looker, at, network, ask("nothing.example", dns.TypeA))
			if err != nil || m.Rcode != dns.RcodeNameError {
				t.Errorf("a name that does not exist over %s: %v, %v", network, m, err)
			}
			// What the name server does not know of a name of the mesh is no reason to
			// say that there is no such name.
			m, err = look(w, looker, at, network, ask("ledger.example", dns.TypeTXT))
			if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
				t.Errorf("another type of a name of the mesh over %s: %v, %v", network, m, err)
			}
			update := new(dns.Msg).SetUpdate("ledger.example.")
			if m, err = look(w, looker, at, network, update); err != nil || m.Rcode != dns.RcodeNotImplemented || m.Opcode != dns.OpcodeUpdate {
				t.Errorf("an update over %s: %v, %v", network, m, err)
			}
		}
		// What is too long for UDP comes over TCP.
		if m, err := look(w, looker, at, "udp", ask("long.outside.test", dns.TypeTXT)); err != nil || !m.Truncated {
			t.Errorf("a long answer over UDP: %v, %v", m, err)
		}
		if m, err := look(w, looker, at, "tcp", ask("long.outside.test", dns.TypeTXT)); err != nil || len(m.Answer) != 200 {
			t.Errorf("a long answer over TCP: %v, %v", m, err)
		}
	})
}

// TestDNSWildcard: every name below a host with a wildcard, which a waypoint serves, has its
// addresses. Names beside it are passed on.
func TestDNSWildcard(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named + managed + `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: branches, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  hosts: ["*.branch.example"]
  addresses: [240.240.7.5, "2001:2::705"]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
`})
	nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		kind, want := dns.TypeA, "240.240.7.5"
		if v6 {
			kind, want = dns.TypeAAAA, "2001:2::705"
		}
		for name, code := range map[string]int{
			"north.branch.example": dns.RcodeSuccess, "a.b.branch.example": dns.RcodeSuccess,
			"branch.example": dns.RcodeNameError, "north.branch.example.org": dns.RcodeNameError,
		} {
			w.Eventually(name, func() error {
				m, err := look(w, looker, at, "udp", ask(name, kind))
				if err != nil {
					return err
				}
				if got := strings.Join(found(m), " "); m.Rcode != code || code == dns.RcodeSuccess && got != want {
					return fmt.Errorf("code %d, %q", m.Rcode, got)
				}
				return nil
			})
		}
	})
}
