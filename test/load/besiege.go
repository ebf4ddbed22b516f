package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// besiege is an attacker: it opens connections, sends on each only what say names,
// and opens another one for each that ends, until its input ends. It says once how
// many it has opened. What it can say is nothing ("silent"), a ClientHello byte by
// byte ("dribble"), or a ClientHello and nothing after it ("stall").
func besiege(o options, say string) error {
	hello, err := hello()
	if err != nil {
		return err
	}
	speak, ok := map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"stall":  func(c net.Conn) { _, _ = c.Write(hello) },
		"dribble": func(c net.Conn) {
			for i := range hello {
				if _, err := c.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		},
	}[say]
	if !ok {
		return fmt.Errorf("cannot say %q: want silent, dribble or stall", say)
	}
	opened := make(chan error, o.conns)
	for range o.conns {
		go func() {
			tell := opened
			for {
				c, err := net.DialTimeout("tcp", o.addr, 10*time.Second)
				if tell != nil {
					tell <- err
					tell = nil
				}
				if err == nil {
					go speak(c)
					_, _ = io.Copy(io.Discard, c) // until it ends
					_ = c.Close()
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	r := Result{Mode: "besiege"}
	for range o.conns {
		if err := <-opened; err != nil {
			r.Errors, r.LastError = r.Errors+1, err.Error()
		} else {
			r.Held++
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

// hello returns the first flight of a TLS client.
func hello() ([]byte, error) {
	a, b := net.Pipe()
	defer b.Close() //nolint:errcheck // ends the client
	go func() { _ = tls.Client(a, &tls.Config{ServerName: "besieged", NextProtos: []string{"h2"}}).Handshake() }()
	p := make([]byte, 16<<10)
	n, err := b.Read(p)
	return p[:n], err
}
