// Package h2test drives an h2.Conn over a net.Conn with goroutines and locks,
// so that tests can let the engine talk to foreign implementations. It is for
// tests alone: the data plane runs the engine on event loops.
package h2test

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

// Driver carries bytes between one h2.Conn and one net.Conn.
type Driver struct {
	nc   net.Conn
	done chan struct{} // closed when the net.Conn is
	gone chan struct{} // closed when nothing more can be read

	mu   sync.Mutex // guards conn and what its Handler keeps
	conn *h2.Conn

	outMu  sync.Mutex // guards out and closed
	more   *sync.Cond
	out    []byte
	closed bool
}

// Start drives a new connection over nc until either side ends it. The
// Handler is called with the Driver's lock held.
func Start(nc net.Conn, cfg h2.Config, handler func(*h2.Conn) h2.Handler) *Driver {
	d := &Driver{nc: nc, done: make(chan struct{}), gone: make(chan struct{})}
	d.more = sync.NewCond(&d.outMu)
	late := &lateHandler{}
	d.conn = h2.New(cfg, late)
	late.Handler = handler(d.conn)
	d.Do(func(*h2.Conn) {}) // what New left in Output
	go d.write()
	go d.read()
	return d
}

// lateHandler breaks the circle between a Conn and a Handler that needs it.
type lateHandler struct{ h2.Handler }

// Do runs f with the connection to itself, then sends what came of it.
func (d *Driver) Do(f func(*h2.Conn)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.conn)
	b := d.conn.Output()
	d.outMu.Lock()
	d.out = append(d.out, b...)
	d.closed = d.closed || d.conn.Err() != nil
	d.outMu.Unlock()
	d.conn.Wrote(len(b))
	d.more.Signal()
}

// Done is closed when the connection has ended.
func (d *Driver) Done() <-chan struct{} { return d.done }

// Close ends the connection and its streams.
func (d *Driver) Close() {
	d.Do(func(c *h2.Conn) { c.GoAway(h2.NoError, "") })
	<-d.done
}

func (d *Driver) read() {
	defer close(d.gone)
	buf := make([]byte, 64<<10)
	for {
		n, err := d.nc.Read(buf)
		d.Do(func(c *h2.Conn) {
			if n > 0 {
				_ = c.Receive(time.Now(), buf[:n]) // ends d by c.Err
			}
			if err != nil && c.Err() == nil {
				c.Close(h2.ConnectError)
			}
		})
		if err != nil {
			return
		}
	}
}

// linger is how long the peer may take to close after our GOAWAY: closing
// with bytes unread would have the kernel destroy it on the way.
const linger = 2 * time.Second

func (d *Driver) write() {
	defer close(d.done)
	defer func() { _ = d.nc.Close() }()
	for {
		d.outMu.Lock()
		for len(d.out) == 0 && !d.closed {
			d.more.Wait()
		}
		b, closed := d.out, d.closed
		d.out = nil
		d.outMu.Unlock()
		if _, err := d.nc.Write(b); err != nil {
			return
		}
		if closed {
			if halfClose(d.nc) == nil && d.nc.SetReadDeadline(time.Now().Add(linger)) == nil {
				<-d.gone
			}
			return
		}
	}
}

func halfClose(nc net.Conn) error {
	if t, ok := nc.(interface{ CloseWrite() error }); ok {
		return t.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Responder is a Handler for servers that answers every request with status
// 200 and Body once the request is complete.
type Responder struct {
	Conn *h2.Conn
	Body []byte
}

// OnHeaders implements h2.Handler.
func (r *Responder) OnHeaders(s *h2.Stream, _ *h2.Header, end bool) {
	if end {
		r.answer(s)
	}
}

// OnData implements h2.Handler.
func (r *Responder) OnData(s *h2.Stream, p []byte, end bool) {
	r.Conn.Consumed(s, len(p))
	if end {
		r.answer(s)
	}
}

func (r *Responder) answer(s *h2.Stream) {
	if r.Conn.Respond(s, &h2.Header{Status: 200}, len(r.Body) == 0) == nil {
		s.User = r.Body
		r.OnWritable(s)
	}
}

// OnWritable implements h2.Handler.
func (r *Responder) OnWritable(s *h2.Stream) {
	rest, _ := s.User.([]byte)
	for len(rest) > 0 {
		n := min(r.Conn.SendQuota(s), len(rest))
		if n == 0 {
			break
		}
		r.Conn.AppendData(s, rest[:n], n == len(rest))
		rest = rest[n:]
	}
	s.User = rest
}

// OnReset implements h2.Handler.
func (r *Responder) OnReset(s *h2.Stream, _ h2.ErrCode) { r.Conn.Release(s) }

// OnGoAway implements h2.Handler.
func (r *Responder) OnGoAway(uint32, h2.ErrCode, []byte) {}

// OnSettings implements h2.Handler.
func (r *Responder) OnSettings() {}

// OnPong implements h2.Handler.
func (r *Responder) OnPong([8]byte) {}
