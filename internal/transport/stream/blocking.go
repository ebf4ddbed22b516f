package stream

import (
	"io"
	"net"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Blocking is a Conn as a net.Conn for one goroutine, for as long as a TLS handshake
// takes. Read and Write are called on that goroutine; what they do to the Conn is
// posted to its loop.
type Blocking struct {
	under Conn
	more  chan struct{} // has an element when what mu guards has changed

	mu  sync.Mutex // guards what follows
	in  []byte     // arrived and not read; the window of the Conn bounds it
	end bool       // nothing comes after in
	err error      // why the Conn ended, or the reason to stop
}

// Block binds a Blocking to c. It is called on the loop of c.
func Block(c Conn) *Blocking {
	b := &Blocking{under: c, more: make(chan struct{}, 1)}
	c.Bind(b)
	return b
}

// Release ends the use by the goroutine and returns what it has not read, and
// whether the peer's end of stream follows. An error says that the Conn has ended. It
// is called on the loop. The credit for rest is the caller's to give back.
func (b *Blocking) Release() (rest []byte, end bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rest, b.in = b.in, nil
	if b.err == nil {
		b.err = net.ErrClosed
	} else {
		err = b.err
	}
	return rest, b.end, err
}

func (b *Blocking) update(f func()) {
	b.mu.Lock()
	f()
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// OnData implements Sink.
func (b *Blocking) OnData(p []byte, end bool) {
	b.update(func() { b.in, b.end = append(b.in, p...), end })
}

// OnWritable implements Sink. What a handshake writes is little.
func (b *Blocking) OnWritable() {}

// OnClose implements Sink.
func (b *Blocking) OnClose(why reason.Reason, err error) {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	b.stop(&reason.Error{Reason: why, Err: err})
}

func (b *Blocking) stop(err error) {
	b.update(func() {
		if b.err == nil {
			b.err = err
		}
	})
}

// Read implements net.Conn. Bytes that arrived before an error are read first.
func (b *Blocking) Read(p []byte) (int, error) {
	for {
		n, err := b.take(p)
		if n > 0 {
			b.under.Loop().Post(func() { b.under.Consumed(n) })
		}
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-b.more:
		case <-b.under.Loop().Done():
			return 0, net.ErrClosed
		}
	}
}

func (b *Blocking) take(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case len(b.in) > 0:
		n := copy(p, b.in)
		b.in = b.in[n:]
		return n, nil
	case b.err != nil:
		return 0, b.err
	case b.end:
		return 0, io.EOF
	}
	return 0, nil
}

// Write implements net.Conn.
func (b *Blocking) Write(p []byte) (int, error) {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	q := append([]byte(nil), p...)
	if !b.under.Loop().Post(func() { b.under.Write(q) }) {
		return 0, net.ErrClosed
	}
	return len(p), nil
}

// Close implements net.Conn: it ends a Read that waits. The Conn is not closed.
func (b *Blocking) Close() error {
	b.stop(net.ErrClosed)
	return nil
}

// LocalAddr implements net.Conn.
func (b *Blocking) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(b.under.Info().Local) }

// RemoteAddr implements net.Conn.
func (b *Blocking) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(b.under.Info().Remote) }

// SetDeadline implements net.Conn. A handshake is bounded by its context.
func (b *Blocking) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn.
func (b *Blocking) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn.
func (b *Blocking) SetWriteDeadline(time.Time) error { return nil }
