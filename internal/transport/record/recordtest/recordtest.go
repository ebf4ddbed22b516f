// Package recordtest gives tests a connection whose handshake is of crypto/tls, and whose
// records they make and open themselves.
package recordtest

import (
	"crypto/tls"
	"errors"
	"net"

	"github.com/ambit-mesh/ambit/internal/transport/record"
)

// ErrNotTaken is of connections that package record does not take over, such as those with
// ChaCha20.
var ErrNotTaken = errors.New("the keys of the connection were not taken over")

// Handshake shakes hands over conn, as the client or as the server of TLS, and returns the
// keys. From then on, what is read from conn and written to it are records. cfg is changed.
// Errors are those of the handshake, and ErrNotTaken.
func Handshake(conn net.Conn, cfg *tls.Config, client bool) (*record.Conn, error) {
	s := &record.Secrets{}
	cfg.KeyLogWriter, cfg.SessionTicketsDisabled = s, true
	side := tls.Server
	if client {
		side = tls.Client
	}
	c := side(&oneRecord{Conn: conn, secrets: s}, cfg)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	state := c.ConnectionState()
	keys, ok := record.New(&state, s, client)
	if !ok {
		return nil, ErrNotTaken
	}
	return keys, nil
}

// oneRecord reads no further than a record, so that nothing behind the handshake is left in
// crypto/tls, and has Secrets see what is sent.
type oneRecord struct {
	net.Conn
	secrets *record.Secrets
	head    []byte
	left    int // of the record
}

// Write implements net.Conn.
func (o *oneRecord) Write(p []byte) (int, error) {
	o.secrets.Sent(p)
	return o.Conn.Write(p)
}

// Read implements net.Conn.
func (o *oneRecord) Read(p []byte) (int, error) {
	if o.left > 0 {
		n, err := o.Conn.Read(p[:min(len(p), o.left)])
		o.left -= n
		return n, err
	}
	n, err := o.Conn.Read(p[:min(len(p), record.HeaderLen-len(o.head))])
	if o.head = append(o.head, p[:n]...); len(o.head) == record.HeaderLen {
		o.left, o.head = int(o.head[3])<<8|int(o.head[4]), nil
	}
	return n, err
}
