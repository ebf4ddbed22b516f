// Package sni reads the name of the server from the first message of a TLS connection
// (RFC 8446, 4.1.2 and RFC 6066, 3). It reads nothing else, and decrypts nothing.
package sni

import "strings"

// Verdict is what the first bytes of a connection are.
type Verdict uint8

// The verdicts.
const (
	More   Verdict = iota // so far a ClientHello, which is not complete
	Plain                 // not TLS
	Hello                 // a ClientHello
	Broken                // begins like a ClientHello, and is none
)

// MaxHello bounds the bytes that are looked at. Clients send 200 to 2,000.
const MaxHello = 16 << 10

const (
	recordHeader     = 5
	recordHandshake  = 22
	maxRecord        = 16 << 10
	handshakeHeader  = 4
	handshakeHello   = 1
	extensionSNI     = 0
	hostName         = 0
	maxName          = 253
	maxLabel         = 63
	randomAndVersion = 2 + 32
)

// Read looks at the first bytes of a connection, all that have come. The name is in lower
// case, and empty for a client that names no server.
func Read(p []byte) (name string, v Verdict) {
	hello, v := message(p)
	if v != Hello {
		return "", v
	}
	name, ok := serverName(hello)
	if !ok {
		return "", Broken
	}
	return name, Hello
}

// maxRecords bounds the records that a client may divide its ClientHello into, so that
// looking at it again for each byte stays cheap.
const maxRecords = 64

// message returns the body of the ClientHello. A client may divide it into records. Their
// parts are joined once all have come.
func message(p []byte) ([]byte, Verdict) {
	all := p[:min(len(p), MaxHello)]
	var head [handshakeHeader]byte // of the handshake message
	have := 0
	rest := all
	for records := 1; ; records++ {
		switch {
		case len(rest) > 0 && rest[0] != recordHandshake, len(rest) > 1 && rest[1] != 3:
			if records == 1 {
				return nil, Plain
			}
			return nil, Broken
		case records > maxRecords:
			return nil, Broken
		case len(rest) < recordHeader:
			return nil, more(all)
		}
		n := int(rest[3])<<8 | int(rest[4])
		if n == 0 || n > maxRecord {
			return nil, Broken
		}
		rest = rest[recordHeader:]
		part := rest[:min(n, len(rest))]
		if have < len(head) {
			copy(head[have:], part)
		}
		have += len(part)
		if have > 0 && head[0] != handshakeHello {
			return nil, Broken
		}
		if have >= handshakeHeader {
			need := handshakeHeader + (int(head[1])<<16 | int(head[2])<<8 | int(head[3]))
			switch {
			case need > MaxHello-recordHeader:
				return nil, Broken
			case have >= need:
				return join(all, need)[handshakeHeader:], Hello
			}
		}
		if len(rest) < n {
			return nil, more(all)
		}
		rest = rest[n:]
	}
}

// join returns the first n bytes of what records carry, without a copy if one is enough.
func join(p []byte, n int) []byte {
	var out []byte
	for {
		size := int(p[3])<<8 | int(p[4])
		p = p[recordHeader:]
		part := p[:min(size, len(p), n-len(out))]
		if out == nil && len(part) == n {
			return part
		}
		if out = append(out, part...); len(out) == n {
			return out
		}
		p = p[size:]
	}
}

// more is the verdict on bytes that end within a ClientHello.
func more(all []byte) Verdict {
	if len(all) >= MaxHello {
		return Broken
	}
	return More
}

// reader takes values from the front of a message. ok turns false at its end.
type reader struct {
	p  []byte
	ok bool
}

func (r *reader) take(n int) []byte {
	if !r.ok || n > len(r.p) {
		r.ok = false
		return nil
	}
	out := r.p[:n]
	r.p = r.p[n:]
	return out
}

// number reads an unsigned number of n bytes.
func (r *reader) number(n int) (v int) {
	for _, b := range r.take(n) {
		v = v<<8 | int(b)
	}
	return v
}

// list reads a list whose length is in n bytes before it.
func (r *reader) list(n int) []byte { return r.take(r.number(n)) }

// serverName reads the extension server_name of a ClientHello. It reports false for what
// the standards forbid: a server would end such a connection, or read it in another way.
func serverName(hello []byte) (name string, ok bool) {
	r := reader{hello, true}
	r.take(randomAndVersion)
	r.list(1) // session
	r.list(2) // cipher suites
	r.list(1) // compression
	if r.ok && len(r.p) == 0 {
		return "", true // none has extensions before TLS 1.2
	}
	all := reader{r.list(2), r.ok}
	if !r.ok || len(r.p) > 0 {
		return "", false
	}
	seen := false
	for len(all.p) > 0 {
		kind := all.number(2)
		body := all.list(2)
		if !all.ok {
			return "", false
		}
		if kind != extensionSNI {
			continue
		}
		if seen {
			return "", false
		}
		seen = true
		if name, ok = hostOf(body); !ok {
			return "", false
		}
	}
	return name, all.ok
}

// hostOf reads the only host name of the extension.
func hostOf(body []byte) (string, bool) {
	r := reader{body, true}
	names := reader{r.list(2), r.ok}
	if !r.ok || len(r.p) > 0 {
		return "", false
	}
	name := ""
	for len(names.p) > 0 {
		kind := names.number(1)
		value := names.list(2)
		if !names.ok || kind != hostName || name != "" || !valid(value) {
			return "", false
		}
		name = strings.ToLower(string(value))
	}
	return name, name != ""
}

// valid reports whether a name is one of DNS, without a dot at the end. An address is
// none: its last label is a number.
func valid(name []byte) bool {
	if len(name) == 0 || len(name) > maxName {
		return false
	}
	label, numeric := 0, true
	for i, c := range name {
		switch {
		case c == '.':
			if label == 0 || name[i-1] == '-' {
				return false
			}
			label, numeric = 0, true
			continue
		case c == '-' && label == 0:
			return false
		case '0' <= c && c <= '9':
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_':
			numeric = false
		default:
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return label > 0 && !numeric && name[len(name)-1] != '-'
}
