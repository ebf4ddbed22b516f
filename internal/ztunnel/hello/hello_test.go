package hello

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// first is a ClientHello for the name a.b, without what servers need and this does not.
var first = "\x16\x03\x01\x00\x3b\x01\x00\x00\x37\x03\x03" + strings.Repeat("r", 32) + "\x00\x00\x02\x13\x01\x01\x00\x00\x0c\x00\x00\x00\x08\x00\x06\x00\x00\x03a.b"

type result struct {
	opening.Opening
	err  *reason.Error
	left string // in the socket
}

// world reads the beginnings of connections to an address.
type world struct {
	t       *testing.T
	node    *Node
	pod     *Pod
	at      string
	results chan result
}

func newWorld(t *testing.T, plain bool) *world {
	t.Helper()
	g, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, node: &Node{}, pod: &Pod{}, results: make(chan result, 2*MaxEach)}
	fd, err := sockopt.Listen(netip.MustParseAddrPort("127.0.0.1:0"), sockopt.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addr, err := sockopt.LocalAddr(fd)
	if err != nil {
		t.Fatal(err)
	}
	w.at = addr.String()
	ln, err := poll.Listen(g, fd, func(l *poll.Loop, fd int, _ netip.AddrPort) {
		w.pod.Read(w.node, l, fd, "shop", plain, func(o opening.Opening, err *reason.Error) {
			buf := make([]byte, 1<<16)
			n, _ := poll.Read(fd, buf)
			poll.ResetFD(fd)
			w.results <- result{o, err, string(buf[:max(n, 0)])}
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		<-ln.Done()
		g.Close()
	})
	return w
}

func (w *world) dial(text string) *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.at)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil // refused before this has noticed that it is connected
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write([]byte(text)); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		w.t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// waiting waits until so many connections are waited for.
func (w *world) waiting(n int) {
	w.t.Helper()
	for over := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		w.pod.mu.Lock()
		have := len(w.pod.waiting)
		w.pod.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(over) {
			w.t.Fatalf("%d connections are waited for, and not %d", have, n)
		}
	}
}

func (w *world) result() result {
	w.t.Helper()
	select {
	case r := <-w.results:
		return r
	case <-time.After(20 * time.Second):
		w.t.Fatal("no result")
		return result{}
	}
}

// TestRead: the name is read however the message is divided, and all bytes are left to
// whatever carries the connection.
func TestRead(t *testing.T) {
	w := newWorld(t, true)
	want := opening.Opening{Seen: true, TLS: true, Name: "a.b"}
	w.dial(first)
	if r := w.result(); r.err != nil || r.Opening != want || r.left != first {
		t.Errorf("whole: %+v", r)
	}
	c := w.dial(first[:1])
	for i := range first[1:] {
		if _, err := c.Write([]byte(first[i+1 : i+2])); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.result(); r.err != nil || r.Opening != want || r.left != first {
		t.Errorf("in bytes: %+v", r)
	}
	w.dial("EHLO a\r\n")
	if r := w.result(); r.err != nil || r.Opening != opening.Silent {
		t.Errorf("no TLS: %+v", r)
	}
	w.dial("")
	if r := w.result(); r.err != nil || r.Opening != opening.Silent {
		t.Errorf("silent: %+v", r)
	}
	if err := w.dial(first[:20]).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if r := w.result(); r.err != nil || !r.Broken {
		t.Errorf("cut: %+v", r)
	}
	if len(w.node.taken) > 0 || len(w.pod.waiting) > 0 {
		t.Errorf("held after the end: %v, %d", w.node.taken, len(w.pod.waiting))
	}
}

// TestBound: connections that do not go on are bounded for each namespace, and the end of
// the pod ends them all.
func TestBound(t *testing.T) {
	w := newWorld(t, false)
	for range MaxEach + 1 {
		w.dial(first[:1])
	}
	if r := w.result(); r.err == nil || r.err.Reason != reason.ResourceExhausted {
		t.Fatalf("one too many: %+v", r)
	}
	w.dial("")
	if r := w.result(); r.err == nil || r.err.Reason != reason.ResourceExhausted {
		t.Fatalf("another: %+v", r)
	}
	if !w.node.enter("market") {
		t.Error("another namespace has no place")
	}
	w.node.leave("market")
	w.pod.Close()
	for range MaxEach {
		if r := w.result(); r.err == nil || r.err.Reason != reason.WorkloadRemoved {
			t.Fatalf("at the end: %+v", r)
		}
	}
	w.dial("")
	if r := w.result(); r.err == nil || r.err.Reason != reason.WorkloadRemoved {
		t.Errorf("after the end: %+v", r)
	}
	if len(w.node.taken) > 0 || len(w.pod.waiting) > 0 {
		t.Errorf("held after the end: %v, %d", w.node.taken, len(w.pod.waiting))
	}
}

// TestGone: a client that resets is no client without TLS.
func TestGone(t *testing.T) {
	w := newWorld(t, false)
	c := w.dial(first[:1])
	w.waiting(1)
	if err := c.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if r := w.result(); r.err == nil || r.err.Reason != reason.DownstreamReset {
		t.Errorf("%+v, error %v", r, r.err)
	}
}
