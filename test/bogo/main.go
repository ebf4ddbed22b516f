// Command bogo is what BoringSSL's runner of protocol tests (BoGo) starts for each test: a
// TLS 1.3 connection whose handshake is of crypto/tls, and whose records are of package
// record. Flags that have nothing to do with records end it with a code that the runner
// counts as a test that is not implemented.
//
//	go build -o /tmp/bogo ./test/bogo
//	RUNNER -shim-path /tmp/bogo -shim-config $PWD/test/bogo/config.json -allow-unimplemented -loose-errors -pipe -test "$(tr '\n' ';' <test/bogo/tests.txt)"
//
// RUNNER is BoringSSL's ssl/test/runner, compiled, and started in its own folder.
// tests.txt has the patterns of the tests that records decide, and config.json those that
// are not passed, each with the reason. A server of crypto/tls lets a client that prefers ChaCha20 have it, as the
// runner does: these connections are not taken over, and count as not implemented.
package main

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/internal/transport/record/recordtest"
)

// notImplemented is the code that has the runner leave a test out.
const notImplemented = 89

// settings are the runner's flags that this program takes.
type settings struct {
	port, version                          int
	id                                     uint64
	server, ipv6                           bool
	certificate, key                       string
	first, shutsDown, closeNotify, rekeyed bool
}

func main() {
	var s settings
	f := flag.NewFlagSet("bogo", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.IntVar(&s.port, "port", 0, "where the runner listens")
	f.Uint64Var(&s.id, "shim-id", 0, "what the connection begins with")
	f.BoolVar(&s.server, "server", false, "be the server of TLS")
	f.BoolVar(&s.ipv6, "ipv6", false, "the runner listens at ::1")
	f.StringVar(&s.certificate, "cert-file", "", "the server's certificate")
	f.StringVar(&s.key, "key-file", "", "its key")
	f.BoolVar(&s.first, "shim-writes-first", false, "write before the first read")
	f.BoolVar(&s.shutsDown, "shim-shuts-down", false, "end the connection, and read nothing")
	f.BoolVar(&s.closeNotify, "check-close-notify", false, "the peer has to end the connection as the protocol says")
	f.BoolVar(&s.rekeyed, "key-update", false, "change the key after the handshake")
	f.IntVar(&s.version, "max-version", tls.VersionTLS13, "the latest version of TLS")
	_ = f.Int("min-version", 0, "the earliest version of TLS")
	_ = f.Int("expect-version", 0, "the version that the runner expects")
	_ = f.String("trust-cert", "", "who signed the peer's certificate")
	handshaker := f.Bool("is-handshaker-supported", false, "asks for a feature")
	if err := f.Parse(os.Args[1:]); err != nil || f.NArg() > 0 || s.version < tls.VersionTLS13 {
		os.Exit(notImplemented)
	}
	if *handshaker {
		fmt.Println("No")
		return
	}
	if err := s.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bogo:", err)
		os.Exit(1)
	}
}

// patience bounds a connection: the runner has ended long before.
const patience = time.Minute

func (s *settings) run() error {
	host := "127.0.0.1"
	if s.ipv6 {
		host = "::1"
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(s.port)), patience)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the runner has seen all
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, s.id)); err != nil {
		return err
	}
	c, err := s.shake(conn)
	if err != nil {
		return err
	}
	err = s.exchange(c)
	var refused *net.OpError
	if err != nil && !errors.As(err, &refused) {
		_, _ = conn.Write(c.keys.Refuse(nil))
	}
	return err
}

// shake makes the handshake and takes the connection over.
func (s *settings) shake(conn net.Conn) (*records, error) {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, //nolint:gosec // what a certificate is good for is not tested
	}
	if s.certificate != "" {
		pair, err := tls.LoadX509KeyPair(s.certificate, s.key)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	keys, err := recordtest.Handshake(conn, cfg, !s.server)
	if errors.Is(err, recordtest.ErrNotTaken) {
		os.Exit(notImplemented)
	}
	return &records{conn: conn, keys: keys}, err
}

// exchange does what the runner expects of a connection: it sends what it gets back, each
// byte inverted.
func (s *settings) exchange(c *records) error {
	if s.rekeyed {
		out, err := c.keys.Control(nil)
		if err != nil {
			return err
		}
		if _, err := c.conn.Write(out); err != nil {
			return err
		}
	}
	if s.first {
		if err := c.write([]byte("hello")); err != nil {
			return err
		}
	}
	if !s.shutsDown {
		if err := s.echo(c); err != nil {
			return err
		}
	}
	if _, err := c.conn.Write(c.keys.Close(nil)); err != nil {
		return err
	}
	if s.shutsDown && s.closeNotify {
		_, err := c.read()
		if !errors.Is(err, io.EOF) || c.cut {
			return fmt.Errorf("the peer did not end the connection: %w", err)
		}
	}
	return nil
}

func (s *settings) echo(c *records) error {
	for {
		p, err := c.read()
		for i := range p {
			p[i] ^= 0xff
		}
		if werr := c.write(p); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) && (!c.cut || !s.closeNotify) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// records is a connection after its handshake.
type records struct {
	conn net.Conn
	keys *record.Conn
	rest []byte // start of a record
	cut  bool   // the peer went without an alert
}

// read waits for data, and returns it with the error that came behind.
func (c *records) read() ([]byte, error) {
	buf := make([]byte, 2*record.MaxRecord)
	for {
		k := copy(buf, c.rest)
		n, err := c.conn.Read(buf[k:])
		if n == 0 && err != nil {
			c.cut = true
			return nil, err
		}
		plain, rest, err := c.keys.Open(buf[:k+n])
		c.rest = append([]byte(nil), rest...)
		if len(plain) > 0 || err != nil {
			return plain, err
		}
	}
}

func (c *records) write(p []byte) error {
	var out []byte
	for len(p) > 0 {
		if c.keys.Due() {
			var err error
			if out, err = c.keys.Control(out); err != nil {
				return err
			}
		}
		n := min(len(p), record.MaxPlain)
		out, p = c.keys.Append(out, p[:n]), p[n:]
	}
	if len(out) == 0 {
		return nil
	}
	_, err := c.conn.Write(out)
	return err
}
