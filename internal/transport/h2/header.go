package h2

import (
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/transport/hpack"
)

// Field is one header field. Sensitive fields never enter a compression
// table; mark those that differ on each request so, they would only evict
// what repeats.
type Field = hpack.Field

// Header is a header section: pseudo fields by name, the others in order.
type Header struct {
	Method    string // of requests
	Scheme    string // of requests, empty for CONNECT
	Authority string // of requests: :authority alone, a Host field is in Fields
	Path      string // of requests, empty for CONNECT
	Protocol  string // of requests: extended CONNECT (RFC 8441)
	Status    int    // of responses
	Trailer   bool   // neither request nor response: no pseudo fields
	PathOnce  bool   // of a request that is sent: the path enters no compression table
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

// Methods with rules of their own. Not net/http's constants: the engine does
// not link net/http.
const (
	methodConnect = "CONNECT"
	methodHead    = "HEAD"
	methodOptions = "OPTIONS"
)

// section is which kind of header section is being read.
type section uint8

const (
	requestSection section = iota
	responseSection
	trailerSection
)

// pseudo fields seen, to tell an empty one from a missing one.
const (
	seenMethod = 1 << iota
	seenScheme
	seenAuthority
	seenPath
	seenProtocol
	seenStatus
	seenLength
	seenHost
)

// reader collects and judges one header section as HPACK yields it. The first
// fault is kept, the rest of the block is still decoded for the table's sake.
type reader struct {
	h      Header
	kind   section
	seen   uint8
	tooBig bool
	fault  string // why the section is malformed, "" if it is not
	size   uint32
	length int64 // of content-length, -1 if absent
	host   string

	scratch hpack.Scratch // for the strings, if they are not kept
}

func (r *reader) reset(kind section) {
	*r = reader{h: Header{Fields: r.h.Fields[:0], Trailer: kind == trailerSection}, kind: kind, length: -1, scratch: r.scratch}
}

func (r *reader) malformed(why string) {
	if r.fault == "" {
		r.fault = why
	}
}

// field takes the next field; limit bounds the list (RFC 9113, 6.5.2).
func (r *reader) field(f Field, limit uint32) {
	r.size += f.Size()
	if r.size > limit {
		r.tooBig = true
		return
	}
	if r.fault != "" {
		return
	}
	if !validValue(f.Value) {
		r.malformed("field value with forbidden characters")
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		r.pseudo(f)
		return
	}
	if !validName(f.Name) {
		r.malformed("field name with forbidden characters")
		return
	}
	if why := forbidden(f.Name, f.Value); why != "" {
		r.malformed(why)
		return
	}
	switch f.Name {
	case "content-length":
		r.contentLength(f.Value)
	case "host":
		if r.seen&seenHost != 0 {
			r.malformed("two host fields")
		}
		r.seen |= seenHost
		r.host = f.Value
	}
	r.h.Fields = append(r.h.Fields, f)
}

// pseudo takes a pseudo field (RFC 9113, 8.3).
func (r *reader) pseudo(f Field) {
	if len(r.h.Fields) > 0 {
		r.malformed("pseudo field after a regular one")
		return
	}
	var bit uint8
	var to *string
	switch f.Name {
	case ":method":
		bit, to = seenMethod, &r.h.Method
	case ":scheme":
		bit, to = seenScheme, &r.h.Scheme
	case ":authority":
		bit, to = seenAuthority, &r.h.Authority
	case ":path":
		bit, to = seenPath, &r.h.Path
	case ":protocol":
		bit, to = seenProtocol, &r.h.Protocol
	case ":status":
		bit = seenStatus
	}
	if bit == 0 || r.kind == trailerSection || (bit == seenStatus) != (r.kind == responseSection) {
		r.malformed("pseudo field that does not belong here")
		return
	}
	if r.seen&bit != 0 {
		r.malformed("pseudo field twice")
		return
	}
	r.seen |= bit
	if bit == seenStatus {
		r.status(f.Value)
		return
	}
	*to = f.Value
}

func (r *reader) status(v string) {
	if len(v) != 3 || v[0] < '1' || v[0] > '5' || !isDigit(v[1]) || !isDigit(v[2]) || v == "101" {
		r.malformed("invalid :status")
		return
	}
	r.h.Status = int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
}

// contentLength takes digits only, once: lists and repetitions are legal HTTP
// for a recipient to refuse, and the stuff of request smuggling.
func (r *reader) contentLength(v string) {
	if r.seen&seenLength != 0 {
		r.malformed("content-length twice")
		return
	}
	r.seen |= seenLength
	for i := range len(v) {
		if !isDigit(v[i]) {
			r.malformed("invalid content-length")
			return
		}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		r.malformed("invalid content-length")
		return
	}
	r.length = n
}

// finish judges the section as a whole; extended permits RFC 8441.
func (r *reader) finish(extended bool) {
	switch r.kind {
	case responseSection:
		if r.seen&seenStatus == 0 {
			r.malformed("response without :status")
		}
	case requestSection:
		r.finishRequest(extended)
	case trailerSection: // demands no field
	}
}

func (r *reader) finishRequest(extended bool) {
	h := &r.h
	switch {
	case !validToken(h.Method):
		r.malformed("request without a valid :method")
	case r.seen&seenProtocol != 0 && (!extended || h.Method != methodConnect):
		r.malformed(":protocol without extended CONNECT")
	case h.Method == methodConnect && r.seen&seenProtocol == 0:
		if h.Authority == "" || r.seen&(seenScheme|seenPath) != 0 {
			r.malformed("CONNECT takes :authority and neither :scheme nor :path")
		}
	case h.Scheme == "" || h.Path == "":
		r.malformed("request without :scheme or :path")
	case h.Scheme == "http" || h.Scheme == "https":
		if h.Path[0] != '/' && (h.Path != "*" || h.Method != methodOptions) {
			r.malformed(":path is not absolute")
		}
		if h.Authority == "" && r.host == "" {
			r.malformed("request without :authority or host")
		}
	}
	if h.Authority != "" {
		if strings.ContainsAny(h.Authority, "@ \t/?#") {
			r.malformed("invalid :authority")
		}
		// RFC 9113, 8.3.1. For CONNECT the host field means nothing.
		if r.seen&seenHost != 0 && h.Method != methodConnect && !strings.EqualFold(r.host, h.Authority) {
			r.malformed(":authority and host differ")
		}
	}
}

// forbidden tells why a field must not occur in HTTP/2 (RFC 9113, 8.2.2).
func forbidden(name, value string) string {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "connection-specific field"
	case "te":
		if value != "trailers" {
			return "te other than trailers"
		}
	}
	return ""
}

