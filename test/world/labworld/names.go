package labworld

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// nameServer is where a cluster has its name server.
var nameServer = rig.NamespaceObject("kube-system", false) + rig.PodObject("kube-system", "names", "node1", "app: names") + `
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {app: names}
  ipFamilyPolicy: PreferDualStack
  clusterIPs: [10.96.0.10, "fd96::a"]
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
`

// names has the names of clusters: of services, of the addresses of pods, whatever they are,
// and those that a test adds.
type names struct {
	w *rig.World

	mu    sync.Mutex
	added map[string][]netip.Addr // guarded by mu
}

// serveNames has the pod of nameServer serve names, over UDP and TCP.
func serveNames(t testing.TB, w *rig.World) *names {
	t.Helper()
	n := &names{w: w, added: map[string][]netip.Addr{}}
	in := w.Netns(lab.InPod("kube-system", "names"))
	var pc net.PacketConn
	var ln net.Listener
	if err := in.Do(func() (err error) {
		if pc, err = net.ListenPacket("udp", ":53"); err == nil {
			ln, err = net.Listen("tcp", ":53")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: n}, {Listener: ln, Handler: n}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

// ServeDNS implements dns.Handler.
func (n *names) ServeDNS(rw dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	all := n.find(strings.ToLower(strings.TrimSuffix(name, ".")))
	if len(all) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	for _, a := range all {
		switch head := (dns.RR_Header{Name: name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 5}); {
		case a.Is4() && head.Rrtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		case a.Is6() && head.Rrtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	_ = rw.WriteMsg(m)
}

// find returns the addresses of a name.
func (n *names) find(name string) []netip.Addr {
	n.mu.Lock()
	all := n.added[name]
	n.mu.Unlock()
	if len(all) > 0 {
		return all
	}
	labels := strings.Split(name, ".")
	if len(labels) != 5 || labels[3] != "cluster" || labels[4] != "local" {
		return nil
	}
	switch labels[2] {
	case "pod":
		for _, sep := range []string{".", ":"} {
			if a, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", sep)); err == nil {
				return []netip.Addr{a}
			}
		}
	case "svc":
		all, _ = mesh{World: n.w}.Service(context.Background(), labels[1], labels[0])
	}
	return all
}

// Name adds a name, as a headless Service without a selector has it.
func (m mesh) Name(t testing.TB, namespace, name string, all []netip.Addr) string {
	t.Helper()
	if m.names == nil {
		t.Fatal("the world was started without Names")
	}
	host := fmt.Sprintf("%s.%s.svc.cluster.local", name, namespace)
	m.names.mu.Lock()
	m.names.added[host] = all
	m.names.mu.Unlock()
	return host
}

// Outside runs a server on the machine of ambitd.
func (m mesh) Outside(t testing.TB, args ...string) (all []netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		if out, err := m.Run(ctx, lab.LAN, append([]string{rig.Bin("echo"), "server", "-name", "outside"}, args...)...); err != nil && ctx.Err() == nil {
			t.Errorf("the server outside: %v: %s", err, out)
		}
	}()
	for _, v6 := range m.Families() {
		all = append(all, netip.MustParseAddr(map[bool]string{false: "10.88.0.1", true: "fd88::1"}[v6]))
	}
	return all
}
