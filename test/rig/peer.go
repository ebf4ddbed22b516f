package rig

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// This file is a second implementation of HBONE, over net/http2: what a
// waypoint, a foreign proxy or an attacker would speak.

// Authority is a copy of the mesh's certificate authority. It signs for any
// trust domain, which the real one does not.
func (w *World) Authority(trustDomain string) *ca.Authority {
	w.t.Helper()
	state, err := os.ReadFile(filepath.Join(w.StateDir(), "ambitd", "ca-state.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca-state.json"), state, 0o600); err != nil {
		w.t.Fatal(err)
	}
	a, err := ca.Open(ca.Config{StateDir: dir, TrustDomain: trustDomain})
	if err != nil {
		w.t.Fatalf("copying the CA: %v", err)
	}
	w.t.Cleanup(func() { _ = a.Close() })
	return a
}

// Bundle is a certificate of the mesh's authority, for whoever asks.
func (w *World) Bundle(spiffe string) *mtls.Bundle {
	w.t.Helper()
	id, err := identity.Parse(spiffe)
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.Authority(id.TrustDomain).Sign(id, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := mtls.NewBundle(id, key, chain)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// Netns opens the namespace of a pod or node for the length of the test.
func (w *World) Netns(in lab.Where) *netns.NS {
	w.t.Helper()
	f, err := w.Lab.Netns(w.ctx, in)
	if err != nil {
		w.t.Fatal(err)
	}
	ns, err := netns.FromFile(f)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Listen listens in a pod, as a program of it would.
func (w *World) Listen(in lab.Where, address string) net.Listener {
	w.t.Helper()
	ns := w.Netns(in)
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		w.t.Fatalf("listening in %s: %v", in, err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	return l
}

// Tunnel is the client's side of an HBONE connection.
type Tunnel struct {
	conn net.Conn
	h2   *http2.ClientConn //nolint:staticcheck // deprecated only in favour of newer functions of net/http
}

// Tunnel opens one from a pod, as whoever the bundle says; a bundle without a
// certificate is nobody. The server must be expect.
func (w *World) Tunnel(from lab.Where, to netip.AddrPort, as *mtls.Bundle, expect string) (*Tunnel, error) {
	conn, err := w.Dial(w.ctx, from, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // an attacker accepts any server; the identity is checked below
	}
	if len(as.Cert.Certificate) > 0 {
		conf.Certificates = []tls.Certificate{as.Cert}
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(w.ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	cs := tc.ConnectionState()
	if peer, err := mtls.PeerIdentity(&cs); err != nil || peer.String() != expect {
		w.t.Errorf("%s is %s, and not %s: %v", to, peer, expect, err)
	}
	return w.TunnelOn(tc)
}

// TunnelOn is Tunnel on a connection whose handshake is over. It ends with the test.
func (w *World) TunnelOn(conn net.Conn) (*Tunnel, error) {
	h, err := (&http2.Transport{}).NewClientConn(conn) //nolint:staticcheck // as Tunnel.h2
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return &Tunnel{conn: conn, h2: h}, nil
}

// MustTunnel is Tunnel that must work.
func (w *World) MustTunnel(from lab.Where, to netip.AddrPort, as *mtls.Bundle, expect string) *Tunnel {
	w.t.Helper()
	t, err := w.Tunnel(from, to, as, expect)
	if err != nil {
		w.t.Fatalf("tunnel from %s to %s as %s: %v", from, to, as.Identity, err)
	}
	return t
}

// Takes reports whether the tunnel takes new streams: the server has not sent GOAWAY.
func (t *Tunnel) Takes() bool { return t.h2.CanTakeNewRequest() }

// Stream is one connection through a tunnel.
type Stream struct {
	io.Reader
	up   *io.PipeWriter
	Head http.Header
}

func (s *Stream) Write(p []byte) (int, error) { return s.up.Write(p) }

// CloseWrite ends the direction to the server.
func (s *Stream) CloseWrite() error { return s.up.Close() }

// Open asks for a connection to authority. The status is the server's answer;
// there is a stream when it is 200.
func (t *Tunnel) Open(method, authority string, head http.Header) (*Stream, int, error) {
	r, up := io.Pipe()
	if head == nil {
		head = http.Header{}
	}
	resp, err := t.h2.RoundTrip(&http.Request{
		Method: method, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: head, Body: r, ContentLength: -1,
	})
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		_ = up.Close()
		return nil, resp.StatusCode, nil
	}
	return &Stream{Reader: resp.Body, up: up, Head: resp.Header}, resp.StatusCode, nil
}

// Exchange sends one line through the stream and wants it back.
func (s *Stream) Exchange(line string) error {
	if _, err := io.WriteString(s, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(s).ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("sent %q, got %q", line, got)
	}
	return err
}

// Seen is one request that a Waypoint got.
type Seen struct {
	Method, Authority string
	Peer              identity.Identity
	Remote, Local     netip.AddrPort
	Header            http.Header
}

// Waypoint is an HBONE server in a pod, on the tunnel's own port. It stands
// for a waypoint, or for whatever else claims to be one.
type Waypoint struct {
	w  *World
	in lab.Where
	as *mtls.Bundle
	// next is where an authority leads: a pod's tunnel, and what to ask it for.
	next func(authority string) (hbone netip.AddrPort, target, expect string)
	// pass is where bytes go as they are, of a gateway.
	pass func(authority string) netip.AddrPort

	mu    sync.Mutex
	seen  []Seen // guarded by mu
	open  map[net.Conn]struct{}
	quiet func() // closes the listener
}

// Waypoint starts one for the length of the test. Without next it accepts
// every request and sends back what it gets.
func (w *World) Waypoint(in lab.Where, as *mtls.Bundle, next func(authority string) (hbone netip.AddrPort, target, expect string)) *Waypoint {
	w.t.Helper()
	p := &Waypoint{w: w, in: in, as: as, next: next}
	p.listen()
	return p
}

// Gateway starts the gateway of a network for the length of the test: it ends
// the outer one of two tunnels, and passes what is in it on to where its
// authority leads, as it is.
func (w *World) Gateway(in lab.Where, as *mtls.Bundle, pass func(authority string) netip.AddrPort) *Waypoint {
	w.t.Helper()
	p := &Waypoint{w: w, in: in, as: as, pass: pass}
	p.listen()
	return p
}

func (p *Waypoint) listen() {
	p.w.t.Helper()
	p.open = map[net.Conn]struct{}{}
	l := p.w.Listen(p.in, ":15008")
	p.quiet = func() { _ = l.Close() }
	conf := mtls.Server(func() (*mtls.Bundle, error) { return p.as, nil })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(tls.Server(c, conf))
		}
	}()
}

// Close ends it and its tunnels, as if its pod had gone.
func (p *Waypoint) Close() {
	p.quiet()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.Close()
	}
}

func (p *Waypoint) track(c net.Conn, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if open {
		p.open[c] = struct{}{}
	} else {
		delete(p.open, c)
	}
}

func (p *Waypoint) serve(c *tls.Conn) {
	defer c.Close() //nolint:errcheck // it was served
	p.track(c.NetConn(), true)
	defer p.track(c.NetConn(), false)
	// Clients keep their tunnels; they must not outlive the waypoint.
	defer context.AfterFunc(p.w.ctx, func() { _ = c.Close() })()
	ctx, cancel := context.WithTimeout(p.w.ctx, patience)
	defer cancel()
	if c.HandshakeContext(ctx) != nil {
		return
	}
	cs := c.ConnectionState()
	peer, err := mtls.PeerIdentity(&cs)
	if err != nil {
		return
	}
	(&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Context: p.w.ctx, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { //nolint:staticcheck // as Tunnel.h2
		p.mu.Lock()
		p.seen = append(p.seen, Seen{r.Method, r.Host, peer, unmapped(c.RemoteAddr()), unmapped(c.LocalAddr()), r.Header})
		p.mu.Unlock()
		p.carry(rw, r)
	})})
}

