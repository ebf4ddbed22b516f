package ztunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/feed"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// lines collects a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
	got *sync.Cond
}

func newLines() *lines {
	l := &lines{}
	l.got = sync.NewCond(&l.mu)
	return l
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.got.Broadcast()
	return l.buf.Write(p)
}

// wait returns the first line that has all parts.
func (l *lines) wait(t *testing.T, parts ...string) string {
	t.Helper()
	stop := time.AfterFunc(netnstest.Timeout, func() { l.got.Broadcast() })
	defer stop.Stop()
	end := time.Now().Add(netnstest.Timeout)
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
	next:
		for line := range strings.Lines(l.buf.String()) {
			for _, p := range parts {
				if !strings.Contains(line, p) {
					continue next
				}
			}
			return line
		}
		if time.Now().After(end) {
			t.Fatalf("no log line with %q in:\n%s", parts, l.buf.String())
		}
		l.got.Wait()
	}
}

// side is one node with one pod.
type side struct {
	node *Node
	ns   *netns.NS
	log  *lines
	uid  string
	info zds.Info
}

// world is two pods on two nodes, joined by a wire.
type world struct {
	t              *testing.T
	dir            *workload.Directory
	policies       *rbac.Store
	certs          *certs.Manager
	signer         *certs.FakeSigner
	loops          *poll.Group
	client, server *side
	v6             bool
}

// mesh describes both pods; rest is appended. With a policy p in rest the server
// names it.
func (w *world) mesh(clientProto, serverProto, rest string) string {
	named := ""
	if strings.Contains(rest, "name: p,") {
		named = "shop/p"
	}
	return fmt.Sprintf(`
workloads:
- {uid: client, name: client, namespace: shop, serviceAccount: web, node: a, workloadIps: [%s, "%s"], protocol: %s, workloadName: client, canonicalName: client, canonicalRevision: v1, clusterId: Kubernetes}
- {uid: server, name: server, namespace: shop, serviceAccount: cart, node: b, workloadIps: [%s, "%s"], protocol: %s, workloadName: server, canonicalName: server, canonicalRevision: v1, clusterId: Kubernetes, authorizationPolicies: [%s], services: {shop/cart.shop.svc.cluster.local: {80: 8080}}}
%s
`, netnstest.PodIPv4, netnstest.PodIPv6, clientProto, netnstest.PeerIPv4, netnstest.PeerIPv6, serverProto, named, rest)
}

// idle is the policy p, which matches nothing.
const idle = `
policies: [{name: p, namespace: shop, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [1]}]]]}]
`

const cartService = `
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd96::1"], ports: {80: 8080}}
`

// each runs fn in IPv4 and in IPv6.
func each(t *testing.T, fn func(t *testing.T, w *world)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) { fn(t, newWorld(t, v6)) })
	}
}

func newWorld(t *testing.T, v6 bool) *world {
	t.Helper()
	w := &world{t: t, v6: v6, dir: workload.NewDirectory(workload.Options{}), policies: rbac.NewStore()}
	var err error
	if w.signer, err = certs.NewFakeSigner(); err != nil {
		t.Fatal(err)
	}
	w.certs = certs.NewManager(certs.Config{Sign: w.signer, Logger: logging.Discard()})
	t.Cleanup(w.certs.Close)
	if w.loops, err = poll.NewGroup(2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.loops.Close)
	pod, peer := netnstest.Link(t)
	w.client = w.side("a", pod, "client", "web")
	w.server = w.side("b", peer, "server", "cart")
	return w
}

func (w *world) side(node string, ns *netns.NS, name, account string) *side {
	s := &side{ns: ns, log: newLines(), uid: name, info: zds.Info{Name: name, Namespace: "shop", ServiceAccount: account}}
	logs, err := logging.New(s.log, logging.Plain, "debug")
	if err != nil {
		w.t.Fatal(err)
	}
	cfg, err := config.Load(bootstrap.Env{"NODE_NAME": node, "FAKE_CA": "true"}, bootstrap.Host{
		CPUs: 2, Exists: func(string) bool { return false }, ReadFile: bootstrap.ThisHost().ReadFile,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s.node = NewNode(Options{
		Config: cfg, Logger: logs.Logger("ztunnel"), Directory: w.dir, Policies: w.policies, Certs: w.certs,
		Loops: w.loops, Recorder: telemetry.NewRecorder(logs.Logger("access")),
	})
	w.t.Cleanup(s.node.Close)
	return s
}

// capture redirects the pod's traffic.
func (w *world) capture(s *side) {
	w.t.Helper()
	if err := nft.Apply(s.ns, nft.Config{IPv6: true}); err != nil {
		w.t.Fatal(err)
	}
}

// enrol captures the pod's traffic and serves it.
func (w *world) enrol(s *side) {
	w.t.Helper()
	w.capture(s)
	ns, err := s.ns.Dup()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.node.Add(context.Background(), s.uid, s.info, ns); err != nil {
		w.t.Fatal(err)
	}
}

// apply sets the mesh.
func (w *world) apply(text string) {
	w.t.Helper()
	c, err := localxds.Parse([]byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := feed.Local(c, w.dir, w.policies); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) serverIP() netip.Addr {
	if w.v6 {
		return netnstest.PeerIPv6
	}
	return netnstest.PeerIPv4
}

func (w *world) clientIP() netip.Addr {
	if w.v6 {
		return netnstest.PodIPv6
	}
	return netnstest.PodIPv4
}

func (w *world) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(w.serverIP(), port) }

func (w *world) vip(port uint16) netip.AddrPort {
	if w.v6 {
		return netip.AddrPortFrom(netip.MustParseAddr("fd96::1"), port)
	}
	return netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), port)
}

// serve runs fn for every connection to a port of the server pod.
func (w *world) serve(port uint16, fn func(c *net.TCPConn)) {
	w.t.Helper()
	l := netnstest.Listen(w.t, w.server.ns, w.at(port), nil)
	var wg sync.WaitGroup
	w.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				defer func() { _ = c.Close() }()
				fn(c.(*net.TCPConn))
			}()
		}
	}()
}

// echo answers every line with the client's address and the line.
func echo(c *net.TCPConn) {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		if _, err := fmt.Fprintf(c, "%s %s", host, line); err != nil {
			return
		}
	}
}

// dial connects from the client pod.
func (w *world) dial(to netip.AddrPort) *net.TCPConn {
	w.t.Helper()
	c, err := netnstest.Dial(w.client.ns, netip.Addr{}, to, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	return c
}

// talk sends a line and wants it back with the client's address.
func (w *world) talk(c *net.TCPConn, word string) {
	w.t.Helper()
	if _, err := io.WriteString(c, word+"\n"); err != nil {
		w.t.Fatal(err)
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if want := w.clientIP().String() + " " + word + "\n"; err != nil || got != want {
		w.t.Fatalf("got %q, %v; want %q\nclient node:\n%s\nserver node:\n%s", got, err, want, w.client.log.buf.String(), w.server.log.buf.String())
	}
}

// refused wants a connection to be reset without an answer.
func (w *world) refused(to netip.AddrPort) {
	w.t.Helper()
	c, err := netnstest.Dial(w.client.ns, netip.Addr{}, to, nil)
	if errors.Is(err, syscall.ECONNRESET) {
		return // faster than the dialler
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	if _, err := io.WriteString(c, "hello\n"); errors.Is(err, syscall.ECONNRESET) {
		return // the kernel says it once
	}
	b := make([]byte, 64)
	if n, err := c.Read(b); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		w.t.Fatalf("%q, %v instead of a reset", b[:n], err)
	}
}
