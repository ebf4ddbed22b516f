package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"syscall"
	"time"
)

// serveTLS serves HTTP in TLS, with a certificate that nothing has issued.
func serveTLS(l net.Listener, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	self := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, self, self, &key.PublicKey, key)
	if err != nil {
		return err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
	return serveHTTP(tls.NewListener(l, conf), name, "")
}

// shapes are the ways to send the first message of TLS.
var shapes = []string{"bytes", "records", "cut", "huge", "broken"}

// shaped returns a dialer whose connections send their first write in a shape.
func shaped(shape string) func(context.Context, string, string) (net.Conn, error) {
	d := &net.Dialer{Timeout: callTimeout}
	if shape == "" {
		return d.DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &shapedConn{Conn: c, shape: shape}, nil
	}
}

type shapedConn struct {
	net.Conn
	shape string
	begun bool
}

// recordHeader is of a record of TLS: type, version, length.
const recordHeader = 5

// Write implements net.Conn.
func (c *shapedConn) Write(p []byte) (int, error) {
	if c.begun {
		return c.Conn.Write(p)
	}
	c.begun = true
	var parts [][]byte
	switch c.shape {
	case "bytes":
		for i := range p {
			parts = append(parts, p[i:i+1])
		}
	case "records":
		for rest := p[recordHeader:]; len(rest) > 0; {
			n := min(len(rest), 40)
			parts = append(parts, append([]byte{p[0], p[1], p[2], 0, byte(n)}, rest[:n]...))
			rest = rest[n:]
		}
	case "cut":
		parts = [][]byte{p[:len(p)/2]}
	case "huge":
		parts = [][]byte{{p[0], p[1], p[2], 0x40, 0, 1, 0, 0xff, 0xff}, make([]byte, 0x3ffc)}
	case "broken":
		bad := append([]byte{}, p...)
		bad[recordHeader+4+2+32] = 0xff // a session longer than the message
		parts = [][]byte{bad[:recordHeader+4+2+32+40]}
		bad[3], bad[4], bad[7], bad[8] = 0, 4+2+32+40, 0, 2+32+40
	default:
		return 0, fmt.Errorf("shape %q: there are %q", c.shape, shapes)
	}
	for _, part := range parts {
		if _, err := c.Conn.Write(part); err != nil {
			return 0, err
		}
	}
	if c.shape == "cut" {
		return len(p), c.Conn.(*net.TCPConn).CloseWrite()
	}
	return len(p), nil
}

// slow opens connections that send few bytes.
func slow(ctx context.Context, args []string) error {
	f := flags("slow")
	addr := f.String("addr", "", "server")
	n := f.Int("n", 300, "how many connections")
	duration := f.Duration("duration", 10*time.Second, "how long")
	send := f.String("send", "16", "what is sent, in hexadecimal")
	_ = f.Parse(args)
	text, err := hex.DecodeString(*send)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	open := 0
	for range *n {
		d := net.Dialer{Timeout: callTimeout}
		c, err := d.DialContext(ctx, "tcp", *addr)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // refused before this has noticed that it is connected
		}
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
		_, _ = c.Write(text)
		all.Go(func() {
			defer c.Close() //nolint:errcheck // only closing
			_, err := c.Read(make([]byte, 1))
			if ne, is := err.(net.Error); is && ne.Timeout() { //nolint:errorlint // of the package net
				mu.Lock()
				open++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	fmt.Println(open)
	return nil
}