func unmapped(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func (p *Waypoint) carry(rw http.ResponseWriter, r *http.Request) {
	if p.pass != nil {
		p.passOn(rw, r)
		return
	}
	if p.next == nil {
		rw.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(rw).Flush()
		copyFlushed(rw, r.Body)
		return
	}
	hbone, target, expect := p.next(r.Host)
	t, err := p.w.Tunnel(p.in, hbone, p.as, expect)
	if err != nil {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer t.conn.Close() //nolint:errcheck // one connection each
	s, status, err := t.Open(http.MethodConnect, target, nil)
	if err != nil || status != http.StatusOK {
		rw.WriteHeader(http.StatusBadGateway)
		return
	}
	rw.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(rw).Flush()
	go func() {
		_, _ = io.Copy(s, r.Body)
		_ = s.CloseWrite()
	}()
	copyFlushed(rw, s)
}

// passOn carries a connection as it is.
func (p *Waypoint) passOn(rw http.ResponseWriter, r *http.Request) {
	up, err := p.w.Dial(r.Context(), p.in, "tcp", p.pass(r.Host).String())
	if err != nil {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer up.Close() //nolint:errcheck // it was carried
	rw.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(rw).Flush()
	go func() {
		_, _ = io.Copy(up, r.Body)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	copyFlushed(rw, up)
}

func copyFlushed(rw http.ResponseWriter, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := rw.Write(buf[:n]); err != nil {
				return
			}
			_ = http.NewResponseController(rw).Flush()
		}
		if err != nil {
			return
		}
	}
}

// Seen are the requests so far.
func (p *Waypoint) Seen() []Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Seen(nil), p.seen...)
}

// Last is the newest request; an error when there is none.
func (p *Waypoint) Last() (Seen, error) {
	s := p.Seen()
	if len(s) == 0 {
		return Seen{}, errors.New("the waypoint got nothing")
	}
	return s[len(s)-1], nil
}
