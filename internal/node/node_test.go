package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// ztunnel is a proxy process: the real end of ZDS, and in every pod a proxy
// that passes on in the clear.
type ztunnel struct {
	t    *testing.T
	stop func() // it dies: connections and listeners are gone

	mu      sync.Mutex
	proxies map[string]*netnstest.Proxy
	ids     map[string]netns.ID
}

func startZtunnel(t *testing.T, path string) *ztunnel {
	z := &ztunnel{t: t, proxies: map[string]*netnstest.Proxy{}, ids: map[string]netns.ID{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = zds.NewClient(zds.ClientConfig{Path: path, Handler: z, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	z.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		z.keepOnly(nil)
	})
	t.Cleanup(z.stop)
	return z
}

func (z *ztunnel) Add(_ context.Context, uid string, _ zds.Info, ns *netns.NS) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.proxies[uid] != nil && z.ids[uid] == ns.ID() {
		return ns.Close()
	}
	z.t.Cleanup(func() { _ = ns.Close() })
	z.proxies[uid], z.ids[uid] = netnstest.StartProxy(z.t, ns), ns.ID()
	return nil
}

func (z *ztunnel) Del(_ context.Context, uid string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if p := z.proxies[uid]; p != nil {
		p.Stop()
		delete(z.proxies, uid)
	}
	return nil
}

func (z *ztunnel) Snapshot(_ context.Context, named map[string]bool) { z.keepOnly(named) }
func (z *ztunnel) Connected(bool)                                    {}

func (z *ztunnel) keepOnly(named map[string]bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for uid, p := range z.proxies {
		if !named[uid] {
			p.Stop()
			delete(z.proxies, uid)
		}
	}
}

func (z *ztunnel) captured(uid string) (in, out int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if p := z.proxies[uid]; p != nil {
		return len(p.Inbound()), len(p.Outbound())
	}
	return 0, 0
}

// announcements is an Annotator that can be waited on. What it is told comes
// back to the agent, as from an API server.
type announcements struct {
	mu    sync.Mutex
	value map[string]string
	news  chan struct{}
}

func (a *announcements) Annotate(_ context.Context, pod Pod, value string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.value[pod.UID] = value
	close(a.news)
	a.news = make(chan struct{})
	return nil
}

func (a *announcements) await(t *testing.T, uid, want string) {
	t.Helper()
	deadline := time.After(netnstest.Timeout)
	for {
		a.mu.Lock()
		got, news := a.value[uid], a.news
		a.mu.Unlock()
		if got == want {
			return
		}
		select {
		case <-news:
		case <-deadline:
			t.Fatalf("announced is %q, and never %q", got, want)
		}
	}
}

// node is one node with one pod, and a peer outside of it.
type testNode struct {
	t         *testing.T
	dir       string
	pod, peer *netns.NS
	before    string
	inside    map[netip.Addr]netip.AddrPort // servers in the pod by the address they are at
	outside   map[netip.Addr]netip.AddrPort
	said      *announcements
	packets   LargePackets // nil: interfaces stay as they are

	agent *Agent
	stop  func()
}

const podUIDOfTest = "2b801b7a-5266-4386-864e-45ed71136371"

func newNode(t *testing.T) *testNode {
	t.Helper()
	n := &testNode{t: t, said: &announcements{value: map[string]string{}, news: make(chan struct{})},
		inside: map[netip.Addr]netip.AddrPort{}, outside: map[netip.Addr]netip.AddrPort{}}
	dir, err := os.MkdirTemp("", "node") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n.dir = dir
	n.pod, n.peer = netnstest.Link(t)
	if err := os.Symlink(fdPath(n.pod), filepath.Join(dir, podUIDOfTest)); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{netnstest.PodIPv4, netnstest.PodIPv6} {
		n.inside[a] = netnstest.Serve(t, n.pod, netip.AddrPortFrom(a, 0))
	}
	for _, a := range []netip.Addr{netnstest.PeerIPv4, netnstest.PeerIPv6} {
		n.outside[a] = netnstest.Serve(t, n.peer, netip.AddrPortFrom(a, 0))
	}
	netnstest.Settle(t, n.pod)
	n.before = n.dump()
	return n
}

func (n *testNode) zds() string { return filepath.Join(n.dir, "zds.sock") }

func (n *testNode) dump() string {
	n.t.Helper()
	s, err := nft.Dump(n.pod)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// startAgent runs an agent that knows the pod, in a namespace with labels.
func (n *testNode) startAgent(labels map[string]string) {
	n.t.Helper()
	server, err := zds.Listen(zds.ServerConfig{Path: n.zds(), Logger: slog.New(slog.DiscardHandler), OnChange: func() { n.agent.ProxiesChanged() }})
	if err != nil {
		n.t.Fatal(err)
	}
	n.agent, err = New(Config{
		Policy: Policy{Selectors: DefaultSelectors()}, Redirection: nft.Config{IPv6: true},
		Proxies: server, Resolver: Dir(n.dir), Annotator: n.said, Logger: slog.New(slog.DiscardHandler),
		Settle: 100 * time.Millisecond, Drain: netnstest.Timeout, LargePackets: n.packets,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.agent.SetNamespace("default", labels)
	n.agent.Set(n.thePod())
	n.agent.Synced()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.agent.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = server.Close()
	})
	n.t.Cleanup(n.stop)
}

func (n *testNode) thePod() Pod {
	n.said.mu.Lock()
	defer n.said.mu.Unlock()
	p := Pod{UID: podUIDOfTest, Name: "web", Namespace: "default", ServiceAccount: "web", IPs: []netip.Addr{netnstest.PodIPv4, netnstest.PodIPv6}}
	if v := n.said.value[p.UID]; v != "" {
		p.Annotations = map[string]string{"ambient.istio.io/redirection": v}
	}
	return p
}

// ask makes one request: connect, be told one's address, echo a line.
func ask(from *netns.NS, to netip.AddrPort) error {
	c, err := netnstest.Dial(from, netip.Addr{}, to, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		return fmt.Errorf("reading the greeting: %w", err)
	}
	if _, err := fmt.Fprintln(c, "ping"); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		return fmt.Errorf("reading the echo: %w", err)
	}
	return nil
}

// each calls fn for every direction and family.
func (n *testNode) each(fn func(name string, from *netns.NS, to netip.AddrPort)) {
	for _, to := range n.inside {
		fn("to "+to.String(), n.peer, to)
	}
	for _, to := range n.outside {
		fn("to "+to.String(), n.pod, to)
	}
}

func (n *testNode) allWork() {
	n.t.Helper()
	n.each(func(name string, from *netns.NS, to netip.AddrPort) {
		if err := ask(from, to); err != nil {
			n.t.Errorf("%s: %v", name, err)
		}
	})
}

func (n *testNode) allReset() {
	n.t.Helper()
	n.each(func(name string, from *netns.NS, to netip.AddrPort) {
		if err := ask(from, to); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			n.t.Errorf("%s: %v, want a reset", name, err)
		}
	})
}

