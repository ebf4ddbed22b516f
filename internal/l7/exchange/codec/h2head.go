package codec

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unsafe"

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
		had := len(dst.Fields)
		if f := dst.AddHTTP2(h.Fields[i].Name, h.Fields[i].Value); f != nil {
			return f
		}
		if len(dst.Fields) > had {
			dst.Fields[had].Private = h.Fields[i].Sensitive
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
	if v := h.Get(message.ContentLength); v != nil {
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil && n > 0 {
			b.Length = n
		}
	}
	return b
}

// heads renders heads for HTTP/2. Its memory is used again.
type heads struct {
	fields []h2.Field
	text   []byte // what no head has: names in lower case, lengths
}

// textOf returns b as a string, which is valid as long as b is not written. The state
// machine encodes it at once, and keeps none.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// connectionField reports whether a field concerns one connection of HTTP/1, or
// is written otherwise.
func connectionField(id message.Name) bool {
	switch id {
	case message.Host, message.ContentLength, message.TransferEncoding, message.Connection, message.Upgrade,
		message.KeepAlive, message.ProxyConnection, message.HTTP2Settings:
		return true
	default:
		return false
	}
}

// once reports whether a field has another value on each request: it would only evict
// from the compression table what repeats.
func once(id message.Name) bool { return id == message.XRequestID || id == message.Traceparent }

// render returns the fields of h, valid until the next call and as long as h is not
// changed. length < 0 is no content-length.
func (r *heads) render(h *message.Head, length int64) []h2.Field {
	r.fields, r.text = r.fields[:0], r.text[:0]
	for i := range h.Fields {
		f := &h.Fields[i]
		if connectionField(f.ID) {
			continue
		}
		out := h2.Field{Name: f.ID.String(), Value: textOf(message.Trim(f.Value)), Sensitive: f.Private || once(f.ID)}
		if f.ID == message.Other {
			out.Name = r.lower(f.Name)
		}
		r.fields = append(r.fields, out)
	}
	if length >= 0 {
		start := len(r.text)
		r.text = strconv.AppendInt(r.text, length, 10)
		r.fields = append(r.fields, h2.Field{Name: "content-length", Value: textOf(r.text[start:])})
	}
	return r.fields
}

// lower returns a name in lower case, as HTTP/2 demands. When r.text is moved, what was
// returned before stays what it is.
func (r *heads) lower(name []byte) string {
	start := len(r.text)
	r.text = append(r.text, name...)
	b := r.text[start:]
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return textOf(b)
}

// cloned returns fields that may be kept.
func cloned(fields []h2.Field) []h2.Field {
	fields = slices.Clone(fields)
	for i := range fields {
		fields[i].Name, fields[i].Value = strings.Clone(fields[i].Name), strings.Clone(fields[i].Value)
	}
	return fields
}

// request returns the head of a request with the fields of render. The path of a call of
// gRPC is a method, which repeats.
func (r *heads) request(h *message.Head, length int64) h2.Header {
	kind := h.Get(message.ContentType)
	grpc := kind != nil && len(h.Path) <= methodLength && bytes.HasPrefix(kind, grpcType)
	return h2.Header{
		Method: textOf(h.Method), Scheme: textOf(h.Scheme), Authority: textOf(h.Authority), Protocol: textOf(h.Protocol),
		Path: textOf(h.Path), PathOnce: !grpc, Fields: r.render(h, length),
	}
}

// methodLength bounds the path of a call that is taken for one that repeats, in bytes.
const methodLength = 128

var grpcType = []byte("application/grpc")

// announced returns the length that a head of HTTP/2 states, -1 for none: a
// message that ends with its head states none unless its sender did.
func announced(h *message.Head, length int64) int64 {
	if length == 0 && h.Index(message.ContentLength, 0) < 0 {
		return -1
	}
	return max(length, -1)
}
