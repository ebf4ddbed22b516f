package door

import (
	"errors"
	"net"
	"sync"
	"time"
)

var (
	errCrowd  = errors.New("too many connections without an authenticated call")
	errWaited = errors.New("too many connections of its network address came to nothing, and it was not its turn in time")
)

// maxLingering bounds the connections that were shed while they were held and are
// still open: descriptors, and some KiB each. A client that opens a new connection
// for each that ends costs less the more of its connections are here.
const maxLingering = 4096

// Listen returns a listener whose connections the Door bounds. They are plain
// when what is read from them is not encrypted. It accepts until it is closed.
func (d *Door) Listen(ln net.Listener, plain bool) net.Listener {
	l := &listener{Listener: ln, door: d, plain: plain, next: make(chan accepted), closed: make(chan struct{})}
	l.accepts.Go(l.accept)
	return l
}

// listener hands connections on when it is their turn.
type listener struct {
	net.Listener
	door    *Door
	plain   bool
	next    chan accepted
	accepts sync.WaitGroup
	once    sync.Once
	closed  chan struct{}
}

type accepted struct {
	conn *Conn
	err  error
}

// accept takes connections from the system.
func (l *listener) accept() {
	for {
		raw, err := l.Listener.Accept()
		if err == nil {
			l.door.enter(raw, l.forward)
			continue
		}
		select {
		case l.next <- accepted{err: err}: // the server waits before it asks again
		case <-l.closed:
			return
		}
	}
}

// forward hands a connection on to the server.
func (l *listener) forward(c *Conn) {
	select {
	case l.next <- accepted{conn: c}:
	case <-l.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case a := <-l.next:
		switch {
		case a.err != nil:
			return nil, a.err
		case l.plain:
			return metered{a.conn, newMeter(a.conn)}, nil
		}
		return a.conn, nil
	}
}

// Close implements net.Listener. Connections that are held end at their time.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	err := l.Listener.Close()
	l.accepts.Wait()
	return err
}

// enter takes a connection in, and sheds another when there are too many. The
// connection is forwarded at once, or when it is the turn of its network address.
func (d *Door) enter(raw net.Conn, forward func(*Conn)) *Conn {
	c := &Conn{Conn: raw, door: d, peer: peerOf(raw.RemoteAddr()), heard: make(chan struct{}), forward: forward}
	c.limit.Store(SmallMessage)
	c.place.conn = c
	now := time.Now()
	d.mu.Lock()
	if d.turns[c.peer] == nil && d.paces.rate.take(d.paces.get(c.peer, now), now) {
		c.place.stage, c.paid = silent, true
	}
	goesOn := c.paid
	victim := d.waiting.add(&c.place, c.peer)
	c.timer = time.AfterFunc(d.opts.Limits.Grace, c.expire)
	if !goesOn {
		d.wait(c.peer, now)
	}
	lingers := victim != nil && d.linger(victim.conn)
	d.mu.Unlock()
	switch {
	case lingers:
		victim.conn.report(Crowd, errCrowd)
	case victim != nil:
		victim.conn.refuse(Crowd, errCrowd)
	}
	if goesOn {
		forward(c)
	}
	return c
}

// wait sets the timer of a network address that has connections which are held.
// The Door is locked.
func (d *Door) wait(peer string, now time.Time) {
	if d.turns[peer] == nil {
		d.turns[peer] = time.AfterFunc(d.paces.rate.next(d.paces.get(peer, now), now), func() { d.turn(peer) })
	}
}

// turn forwards the connection of a network address that has been held for
// longest.
func (d *Door) turn(peer string) {
	now := time.Now()
	d.mu.Lock()
	delete(d.turns, peer)
	p := d.waiting.first(peer)
	if p != nil && !d.paces.rate.take(d.paces.get(peer, now), now) {
		d.wait(peer, now)
		p = nil
	}
	if p != nil {
		p.stage, p.conn.paid = silent, true
		p.conn.timer.Reset(d.opts.Limits.Grace)
		if d.waiting.first(peer) != nil {
			d.wait(peer, now)
		}
	}
	d.mu.Unlock()
	if p != nil {
		p.conn.forward(p.conn)
	}
}

// linger leaves a connection that was shed open for a while, unless too many are
// or a server has it; it reports whether it does. The Door is locked.
func (d *Door) linger(c *Conn) bool {
	if c.place.stage != held || c.closed || d.lingering >= maxLingering {
		return false
	}
	c.lingers = true
	d.lingering++
	c.timer.Reset(d.opts.Limits.Linger)
	return true
}
