package filter

import (
	"encoding/binary"
	"encoding/hex"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

var (
	keyClientCert     = message.NewKey("x-forwarded-client-cert")
	keyForwardedFor   = message.NewKey("x-forwarded-for")
	keyForwardedProto = message.NewKey("x-forwarded-proto")
	keyRequestID      = message.NewKey("x-request-id")
)

// Client is what a proxy has seen itself of the client of a connection. The zero value
// says nothing.
type Client struct {
	// Address is what X-Forwarded-For gets.
	Address string
	// Certificate is the value of X-Forwarded-Client-Cert; "" for none.
	Certificate []byte
}

// internal are the beginnings of names that proxies use among themselves: Envoy's and
// Ambit's. A client that sends one would pass for a proxy.
var internal = [...]string{"x-envoy-", "x-ambit-"}

// Arrive makes a request that comes from a client one that routes and policies may
// look at, before any of them does. What a client says of its own certificate goes, and
// what proxies say among themselves: only proxies say that. The address of the client
// comes behind what it says of those before it. What is missing and programs rely on is
// added: the scheme that the client used, and an ID, of the random numbers a and b.
func Arrive(h *message.Head, c *Client, tls bool, a, b uint64) {
	h.RemovePrefixed(internal[:])
	h.Remove(keyClientCert)
	if len(c.Certificate) > 0 {
		h.Add(keyClientCert, c.Certificate)
	}
	if c.Address != "" {
		forwardedFor(h, c.Address)
	}
	if h.Index(message.XForwardedProto, 0) < 0 {
		proto := schemeHTTP
		if tls {
			proto = schemeHTTPS
		}
		h.Add(keyForwardedProto, proto)
	}
	if h.Index(message.XRequestID, 0) < 0 {
		var id [36]byte
		h.Add(keyRequestID, uuid(&id, a, b))
	}
}

// forwardedFor appends an address to the last X-Forwarded-For: its end is the last hop.
func forwardedFor(h *message.Head, addr string) {
	last := -1
	for i := h.Index(message.XForwardedFor, 0); i >= 0; i = h.Index(message.XForwardedFor, i+1) {
		last = i
	}
	switch {
	case last < 0:
		h.Add(keyForwardedFor, []byte(addr))
	case len(h.Fields[last].Value) == 0:
		h.Fields[last].Value = []byte(addr)
	default:
		h.Append(last, addr)
	}
}

var schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")

// uuid renders two random numbers as a UUID of version 4 (RFC 9562, 5.4).
func uuid(dst *[36]byte, a, b uint64) []byte {
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], a)
	binary.BigEndian.PutUint64(raw[8:], b)
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	at := 0
	for _, part := range [...][]byte{raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:]} {
		if at > 0 {
			dst[at] = '-'
			at++
		}
		at += hex.Encode(dst[at:], part)
	}
	return dst[:]
}
