package authn

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// at is the place of a token in a request: of a field, or of the query.
type at struct {
	field  int // -1: the query
	from   int // in the value of the field, or in the path
	cookie bool
}

// find offers the tokens at the places of a provider to it. It is false when there are
// too many.
func (c *Check) find(h *message.Head, p *Provider, now time.Time) bool {
	for i := range p.headers {
		if !c.inHeaders(h, p, &p.headers[i], now) {
			return false
		}
	}
	return (len(p.params) == 0 || c.inQuery(h, p, now)) && (len(p.cookies) == 0 || c.inCookies(h, p, now))
}

// inHeaders takes what follows the prefix in each line of a name. Names and prefixes are
// compared as loosely as programs do: what they might read is looked at.
func (c *Check) inHeaders(h *message.Head, p *Provider, w *header, now time.Time) bool {
	for i := range h.Fields {
		f := &h.Fields[i]
		if !resembles(f.Name, w.name) {
			continue
		}
		v := bytes.TrimLeft(f.Value, " \t")
		prefix := strings.TrimRight(w.prefix, " ")
		if len(v) < len(prefix) || !message.EqualFold(v[:len(prefix)], prefix) {
			continue
		}
		rest := v[len(prefix):]
		if prefix != w.prefix && len(rest) > 0 && rest[0] != ' ' && rest[0] != '\t' {
			continue // another scheme, whose name begins alike
		}
		text := bytes.Trim(rest, " \t")
		if len(text) > 0 && !c.offer(p, at{field: i}, text, now) {
			return false
		}
	}
	return true
}

// inQuery takes the values of parameters. They and their names may be percent-encoded.
func (c *Check) inQuery(h *message.Head, p *Provider, now time.Time) bool {
	query := h.Query()
	base := len(h.Path) - len(query)
	for start := 0; start <= len(query); {
		part := query[start:]
		if i := bytes.IndexByte(part, '&'); i >= 0 {
			part = part[:i]
		}
		if name, value, _ := bytes.Cut(part, []byte("=")); len(value) > 0 && c.isParam(p, name) {
			if !c.offer(p, at{field: -1, from: base + start}, c.decode(value), now) {
				return false
			}
		}
		start += len(part) + 1
	}
	return true
}

func (c *Check) isParam(p *Provider, name []byte) bool {
	name = c.decode(name)
	for _, want := range p.params {
		if string(name) == want {
			return true
		}
	}
	return false
}

// decode decodes a part of a query. Decoded parts stay valid until the next request.
func (c *Check) decode(b []byte) []byte {
	if bytes.IndexByte(b, '%') < 0 && bytes.IndexByte(b, '+') < 0 {
		return b
	}
	start := len(c.decoded)
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '+':
			c.decoded = append(c.decoded, ' ')
		case b[i] == '%' && i+2 < len(b) && hex(b[i+1]) >= 0 && hex(b[i+2]) >= 0:
			c.decoded = append(c.decoded, byte(hex(b[i+1])<<4|hex(b[i+2])))
			i += 2
		default:
			c.decoded = append(c.decoded, b[i])
		}
	}
	return c.decoded[start:len(c.decoded):len(c.decoded)]
}

func hex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// inCookies takes the values of cookies (RFC 6265, 4.2.1).
func (c *Check) inCookies(h *message.Head, p *Provider, now time.Time) bool {
	for i := h.Index(message.Cookie, 0); i >= 0; i = h.Index(message.Cookie, i+1) {
		line := h.Fields[i].Value
		for start := 0; start <= len(line); {
			part := line[start:]
			if n := bytes.IndexByte(part, ';'); n >= 0 {
				part = part[:n]
			}
			name, value, _ := bytes.Cut(part, []byte("="))
			name, value = bytes.Trim(name, " \t"), bytes.Trim(bytes.Trim(value, " \t"), `"`)
			if len(value) > 0 && slices.Contains(p.cookies, string(name)) && !c.offer(p, at{field: i, from: start, cookie: true}, value, now) {
				return false
			}
			start += len(part) + 1
		}
	}
	return true
}

// resembles compares names as programs do that make environment variables of them. want
// is in lower case.
func resembles(name []byte, want string) bool {
	if len(name) != len(want) {
		return false
	}
	for i, b := range name {
		w := want[i]
		switch {
		case 'A' <= b && b <= 'Z':
			b += 'a' - 'A'
		case b == '_':
			b = '-'
		}
		if w == '_' {
			w = '-'
		}
		if b != w {
			return false
		}
	}
	return true
}

// reset forgets what belongs to the request before.
func (c *Check) reset() {
	clear(c.found)
	c.found, c.decoded = c.found[:0], c.decoded[:0]
	c.tries = jwt.MaxTries
}
