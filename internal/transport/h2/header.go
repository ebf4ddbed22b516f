package h2

import "golang.org/x/net/http2/hpack"

// Field is one header field. Sensitive fields never enter a compression
// table; mark those that differ on each request so, they would only evict
// what repeats.
type Field = hpack.HeaderField

// Header is a header section: pseudo fields by name, the others in order.
type Header struct {
	Method    string // of requests
	Scheme    string // of requests, empty for CONNECT
	Authority string // of requests; on receipt from :authority alone, see Host
	Path      string // of requests, empty for CONNECT
	Protocol  string // of requests: extended CONNECT (RFC 8441)
	Status    int    // of responses
	Trailer   bool   // neither request nor response: no pseudo fields
	Fields    []Field
}

// Get returns the value of the first field with this lower-case name, or "".
func (h *Header) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}
