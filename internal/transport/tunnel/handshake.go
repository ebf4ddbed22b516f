package tunnel

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	bytestream "github.com/ambit-mesh/ambit/internal/transport/stream"
)

// MaxRecord is the most plaintext one TLS record carries (RFC 8446, 5.1).
const MaxRecord = 16 << 10

// wire is the net.Conn below crypto/tls. During the handshake it blocks the
// handshake's goroutine, on a duplicate of the descriptor that the runtime
// polls. Afterwards it never touches the socket: Read hands out what the loop
// has read, Write gathers what the loop is going to write, all of it, so that
// crypto/tls never sees a write that would block.
type wire struct {
	file *os.File // nil once the handshake is over
	fd   int      // file's, for reads that do not wait
	gate Gate     // nil: reads wait at once
	// block is what a handshake inside of another tunnel runs on, instead of file.
	block *bytestream.Blocking
	in    []byte // read from the socket, not taken yet
	end   bool   // nothing comes after in
	out   []byte // to be written to the socket

	secrets *record.Secrets // during a handshake that may be taken over
	bounds  bounds
}

// Gate is called when a handshake waits for the peer, and when that is over.
type Gate interface {
	// Asks is called before a read waits; Answered after it. An error ends the
	// handshake.
	Asks(f *os.File) error
	Answered() error
}

// Security is how a tunnel is protected.
type Security struct {
	Config *tls.Config // of a server: its GetConfigForClient returns what Tuned returned
	Server bool
	// LibraryRecords has crypto/tls protect the records, too, instead of package record.
	LibraryRecords bool
}

// Handshake shakes hands on fd, blocking, and returns a Link that is ready for a loop.
// fd is the caller's until a tunnel starts on the Link. g may be nil.
func Handshake(ctx context.Context, fd int, g Gate, s Security) (Link, error) {
	dup, err := poll.Dup(fd)
	if err != nil {
		return Link{}, err
	}
	f := os.NewFile(uintptr(dup), "tunnel")
	w := &wire{file: f, fd: dup, gate: g}
	defer func() { _ = f.Close(); w.file, w.gate = nil, nil }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := f.SetDeadline(deadline); err != nil {
			return Link{}, err
		}
	}
	// Close would wake the handshake too, but Close of a file whose number is
	// then used again is what everybody gets wrong; a deadline in the past is
	// enough.
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	conn := w.begin(s)
	err = conn.Handshake()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	k := Link{fd: fd, wire: w}
	w.finish(&k, conn, !s.Server, err == nil)
	if err != nil {
		return Link{}, err
	}
	return k, nil
}

// HandshakeInside is the same for the client's side on a stream of another tunnel, which
// b makes blocking. On error the stream is still the caller's.
func HandshakeInside(ctx context.Context, b *bytestream.Blocking, under bytestream.Conn, s Security) (Link, error) {
	w := &wire{block: b}
	conn := w.begin(s)
	err := conn.HandshakeContext(ctx)
	k := Link{fd: -1, under: under, wire: w}
	w.finish(&k, conn, !s.Server, err == nil)
	if err != nil {
		return Link{}, err
	}
	return k, nil
}

// begin returns the end of crypto/tls for a handshake on w.
func (w *wire) begin(s Security) *tls.Conn {
	if !s.LibraryRecords && record.Usable() {
		w.secrets = &record.Secrets{}
	}
	if s.Server {
		return tls.Server(w, s.Config)
	}
	return tls.Client(w, Tuned(s.Config, w))
}

// finish ends a handshake. When everything fits, package record has the connection from
// here on, otherwise crypto/tls goes on.
func (w *wire) finish(k *Link, conn *tls.Conn, client bool, ok bool) {
	w.in = w.bounds.rest()
	if w.secrets != nil {
		defer func() { w.secrets.Forget(); w.secrets = nil }()
	}
	if !ok {
		return
	}
	state := conn.ConnectionState()
	k.state, k.conn = &state, conn
	if w.secrets == nil || w.bounds.inside() {
		return
	}
	if rec, ok := record.New(&state, w.secrets, client); ok {
		k.rec, k.conn = rec, nil
	}
}

// Tuned is conf as a tunnel on c needs it, the net.Conn of its handshake. No tickets:
// nothing must follow the handshake that the loop would have to answer. A resumed session
// would skip verification. The record of a ticket would use the first nonce of package
// record. The secrets of a connection go to that connection alone.
func Tuned(conf *tls.Config, c net.Conn) *tls.Config {
	w, _ := c.(*wire)
	take := w != nil && w.secrets != nil && conf.KeyLogWriter == nil
	if conf.DynamicRecordSizingDisabled && conf.SessionTicketsDisabled && !take {
		return conf
	}
	conf = conf.Clone()
	conf.DynamicRecordSizingDisabled = true
	conf.SessionTicketsDisabled = true
	if take {
		conf.KeyLogWriter = w.secrets
	}
	return conf
}

// Read implements net.Conn.
func (w *wire) Read(p []byte) (int, error) {
	if w.file != nil || w.block != nil {
		return w.handshakeRead(p)
	}
	if len(w.in) == 0 {
		if w.end {
			return 0, io.EOF
		}
		return 0, bytestream.ErrDry
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	return n, nil
}

// handshakeRead hands crypto/tls no more than the rest of one record: what follows the
// handshake stays here.
func (w *wire) handshakeRead(p []byte) (int, error) {
	p = p[:min(len(p), w.bounds.next())]
	n, err := w.fill(p)
	w.bounds.passed(p[:n])
	return n, err
}

// fill waits for bytes, and has the gate know of it. What comes at once is read ahead.
func (w *wire) fill(p []byte) (int, error) {
	if w.block != nil {
		return w.block.Read(p)
	}
	n, err := w.bounds.read(w.fd, p)
	switch {
	case err == nil && n > 0:
		return n, nil
	case !poll.IsAgain(err):
		return w.file.Read(p) // the end or an error, in the form that crypto/tls expects
	case w.gate == nil:
		return w.file.Read(p)
	}
	if err := w.gate.Asks(w.file); err != nil {
		return 0, err
	}
	n, err = w.file.Read(p)
	if gerr := w.gate.Answered(); err == nil && gerr != nil {
		return 0, gerr
	}
	return n, err
}

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	if w.secrets != nil {
		w.secrets.Sent(p)
	}
	if w.file != nil {
		return w.file.Write(p)
	}
	if w.block != nil {
		return w.block.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

// Close implements net.Conn; the descriptor is the tunnel's. A handshake on a stream
// ends by it.
func (w *wire) Close() error {
	if w.block != nil {
		return w.block.Close()
	}
	return nil
}

// LocalAddr implements net.Conn; nobody needs it.
func (w *wire) LocalAddr() net.Addr { return noAddr{} }

// RemoteAddr implements net.Conn; nobody needs it.
func (w *wire) RemoteAddr() net.Addr { return noAddr{} }

// SetDeadline implements net.Conn: on a loop nothing waits.
func (w *wire) SetDeadline(t time.Time) error {
	if f := w.file; f != nil {
		return f.SetDeadline(t)
	}
	return nil
}

// SetReadDeadline implements net.Conn.
func (w *wire) SetReadDeadline(t time.Time) error { return w.SetDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (w *wire) SetWriteDeadline(t time.Time) error { return w.SetDeadline(t) }

type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return netip.AddrPort{}.String() }
