package codec

import (
	"strconv"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

// fromHTTP2 makes the head of a request, response or trailer section.
func fromHTTP2(dst *message.Head, h *h2.Header) *message.Fault {
	dst.Reset()
	dst.Version = message.HTTP2
	for _, p := range [...]struct{ name, value string }{
		{":method", h.Method}, {":scheme", h.Scheme}, {":authority", h.Authority}, {":path", h.Path}, {":protocol", h.Protocol},
	} {
		if p.value == "" {
			continue
		}
		if f := dst.AddHTTP2(p.name, p.value); f != nil {
			return f
		}
	}
	dst.Status = h.Status
	for i := range h.Fields {
		if len(dst.Fields) == http1.MaxFields {
			return message.ErrTooManyFields
		}
		if f := dst.AddHTTP2(h.Fields[i].Name, h.Fields[i].Value); f != nil {
			return f
		}
	}
	switch {
	case h.Trailer:
		return dst.CheckTrailers()
	case h.Status == 0:
		dst.JoinCookies()
		return dst.CheckRequest()
	}
	return nil
}

// bodyOf returns how a message of HTTP/2 goes on. Length 0 is followed by the end
// at once.
func bodyOf(h *message.Head, end bool) http1.Body {
	if end {
		return http1.Body{}
	}
	b := http1.Body{Length: Chunked, Expect: message.EqualFold(h.Get(message.Expect), "100-continue")}
	if n, err := strconv.ParseInt(string(h.Get(message.ContentLength)), 10, 64); err == nil && n > 0 {
		b.Length = n
	}
	return b
}

// heads renders heads for HTTP/2. Its memory is used again.
type heads struct {
	fields []h2.Field
	text   []byte
	ends   []int
}

// connectionField reports whether a field concerns one connection of HTTP/1, or
// is written otherwise.
func connectionField(id message.Name) bool {
	switch id {
	case message.Host, message.ContentLength, message.TransferEncoding, message.Connection, message.Upgrade,
		message.KeepAlive, message.ProxyConnection, message.HTTP2Settings:
		return true
	}
	return false
}

// render returns the fields of h, valid until the next call. length < 0 is no
// content-length. All text is one string: the compression table keeps what it
// stores.
func (r *heads) render(h *message.Head, length int64) []h2.Field {
	r.fields, r.text, r.ends = r.fields[:0], r.text[:0], r.ends[:0]
	for i := range h.Fields {
		f := &h.Fields[i]
		if connectionField(f.ID) {
			continue
		}
		if f.ID == message.Other {
			at := len(r.text)
			r.text = append(r.text, f.Name...)
			for j, c := range r.text[at:] {
				if 'A' <= c && c <= 'Z' {
					r.text[at+j] = c | 0x20
				}
			}
			r.ends = append(r.ends, len(r.text))
		}
		r.text = append(r.text, message.Trim(f.Value)...)
		r.ends = append(r.ends, len(r.text))
	}
	all, at, n := string(r.text), 0, 0
	next := func() string {
		s := all[at:r.ends[n]]
		at, n = r.ends[n], n+1
		return s
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		if connectionField(f.ID) {
			continue
		}
		name := f.ID.String()
		if f.ID == message.Other {
			name = next()
		}
		r.fields = append(r.fields, h2.Field{Name: name, Value: next(), Sensitive: f.ID == message.XRequestID || f.ID == message.Traceparent})
	}
	if length >= 0 {
		r.fields = append(r.fields, h2.Field{Name: "content-length", Value: strconv.FormatInt(length, 10)})
	}
	return r.fields
}

// announced returns the length that a head of HTTP/2 states, -1 for none: a
// message that ends with its head states none unless its sender did.
func announced(h *message.Head, length int64) int64 {
	if length == 0 && h.Index(message.ContentLength, 0) < 0 {
		return -1
	}
	return max(length, -1)
}
