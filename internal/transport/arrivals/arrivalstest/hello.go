// Package arrivalstest has what tests of handshakes share.
package arrivalstest

import (
	"crypto/tls"
	"net"
	"testing"
	"time"
)

// Hello returns the first flight of crypto/tls.
func Hello(t testing.TB) []byte {
	t.Helper()
	const (
		most     = 16 << 10
		patience = time.Minute // only a fault makes it wait
	)
	a, b := net.Pipe()
	defer func() { _ = a.Close(); _ = b.Close() }()
	go func() { _ = tls.Client(a, &tls.Config{ServerName: "x", NextProtos: []string{"h2"}}).Handshake() }()
	_ = b.SetReadDeadline(time.Now().Add(patience))
	p := make([]byte, most)
	n, err := b.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return p[:n]
}
