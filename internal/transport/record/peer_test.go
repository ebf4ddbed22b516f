package record

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

var certificate = sync.OnceValues(func() (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
})

// config is for both ends.
func config(tb testing.TB) *tls.Config {
	tb.Helper()
	c, err := certificate()
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c}, InsecureSkipVerify: true,
		SessionTicketsDisabled: true, ClientAuth: tls.RequireAnyClientCert, DynamicRecordSizingDisabled: true,
	}
}

// dry is the error of a read that would wait, for which crypto/tls can try again.
type dry struct{}

func (dry) Error() string   { return "nothing there" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

// pipe is one direction of a connection in memory.
type pipe struct {
	mu   sync.Mutex
	more sync.Cond
	b    []byte
	end  bool
	dry  bool // reads do not wait
}

func newPipe() *pipe {
	p := &pipe{}
	p.more.L = &p.mu
	return p
}

// wire is one end of a connection in memory. exact has reads return no more than the
// rest of a record, as a tunnel does.
type wire struct {
	net.Conn
	in, out *pipe
	exact   bool
	left    int // of the record
	secrets *Secrets
}

func wires() (a, b *wire) {
	p, q := newPipe(), newPipe()
	return &wire{in: p, out: q}, &wire{in: q, out: p}
}

func (w *wire) Write(p []byte) (int, error) {
	if w.secrets != nil {
		w.secrets.Sent(p)
	}
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	w.out.b = append(w.out.b, p...)
	w.out.more.Signal()
	return len(p), nil
}

func (w *wire) Close() error {
	w.out.mu.Lock()
	defer w.out.mu.Unlock()
	w.out.end = true
	w.out.more.Signal()
	return nil
}

func (w *wire) Read(p []byte) (int, error) {
	in := w.in
	in.mu.Lock()
	defer in.mu.Unlock()
	least := 1
	if w.exact && w.left == 0 {
		least = HeaderLen
	}
	for len(in.b) < least {
		if in.end {
			return 0, io.EOF
		}
		if in.dry {
			return 0, dry{}
		}
		in.more.Wait()
	}
	if w.exact {
		if w.left == 0 {
			w.left = HeaderLen + int(in.b[3])<<8 + int(in.b[4])
		}
		p = p[:min(len(p), w.left)]
	}
	n := copy(p, in.b)
	in.b = in.b[n:]
	if w.exact {
		w.left -= n
	}
	return n, nil
}

func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// take empties what has arrived.
func (w *wire) take() []byte {
	w.in.mu.Lock()
	defer w.in.mu.Unlock()
	b := w.in.b
	w.in.b = nil
	return b
}

// shake makes a handshake whose near end may be taken over.
func shake(tb testing.TB, client bool, mine, peer *tls.Config) (near *tls.Conn, s *Secrets, w *wire, far *tls.Conn) {
	tb.Helper()
	a, b := wires()
	s = &Secrets{}
	a.exact, a.secrets = true, s
	mine = mine.Clone()
	mine.KeyLogWriter = s
	if client {
		near, far = tls.Client(a, mine), tls.Server(b, peer)
	} else {
		near, far = tls.Server(a, mine), tls.Client(b, peer)
	}
	done := make(chan error, 1)
	go func() {
		err := far.Handshake()
		if err != nil {
			_ = b.Close()
		}
		done <- err
	}()
	err := near.Handshake()
	if err != nil {
		_ = a.Close()
	}
	if ferr := <-done; err != nil || ferr != nil {
		tb.Fatal(err, ferr)
	}
	a.in.dry, a.out.dry = true, true
	return near, s, a, far
}

// pair is a connection whose near end was taken over, and whose far end is crypto/tls.
func pair(tb testing.TB, client bool) (*Conn, *wire, *tls.Conn) {
	tb.Helper()
	near, s, w, far := shake(tb, client, config(tb), config(tb))
	state := near.ConnectionState()
	c, ok := New(&state, s, client)
	if !ok {
		tb.Fatal("the connection was not taken over")
	}
	return c, w, far
}

// received reads what crypto/tls has now.
func received(far *tls.Conn) ([]byte, error) {
	var all []byte
	buf := make([]byte, 40000)
	for {
		n, err := far.Read(buf)
		all = append(all, buf[:n]...)
		if errors.Is(err, dry{}) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// sent is p as a tunnel sends it.
func sent(tb testing.TB, c *Conn, p []byte) []byte {
	tb.Helper()
	var out []byte
	for len(p) > 0 {
		if c.Due() {
			var err error
			if out, err = c.Control(out); err != nil {
				tb.Fatal(err)
			}
		}
		n := min(len(p), MaxPlain)
		out, p = c.Append(out, p[:n]), p[n:]
	}
	return out
}

// mirror is both ends of a connection, made of secrets.
func mirror(tb testing.TB, id uint16) (client, server *Conn) {
	tb.Helper()
	s := suiteOf(id)
	var a, b [maxSecret]byte
	copy(a[:s.secretLen], bytes.Repeat([]byte{1}, maxSecret))
	copy(b[:s.secretLen], bytes.Repeat([]byte{2}, maxSecret))
	client, server = &Conn{client: true, limit: maxRecords}, &Conn{limit: maxRecords}
	for _, err := range []error{client.in.set(s, &a), client.out.set(s, &b), server.in.set(s, &b), server.out.set(s, &a)} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	return client, server
}