// load makes requests in every direction and family until it is stopped, and
// says how many were made and how many failed.
func (n *testNode) load() (stop func() (made, failed int64)) {
	var end atomic.Bool
	var made, failed atomic.Int64
	var wg sync.WaitGroup
	n.each(func(name string, from *netns.NS, to netip.AddrPort) {
		wg.Go(func() {
			for !end.Load() {
				made.Add(1)
				if err := ask(from, to); err != nil {
					failed.Add(1)
					n.t.Logf("%s: %v", name, err)
				}
			}
		})
	})
	n.t.Cleanup(func() { // a test that has failed goes on to close the namespaces
		end.Store(true)
		wg.Wait()
	})
	return func() (int64, int64) {
		end.Store(true)
		wg.Wait()
		return made.Load(), failed.Load()
	}
}

// A live pod joins and leaves under load, and not one request fails.
func TestEnrolAndUnenrolUnderLoad(t *testing.T) {
	n := newNode(t)
	n.startAgent(map[string]string{})
	z := startZtunnel(t, n.zds())
	stop := n.load()
	for range 3 {
		n.agent.SetNamespace("default", ambient)
		n.said.await(t, podUIDOfTest, "enabled")
		n.agent.Set(n.thePod())
		in, out := z.captured(podUIDOfTest)
		n.each(func(name string, from *netns.NS, to netip.AddrPort) {
			if err := ask(from, to); err != nil {
				t.Errorf("%s, enrolled: %v", name, err)
			}
		})
		if in2, out2 := z.captured(podUIDOfTest); in2 < in+2 || out2 < out+2 {
			t.Errorf("of four requests the proxy saw %d inbound and %d outbound", in2-in, out2-out)
		}
		n.agent.SetNamespace("default", map[string]string{})
		n.said.await(t, podUIDOfTest, "")
		n.agent.Set(n.thePod())
		n.awaitRestored()
	}
	if made, failed := stop(); failed > 0 || made == 0 {
		t.Errorf("%d of %d requests failed", failed, made)
	}
}