// Character classes of names: RFC 9110, 5.6.2 (token), and without the upper
// case that RFC 9113, 8.2.1 forbids in field names.
const (
	tokenChar = 1 << iota
	nameChar
)

var charClass = func() (t [256]uint8) {
	for c := byte('a'); c <= 'z'; c++ {
		t[c] = tokenChar | nameChar
		t[c-'a'+'A'] = tokenChar
	}
	for _, c := range []byte("0123456789!#$%&'*+-.^_`|~") {
		t[c] = tokenChar | nameChar
	}
	return t
}()

func validName(s string) bool  { return allOf(s, nameChar) }
func validToken(s string) bool { return allOf(s, tokenChar) }

func allOf(s string, class uint8) bool {
	for i := range len(s) {
		if charClass[s[i]]&class == 0 {
			return false
		}
	}
	return s != ""
}

// validValue follows RFC 9113, 8.2.1, and RFC 9110, 5.5: no control characters
// but the tab, no white space at the ends.
func validValue(s string) bool {
	return (plain(s) || withoutControl(s)) && (s == "" || (!isSpace(s[0]) && !isSpace(s[len(s)-1])))
}

func withoutControl(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t') || c == 0x7f {
			return false
		}
	}
	return true
}

// plain reports whether a text has no control characters at all, eight bytes at a time.
func plain(s string) bool {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; len(s) >= 8; s = s[8:] {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		del := w ^ 0x7f*each // a byte of it is 0 where w has 0x7f
		if ((w-' '*each)&^w|(del-each)&^del)&high != 0 {
			return false
		}
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
