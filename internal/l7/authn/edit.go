package authn

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// edit makes a head as programs get it: without what only tokens give, and, of a
// request whose tokens are all accepted, without the tokens that stay here and with
// what they give. The query has no token either way: it goes to logs.
func (c *Check) edit(h *message.Head, ok bool) {
	h.RemoveFunc(func(place int, f *message.Field) bool {
		for _, name := range c.outputs {
			if resembles(f.Name, name) {
				return true
			}
		}
		return ok && c.takes(place)
	})
	for i := range c.found {
		if f := &c.found[i]; f.at.field < 0 && !f.stays() {
			c.dropParams(h)
			break
		}
	}
	if !ok {
		return
	}
	for i := len(c.found) - 1; i >= 0; i-- { // what counts first has the last word
		f := &c.found[i]
		if f.by.payload.String() != "" {
			h.Set(f.by.payload, payload(f.text))
		}
		for _, v := range f.accepted.headers {
			h.Set(v.key, v.text)
		}
	}
}

// stays reports whether programs get the token.
func (f *found) stays() bool { return f.by != nil && f.by.forward }

// takes reports whether the field at a place is a token that programs do not get.
// Cookies stay.
func (c *Check) takes(place int) bool {
	for i := range c.found {
		if f := &c.found[i]; f.at.field == place && !f.at.cookie && !f.stays() {
			return true
		}
	}
	return false
}

// dropParams removes parameters from the query.
func (c *Check) dropParams(h *message.Head) {
	path := len(h.PathOnly())
	c.path = append(c.path[:0], h.Path[:path]...)
	sep := byte('?')
	for start := path + 1; start <= len(h.Path); {
		part := h.Path[start:]
		if i := bytes.IndexByte(part, '&'); i >= 0 {
			part = part[:i]
		}
		if !c.isToken(start) {
			c.path = append(append(c.path, sep), part...)
			sep = '&'
		}
		start += len(part) + 1
	}
	h.SetPath(c.path)
}

func (c *Check) isToken(start int) bool {
	for i := range c.found {
		if f := &c.found[i]; f.at.field < 0 && f.at.from == start && !f.stays() {
			return true
		}
	}
	return false
}

// payload returns the second part of a token.
func payload(token []byte) []byte {
	_, rest, _ := bytes.Cut(token, []byte("."))
	body, _, _ := bytes.Cut(rest, []byte("."))
	return body
}