// awaitRestored waits until the pod's namespace is as it was at first.
func (n *testNode) awaitRestored() {
	n.t.Helper()
	netnstest.Eventually(n.t, "the namespace is as it was", func() bool { return n.before == n.dump() })
}

func TestProxyThatDiesLeavesResets(t *testing.T) {
	n := newNode(t)
	n.startAgent(ambient)
	z := startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	n.allWork()
	z.stop()
	n.allReset()
	startZtunnel(t, n.zds())
	n.awaitServed()
	n.allWork()
}

func (n *testNode) awaitServed() {
	n.t.Helper()
	netnstest.Eventually(n.t, "the pod is served", func() bool { return n.agent.cfg.Proxies.Served(podUIDOfTest) })
}

func TestAgentRestartsUnderLoad(t *testing.T) {
	n := newNode(t)
	n.startAgent(ambient)
	z := startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	captured := n.dump()
	stop := n.load()
	n.stop()
	if diff := cmp.Diff(captured, n.dump()); diff != "" {
		t.Errorf("the agent's end changed the namespace:\n%s", diff)
	}
	n.allWork()
	n.startAgent(ambient)
	n.awaitServed()
	n.allWork()
	if made, failed := stop(); failed > 0 || made == 0 {
		t.Errorf("%d of %d requests failed", failed, made)
	}
	if diff := cmp.Diff(captured, n.dump()); diff != "" {
		t.Errorf("the new agent changed the namespace:\n%s", diff)
	}
	if in, out := z.captured(podUIDOfTest); in == 0 || out == 0 {
		t.Errorf("the proxy saw %d inbound and %d outbound", in, out)
	}
}

// The agent died in the middle of un-enrolment.
func TestAgentFinishesUnenrolmentAfterRestart(t *testing.T) {
	n := newNode(t)
	n.startAgent(ambient)
	startZtunnel(t, n.zds())
	n.said.await(t, podUIDOfTest, "enabled")
	n.stop()
	n.startAgent(map[string]string{})
	n.awaitRestored()
	n.said.await(t, podUIDOfTest, "")
	n.allWork()
}

func TestNewPodOverThePluginSocket(t *testing.T) {
	n := newNode(t)
	n.startAgent(ambient)
	handler := PluginHandler(n.agent, nil)
	post := func(body string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://unix/cmdadd", strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
	good := fmt.Sprintf(`{"Netns":%q,"PodName":"web","PodNamespace":"default","IPs":[{"Address":{"IP":"10.9.0.2","Mask":"////AA=="}},{"Address":"fd00:9::2/64"}]}`, fdPath(n.pod))
	if code, said := post(good); code != 500 || !strings.Contains(said, "no ztunnel") {
		t.Errorf("without a proxy: %d %s", code, said)
	}
	n.allReset() // what the pod would meet if it ran
	z := startZtunnel(t, n.zds())
	n.awaitServed()
	if code, said := post(good); code != 200 {
		t.Errorf("%d %s", code, said)
	}
	n.allWork()
	if in, out := z.captured(podUIDOfTest); in == 0 || out == 0 {
		t.Errorf("the proxy saw %d inbound and %d outbound", in, out)
	}
	for body, want := range map[string]int{
		"":   400,
		"{}": 500,
		`{"Netns":"/proc/self/ns/net","PodName":"web","PodNamespace":"default"}`:       500,
		`{"Netns":"/nonexistent","PodName":"web","PodNamespace":"default"}`:            500,
		`{"PodName":"web","PodNamespace":"default","IPs":[{"Address":"nothing"}]}`:     400,
		`{"PodName":"web","PodNamespace":"default","x":"` + strings.Repeat("x", 70000): 400,
	} {
		if code, said := post(body); code != want {
			t.Errorf("%.60s: %d %s, want %d", body, code, said, want)
		}
	}
}
