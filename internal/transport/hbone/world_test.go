package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

func TestMain(m *testing.M) {
	// The runtime opens its own descriptors with the first one it polls; the
	// counts of the tests must not see that.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = ln.Close()
	}
	leak.Main(m)
}

// patience bounds waits that only a fault makes long.
const patience = 60 * time.Second

var (
	alice = identity.Identity{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "alice"}
	bob   = identity.Identity{TrustDomain: "cluster.local", Namespace: "b", ServiceAccount: "bob"}
)

// authority is a tiny CA.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{key, cert, pool}
}

func (a *authority) bundle(t testing.TB, id identity.Identity) *mtls.Bundle {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	uri, err := url.Parse(id.String())
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	check(t, err)
	return &mtls.Bundle{
		Identity: id, Cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, Roots: a.pool,
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a client node and a server node on loopback, each with loops of
// its own, and what tests need to look inside.
type world struct {
	tb             testing.TB
	near, far      *poll.Group
	pool           *Pool
	server         *Server
	entry          net.Addr // where applications of the client node connect
	tunnelAddr     netip.AddrPort
	app            func(net.Conn) // the program on the server node
	appListener    net.Listener
	dials, tunnels atomic.Int64
	handshakeErrs  chan error
	failures       chan failure
	closed         chan relay.Result // of flows at the client
	closedServer   chan relay.Result
	flows          chan *relay.Flow
	requests       atomic.Int64
	lastServer     atomic.Pointer[relay.Flow]
	onRequest      func(*Request)
	key            func() Key
	spare          func() bool
	timeout        atomic.Int64 // of Open, in nanoseconds
	clientConf     func() *tls.Config
	listeners      []*poll.Listener
	apps           sync.WaitGroup
	quiet          bool // benchmark: nobody reads the channels
}

type failure struct {
	err    *reason.Error
	status int
}

type option func(*world, *PoolConfig, *ServerConfig)

func loops(n int) option {
	return func(w *world, p *PoolConfig, s *ServerConfig) {
		w.near.Close()
		w.far.Close()
		w.near, w.far = group(w.tb, n), group(w.tb, n)
		p.Loops, s.Loops = w.near, w.far
	}
}

func group(tb testing.TB, n int) *poll.Group {
	g, err := poll.NewGroup(n)
	check(tb, err)
	return g
}

// newWorld builds a world whose server-side program is app, called with every
// connection on a goroutine of its own.
func newWorld(tb testing.TB, app func(net.Conn), opts ...option) *world {
	tb.Helper()
	before := openFiles(tb)
	w := &world{
		tb: tb, near: group(tb, 1), far: group(tb, 1), app: app,
		handshakeErrs: make(chan error, 100), failures: make(chan failure, 1000),
		closed: make(chan relay.Result, 1000), closedServer: make(chan relay.Result, 1000), flows: make(chan *relay.Flow, 1000),
	}
	ca := newAuthority(tb)
	cb, sb := ca.bundle(tb, alice), ca.bundle(tb, bob)
	w.clientConf = func() *tls.Config { return mtls.Client(cb, []identity.Identity{bob}) }
	w.key = func() Key {
		return Key{SrcIdentity: alice, Dst: w.tunnelAddr, DstIdentities: bob.String(), DstUID: "uid-1"}
	}
	pc := PoolConfig{Loops: w.near, Dial: w.dial, OnTunnel: func(_ Key, d int) { w.tunnels.Add(int64(d)) }}
	sc := ServerConfig{
		Loops: w.far, TLS: mtls.Server(func() (*mtls.Bundle, error) { return sb, nil }).GetConfigForClient,
		OnHandshakeError: func(_, _ netip.AddrPort, err error) { w.handshakeErrs <- err },
	}
	w.onRequest = w.connectApp
	sc.OnRequest = func(r *Request) { w.requests.Add(1); w.onRequest(r) }
	for _, o := range opts {
		o(w, &pc, &sc)
	}
	w.pool, w.server = NewPool(pc), NewServer(sc)
	var err error
	w.appListener, err = net.Listen("tcp", "127.0.0.1:0")
	check(tb, err)
	w.apps.Add(1)
	go w.serveApps()
	w.tunnelAddr = w.listen(w.far, func(l *poll.Loop, fd int, remote, local netip.AddrPort) {
		_ = sockopt.NoDelay(fd)
		w.server.Serve(l, fd, remote, local)
	})
	entry := w.listen(w.near, func(_ *poll.Loop, fd int, _, _ netip.AddrPort) {
		_ = sockopt.NoDelay(fd)
		w.open(fd)
	})
	w.entry = net.TCPAddrFromAddrPort(entry)
	tb.Cleanup(func() { w.close(before) })
	return w
}

func (w *world) listen(g *poll.Group, accept func(l *poll.Loop, fd int, remote, local netip.AddrPort)) netip.AddrPort {
	fd, err := sockopt.Listen(netip.MustParseAddrPort("127.0.0.1:0"), sockopt.ListenOptions{})
	check(w.tb, err)
	addr, err := sockopt.LocalAddr(fd)
	check(w.tb, err)
	ln, err := poll.Listen(g, fd, func(l *poll.Loop, fd int, remote netip.AddrPort) { accept(l, fd, remote, addr) })
	check(w.tb, err)
	w.listeners = append(w.listeners, ln)
	return addr
}

func (w *world) serveApps() {
	defer w.apps.Done()
	for {
		c, err := w.appListener.Accept()
		if err != nil {
			return
		}
		w.apps.Add(1)
		go func() {
			defer w.apps.Done()
			defer func() { _ = c.Close() }()
			w.app(c)
		}()
	}
}

func (w *world) dial(ctx context.Context, k Key) (int, *tls.Config, error) {
	w.dials.Add(1)
	fd, err := sockopt.Stream(k.Dst.Addr())
	if err != nil {
		return -1, nil, err
	}
	_ = sockopt.NoDelay(fd)
	done := make(chan error, 1)
	w.near.Pick(0).Post(func() {
		relay.Connect(w.near.Pick(0), fd, k.Dst, patience, func(err error) { done <- err })
	})
	if err := <-done; err != nil {
		poll.CloseFD(fd)
		return -1, nil, err
	}
	return fd, w.clientConf(), nil
}

// open sends an accepted application socket through the pool.
func (w *world) open(fd int) {
	w.pool.Open(&Open{
		Key: w.key(), App: fd, Spare: w.spare, Timeout: time.Duration(w.timeout.Load()), Header: Header{Authority: "10.0.0.1:80", Baggage: "k8s.namespace.name=a", Forwarded: "for=x"},
		OnUp: func(f *relay.Flow, _ ResponseHeader) {
			if !w.quiet {
				w.flows <- f
			}
		},
		OnFail: func(err *reason.Error, status int) {
			poll.ResetFD(fd)
			w.failures <- failure{err, status}
		},
		OnClose: func(_ *relay.Flow, r relay.Result) {
			if !w.quiet {
				w.closed <- r
			}
		},
	})
}

// handle has f answer the requests from now on.
func (w *world) handle(f func(*Request)) {
	done := make(chan struct{})
	w.far.Loop(0).Post(func() { w.onRequest = f; close(done) })
	<-done
}

// connectApp is the usual OnRequest: connect to the program, then answer.
func (w *world) connectApp(r *Request) {
	to := w.appListener.Addr().(*net.TCPAddr).AddrPort()
	fd, err := sockopt.Stream(to.Addr())
	if err != nil {
		r.Refuse(503, ResponseHeader{})
		return
	}
	_ = sockopt.NoDelay(fd)
	relay.Connect(r.Loop, fd, to, patience, func(err error) {
		if err != nil {
			poll.CloseFD(fd)
			r.Refuse(503, ResponseHeader{})
			return
		}
		f := r.Accept(fd, nil, ResponseHeader{Baggage: "k8s.namespace.name=b"}, func(_ *relay.Flow, res relay.Result) {
			if !w.quiet {
				w.closedServer <- res
			}
		})
		w.lastServer.Store(f)
	})
}

// sentToApp reports whether the last connection brought the program n bytes.
func (w *world) sentToApp(n uint64) bool {
	f := w.lastServer.Load()
	if f == nil {
		return false
	}
	sent, _ := f.Bytes()
	return sent >= n
}

func (w *world) close(before int) {
	for _, ln := range w.listeners {
		ln.Close()
		<-ln.Done()
	}
	w.pool.Close(reason.Draining)
	w.server.Close(reason.Draining)
	_ = w.appListener.Close()
	w.apps.Wait()
	w.settle() // what Close asked for has been done: no dial begins any more
	w.pool.dials.Wait()
	w.settle()
	// Lingering resets end within a second; loops are closed after them. A loop
	// has two descriptors.
	eventually(w.tb, "descriptors are closed", func() bool {
		return openFiles(w.tb) <= before+2*(w.near.Len()+w.far.Len())
	})
	w.near.Close()
	w.far.Close()
	eventually(w.tb, "all descriptors are closed", func() bool { return openFiles(w.tb) <= before })
	if w.tb.Failed() {
		w.tb.Log("open:", descriptors(w.tb))
	}
}

// settle waits until the loops have done what was posted to them.
func (w *world) settle() {
	for _, g := range []*poll.Group{w.near, w.far} {
		for i := range g.Len() {
			done := make(chan struct{})
			g.Loop(i).Post(func() { close(done) })
			<-done
		}
	}
}

// openFiles counts what is open, without pipes: loops keep some, and the test
// binary has its own.
func openFiles(tb testing.TB) int {
	n := 0
	for _, d := range descriptors(tb) {
		if !strings.Contains(d, " pipe:") {
			n++
		}
	}
	return n
}

// descriptors lists what the process has open.
func descriptors(tb testing.TB) []string {
	d, err := os.ReadDir("/proc/self/fd")
	check(tb, err)
	var l []string
	for _, e := range d {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // not the directory's own
			l = append(l, e.Name()+" "+to)
		}
	}
	return l
}

// eventually polls for what no event announces.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			tb.Errorf("not in %s: %s", patience, what)
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// connect opens an application connection through the tunnel.
func (w *world) connect() *net.TCPConn {
	w.tb.Helper()
	c, err := net.DialTCP("tcp", nil, w.entry.(*net.TCPAddr))
	check(w.tb, err)
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// connectDoomed is connect for a connection that may be reset before the
// dialling program sees it made.
func (w *world) connectDoomed() io.Closer {
	c, err := net.DialTCP("tcp", nil, w.entry.(*net.TCPAddr))
	if err != nil {
		return io.NopCloser(nil)
	}
	return c
}

func get[T any](tb testing.TB, ch <-chan T, what string) T {
	tb.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		tb.Fatalf("not in %s: %s", patience, what)
		panic("unreachable")
	}
}
