package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Conn is a connection that a Door bounds.
type Conn struct {
	net.Conn
	door *Door
	peer string

	received atomic.Int64 // bytes while it is not authenticated
	admitted atomic.Bool  // had an authenticated call
	limit    atomic.Int64 // of a message, in bytes
	heard    chan struct{}
	once     sync.Once // of heard

	// The Door's lock guards these.
	place    place
	timer    *time.Timer
	owner    string // set when admitted
	other    bool   // admitted and no node proxy
	refusals int
	reviews  int
	extended bool
	paid     bool // has taken a token of its address
	lingers  bool
	closed   bool
	// forward takes the connection on when it is held no longer.
	forward func(*Conn)
}

// addr is the address of a connection's peer, by which calls find the
// connection.
type addr struct {
	net.Addr
	conn *Conn
}

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return addr{c.Conn.RemoteAddr(), c} }

// fromContext returns the connection of a call, or nil.
func fromContext(ctx context.Context) *Conn {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(addr); ok {
			return a.conn
		}
	}
	return nil
}

// Heard returns a channel that is closed when the connection of a call has
// carried the first bytes of a message; nil when no Door bounds the connection.
func Heard(ctx context.Context) <-chan struct{} {
	if c := fromContext(ctx); c != nil {
		return c.heard
	}
	return nil
}

// Settled lowers what the connection of a call may send in one message to
// SmallMessage.
func Settled(ctx context.Context) {
	if c := fromContext(ctx); c != nil {
		c.limit.Store(SmallMessage)
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.admitted.Load() {
		total := c.received.Add(int64(n))
		if total == int64(n) {
			c.reach(speaking)
		}
		if most := c.door.opts.Limits.Bytes; total > most {
			err := fmt.Errorf("more than %d bytes without an authenticated call", most)
			c.refuse(TooMuch, err)
			return 0, err
		}
	}
	return n, err
}

// reach notes how far an unauthenticated connection has come.
func (c *Conn) reach(s stage) {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	c.place.stage = max(c.place.stage, s)
}

// refuse closes the connection and reports why.
func (c *Conn) refuse(cause Cause, why error) {
	c.report(cause, why)
	_ = c.Close() // the peer learns no more than that
}

// report counts and logs the end of a connection.
func (c *Conn) report(cause Cause, why error) {
	c.door.refused(cause)
	c.door.opts.Logger.Warn("connection closed", "peer", c.Conn.RemoteAddr().String(), "cause", string(cause), "error", why)
}

// expire is called at the end of the time that an unauthenticated connection
// has.
func (c *Conn) expire() {
	d := c.door
	d.mu.Lock()
	over := !c.closed && !c.admitted.Load()
	waited := over && c.place.stage == held && !c.lingers
	if over && !waited && !c.lingers && c.reviews > 0 && !c.extended {
		over, c.extended = false, true
		c.timer.Reset(d.opts.Limits.Grace)
	}
	lingers := c.lingers
	d.mu.Unlock()
	switch {
	case lingers:
		_ = c.Close() // counted and logged when it was shed
	case waited:
		c.refuse(Crowd, errWaited)
	case over:
		c.refuse(Silent, errors.New("no authenticated call in time"))
	}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	d := c.door
	d.mu.Lock()
	if !c.closed {
		c.closed = true
		c.timer.Stop()
		if c.lingers {
			d.lingering--
		}
		d.waiting.remove(&c.place)
		d.disown(c)
	}
	d.mu.Unlock()
	return c.Conn.Close()
}

// Credentials returns credentials that bound what comes out of the connections
// they secure.
func (d *Door) Credentials(inner credentials.TransportCredentials) credentials.TransportCredentials {
	return meteredCredentials{inner}
}

type meteredCredentials struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (m meteredCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := m.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	c, ok := raw.(*Conn)
	if !ok {
		_ = conn.Close() // the error below counts
		return nil, nil, fmt.Errorf("a connection of type %T is not bounded", raw)
	}
	c.reach(secured)
	return metered{conn, newMeter(c)}, info, nil
}

// Clone implements credentials.TransportCredentials.
func (m meteredCredentials) Clone() credentials.TransportCredentials {
	return meteredCredentials{m.TransportCredentials.Clone()}
}
