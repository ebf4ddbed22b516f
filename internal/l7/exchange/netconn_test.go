package exchange_test

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// netConn is a stream.Conn as a net.Conn, for goroutines.
type netConn struct {
	s    stream.Conn
	mu   sync.Mutex
	cond *sync.Cond

	in      []byte
	end     bool // the peer sends no more
	full    bool // Write reported false
	closed  bool // OnClose, or Close
	err     error
	readDL  time.Time
	writeDL time.Time
}

// newNetConn binds itself to s, on its loop.
func newNetConn(s stream.Conn) *netConn {
	c := &netConn{s: s}
	c.cond = sync.NewCond(&c.mu)
	s.Bind(c)
	return c
}

func (c *netConn) OnData(p []byte, end bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in = append(c.in, p...)
	c.end = c.end || end
	c.cond.Broadcast()
}

func (c *netConn) OnWritable() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.full = false
	c.cond.Broadcast()
}

func (c *netConn) OnClose(why reason.Reason, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if why != reason.OK {
		c.err = errors.New("connection was reset: " + why.String())
	}
	c.cond.Broadcast()
}

func (c *netConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.in) == 0 && !c.end && !c.closed && !past(c.readDL) {
		c.cond.Wait()
	}
	switch {
	case len(c.in) > 0:
		n := copy(p, c.in)
		c.in = c.in[n:]
		c.s.Loop().Post(func() { c.s.Consumed(n) })
		return n, nil
	case c.err != nil:
		return 0, c.err
	case c.end || c.closed:
		return 0, io.EOF
	}
	return 0, os.ErrDeadlineExceeded
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (c *netConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.full && !c.closed && !past(c.writeDL) {
		c.cond.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closed:
		return 0, net.ErrClosed
	case c.full:
		return 0, os.ErrDeadlineExceeded
	}
	b := append([]byte(nil), p...)
	c.full = true
	if !c.s.Loop().Post(func() {
		ok := c.s.Write(b)
		c.mu.Lock()
		defer c.mu.Unlock()
		if ok {
			c.full = false
			c.cond.Broadcast()
		}
	}) {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

// CloseWrite ends the own direction.
func (c *netConn) CloseWrite() error {
	c.s.Loop().Post(c.s.CloseWrite)
	return nil
}

// Close closes as the kernel does: what was written is delivered, what comes is
// dropped.
func (c *netConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.cond.Broadcast()
	c.s.Loop().Post(func() {
		c.s.CloseWrite()
		c.s.Bind(&drain{c.s})
	})
	return nil
}

// lost ends a connection whose loop has ended.
func (c *netConn) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cond.Broadcast()
}

// Reset cuts the connection.
func (c *netConn) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cond.Broadcast()
	c.s.Loop().Post(func() { c.s.Abort(reason.DownstreamReset) })
}

// drain drops what comes, and resets a peer that goes on sending.
type drain struct{ s stream.Conn }

func (d *drain) OnData(p []byte, _ bool) {
	if len(p) > 0 {
		d.s.Abort(reason.DownstreamReset)
	}
}
func (d *drain) OnWritable()                  {}
func (d *drain) OnClose(reason.Reason, error) {}

type addr struct{}

func (addr) Network() string { return "stream" }
func (addr) String() string  { return "127.0.0.1:1" }

func (c *netConn) LocalAddr() net.Addr  { return addr{} }
func (c *netConn) RemoteAddr() net.Addr { return addr{} }

func (c *netConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *netConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDL = t
	c.wakeAt(t)
	return nil
}

func (c *netConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeDL = t
	c.wakeAt(t)
	return nil
}

func (c *netConn) wakeAt(t time.Time) {
	c.cond.Broadcast()
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), c.cond.Broadcast)
	}
}

// listener accepts netConns.
type listener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newListener() *listener {
	return &listener{ch: make(chan net.Conn, 10000), done: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return addr{} }

// onLoop runs f on a loop and returns what it returned.
func onLoop[T any](l *poll.Loop, f func() T) T {
	ch := make(chan T, 1)
	if !l.Post(func() { ch <- f() }) {
		var zero T
		return zero
	}
	return <-ch
}
