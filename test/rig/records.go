package rig

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/internal/transport/record/recordtest"
)

// Keys shakes hands with the server of a tunnel, from a pod and as whoever the bundle
// says, and returns the connection and its keys: for whoever sends other records than
// crypto/tls does.
func (w *World) Keys(from lab.Where, to netip.AddrPort, as *mtls.Bundle) (net.Conn, *record.Conn) {
	w.t.Helper()
	conn := w.MustDial(from, to)
	_ = conn.SetDeadline(time.Now().Add(patience))
	c, err := recordtest.Handshake(conn, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{as.Cert},
		InsecureSkipVerify: true, //nolint:gosec // an attacker accepts any server
	}, true)
	if err != nil {
		w.t.Fatal(err)
	}
	return conn, c
}

// Records is a connection whose records are those of package record.
type Records struct {
	net.Conn
	mu    sync.Mutex
	keys  *record.Conn // guarded by mu
	rest  []byte       // start of a record
	plain []byte       // opened and not read
}

// Records is a connection like that of Keys, whose keys change after n records, and which
// has its peer do the same.
func (w *World) Records(from lab.Where, to netip.AddrPort, as *mtls.Bundle, n uint64) *Records {
	w.t.Helper()
	conn, keys := w.Keys(from, to, as)
	w.t.Cleanup(func() { _ = conn.Close() })
	keys.UpdateAfter(n)
	return &Records{Conn: conn, keys: keys}
}

// Updates is how often the keys of either direction have changed.
func (r *Records) Updates() (in, out uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys.Updates()
}

// Read implements net.Conn.
func (r *Records) Read(p []byte) (int, error) {
	buf := make([]byte, 64<<10)
	for len(r.plain) == 0 {
		k := copy(buf, r.rest)
		n, err := r.Conn.Read(buf[k:])
		if n == 0 && err != nil {
			return 0, err
		}
		r.mu.Lock()
		r.plain, r.rest, err = r.keys.Open(buf[:k+n])
		r.mu.Unlock()
		r.rest = bytes.Clone(r.rest)
		if len(r.plain) == 0 && err != nil {
			return 0, err
		}
	}
	n := copy(p, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// Write implements net.Conn.
func (r *Records) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []byte
	for q := p; len(q) > 0; {
		if r.keys.Due() {
			var err error
			if out, err = r.keys.Control(out); err != nil {
				return 0, err
			}
		}
		n := min(len(q), record.MaxPlain)
		out, q = r.keys.Append(out, q[:n]), q[n:]
	}
	if _, err := r.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
