package http1

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// finder searches for the end of a head that arrives in pieces. It looks at
// each byte once, and judges line ends and sizes, so that the same fault is
// found at the same byte however the head is cut.
type finder struct {
	at, line, lines int
}

// end returns the length of the head at the start of b, 0 if it is not
// complete.
func (f *finder) end(b []byte, limit int) (int, *message.Fault) {
	for {
		i := bytes.IndexByte(b[f.at:], '\n')
		if i < 0 {
			f.at = len(b)
			return 0, f.tooLong(len(b)-1, limit)
		}
		at := f.at + i
		if bad := f.tooLong(at, limit); bad != nil {
			return 0, bad
		}
		if at == 0 || b[at-1] != '\r' {
			return 0, ErrBareLF
		}
		if at-1 == f.line {
			return at + 1, nil
		}
		if f.lines++; f.lines > MaxFields+1 {
			return 0, message.ErrTooManyFields
		}
		f.at, f.line = at+1, at+1
	}
}

// tooLong returns the fault of a head whose current line reaches the byte at.
func (f *finder) tooLong(at, limit int) *message.Fault {
	if f.lines == 0 && at-f.line > MaxStartLine+1 {
		return ErrLineTooLong
	}
	if at >= limit {
		return ErrHeadTooLarge
	}
	return nil
}

// line cuts the first line from b. All lines of a found head end with CR LF.
func line(b []byte) (l, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	return b[:i-1], b[i+1:]
}

// framing is what the fields say about the length of the body.
type framing struct {
	length  int64 // -1: no Content-Length
	codings int   // Transfer-Encoding fields
	chunked bool  // the only coding is chunked
	last    bool  // chunked is the last coding
	hosts   int
	host    []byte
	expect  []byte
	upgrade int // place of the only Upgrade field
}

// fields reads field lines up to the empty line.
func (c *Conn) fields(b []byte, fr *framing) *message.Fault {
	h := &c.head
	fr.length, fr.upgrade = -1, -1
	for len(b) > 2 {
		var l []byte
		l, b = line(b)
		if l[0] == ' ' || l[0] == '\t' {
			return ErrFold
		}
		colon := bytes.IndexByte(l, ':')
		if colon < 0 {
			return ErrNoColon
		}
		id, f := message.CheckName(l[:colon])
		if f != nil {
			return f
		}
		value := message.Trim(l[colon+1:])
		if f := message.CheckValue(value); f != nil {
			return f
		}
		if id == message.Host {
			fr.hosts++
			fr.host = value
			continue
		}
		h.Fields = append(h.Fields, message.Field{Name: l[:colon], Value: value, ID: id})
		if f := fr.note(id, value, len(h.Fields)-1); f != nil {
			return f
		}
	}
	return nil
}

// note keeps what decides the framing.
func (fr *framing) note(id message.Name, value []byte, place int) *message.Fault {
	switch id {
	case message.ContentLength:
		if fr.length >= 0 {
			return ErrTwoLengths
		}
		var ok bool
		if fr.length, ok = digits(value); !ok {
			return ErrLength
		}
	case message.TransferEncoding:
		fr.codings++
		fr.chunked = fr.codings == 1 && message.EqualFold(value, "chunked")
		fr.last = len(value) > 7 && message.EqualFold(value[len(value)-7:], "chunked")
	case message.Expect:
		fr.expect = value
	case message.Upgrade:
		fr.upgrade = place
	default: // does not decide the framing
	}
	return nil
}

// digits reads a Content-Length: digits alone, at most 18 of them.
func digits(v []byte) (n int64, ok bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	for _, d := range v {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int64(d-'0')
	}
	return n, true
}

// coded judges Transfer-Encoding.
func (fr *framing) coded(old bool) *message.Fault {
	switch {
	case fr.codings == 0:
		return nil
	case old:
		return ErrCodingOld
	case fr.length >= 0:
		return ErrBothLengths
	case fr.codings > 1:
		return ErrCoding
	case !fr.chunked && fr.last:
		return ErrCodingOther
	case !fr.chunked:
		return ErrCoding
	}
	return nil
}

// version reads the version at the end of a request line, or at the start of a
// status line.
func version(b []byte) (message.Version, *message.Fault) {
	if len(b) != 8 || string(b[:5]) != "HTTP/" || b[6] != '.' || b[5] < '0' || b[5] > '9' || b[7] < '0' || b[7] > '9' {
		return 0, ErrStartLine
	}
	switch string(b[5:]) {
	case "1.1":
		return message.HTTP11, nil
	case "1.0":
		return message.HTTP10, nil
	}
	return 0, ErrVersion
}

func (c *Conn) request(b []byte) *message.Fault {
	h := &c.head
	l, b := line(b)
	sp := bytes.IndexByte(l, ' ')
	end := bytes.LastIndexByte(l, ' ')
	if sp <= 0 || end == sp {
		return ErrStartLine
	}
	h.Method = l[:sp]
	if !message.Method(h.Method) {
		return message.ErrMethod
	}
	var f *message.Fault
	if h.Version, f = version(l[end+1:]); f != nil {
		return f
	}
	if f := h.SetTarget(l[sp+1 : end]); f != nil {
		return f
	}
	var fr framing
	if f := c.fields(b, &fr); f != nil {
		return f
	}
	if f := fr.checkHost(h); f != nil {
		return f
	}
	if f := h.CheckConnection(); f != nil {
		return f
	}
	return c.begin(&fr)
}

// checkHost makes Host the authority, unless the target had one.
func (fr *framing) checkHost(h *message.Head) *message.Fault {
	switch {
	case fr.hosts > 1:
		return message.ErrTwoHosts
	case fr.hosts == 0 && h.Version == message.HTTP11:
		return message.ErrNoHost
	case fr.hosts == 0:
		return nil
	}
	if f := message.CheckAuthority(fr.host); f != nil {
		return f
	}
	if h.Authority != nil && !message.EqualFold(h.Authority, fr.host) {
		return message.ErrHostDiffers
	}
	h.Authority = fr.host
	return nil
}

// begin decides how a request's body is framed and delivers the head.
func (c *Conn) begin(fr *framing) *message.Fault {
	h := &c.head
	old := h.Version == message.HTTP10
	if f := fr.coded(old); f != nil {
		return f
	}
	c.asked = request{head: string(h.Method) == "HEAD", connect: string(h.Method) == "CONNECT", old: old}
	body := Body{Length: max(fr.length, 0)}
	if fr.chunked {
		body.Length = Chunked
	}
	if c.asked.connect {
		if fr.length > 0 || fr.chunked {
			return ErrUnwantedBody
		}
		body.Length = Raw
	}
	if len(fr.expect) > 0 && !old {
		if !message.EqualFold(fr.expect, "100-continue") {
			return ErrExpect
		}
		body.Expect = body.Length > 0 || body.Length == Chunked
		c.asked.expects = body.Expect
	}
	if fr.upgrade >= 0 && !old && body.Length == 0 && h.HasConnection("upgrade") {
		c.askUpgrade(h.Fields[fr.upgrade].Value)
	}
	c.close = c.draining || h.HasConnection("close") || old && !h.HasConnection("keep-alive")
	c.deliver(body)
	return nil
}

// askUpgrade notes that the client asks to switch. Cleartext HTTP/2 is left out:
// requests inside such a stream would pass every rule unseen.
func (c *Conn) askUpgrade(protocols []byte) {
	h2c := false
	message.Elements(protocols, func(e []byte) bool {
		h2c = h2c || len(e) >= 3 && message.EqualFold(e[:3], "h2c")
		return !h2c
	})
	if !h2c && len(protocols) > 0 {
		c.asked.upgrade, c.head.Protocol = true, protocols
	}
}

// deliver calls OnHead after the state says what follows, for the handler may
// answer at once.
func (c *Conn) deliver(body Body) {
	switches := c.server && (c.asked.connect || c.asked.upgrade)
	switch {
	case body.Length > 0:
		c.in, c.left = inExact, body.Length
	case body.Length == Chunked:
		c.in, c.digits, c.left, c.extension, c.extensions = inChunkSize, 0, 0, 0, 0
	case body.Length == UntilClose:
		c.in = inClose
	case body.Length == Raw && !c.server:
		c.in = inRaw
	default:
		c.in = inWait
	}
	if switches {
		c.inDone = true
	}
	empty := c.in == inWait && !switches
	c.h.OnHead(&c.head, body)
	if empty {
		c.ended()
	}
}

func (c *Conn) response(b []byte) *message.Fault {
	h := &c.head
	l, b := line(b)
	if len(l) < 12 || l[8] != ' ' || len(l) > 12 && l[12] != ' ' {
		return ErrStartLine
	}
	var f *message.Fault
	if h.Version, f = version(l[:8]); f != nil {
		return f
	}
	n, ok := digits(l[9:12])
	if !ok || n < 100 || n > 599 {
		return ErrStartLine
	}
	h.Status = int(n)
	if f := message.CheckValue(l[12:]); f != nil {
		return f
	}
	var fr framing
	if f := c.fields(b, &fr); f != nil {
		return f
	}
	if f := h.CheckConnection(); f != nil {
		return f
	}
	return c.answer(&fr)
}

// answer decides how a response's body is framed and delivers the head
// (RFC 9112, 6.3).
func (c *Conn) answer(fr *framing) *message.Fault {
	h := &c.head
	old := h.Version == message.HTTP10
	if f := fr.coded(old); f != nil {
		return f
	}
	bodiless := h.Status < 200 || h.Status == 204
	if bodiless && (fr.chunked || fr.length > 0) {
		return ErrUnwantedBody
	}
	switched := c.asked.connect && h.Status/100 == 2 || h.Status == 101
	switch {
	case h.Status == 101 && !c.asked.upgrade:
		return ErrSwitch
	case h.Status < 200 && h.Status != 101:
		return c.inform()
	case switched && (fr.chunked || fr.length > 0):
		return ErrUnwantedBody
	}
	if h.Status == 101 && fr.upgrade >= 0 {
		h.Protocol = h.Fields[fr.upgrade].Value
	}
	body := Body{Length: fr.length}
	switch {
	case switched:
		body.Length = Raw
		c.out = outRaw
	case bodiless || c.asked.head || h.Status == 304:
		body.Length = 0
	case fr.chunked:
		body.Length = Chunked
	case fr.length < 0:
		body.Length = UntilClose
	}
	c.close = c.close || c.draining || body.Length < Chunked || h.HasConnection("close") || old && !h.HasConnection("keep-alive")
	c.deliver(body)
	return nil
}

// inform delivers a 1xx response. The final one follows.
func (c *Conn) inform() *message.Fault {
	if c.informs++; c.informs > MaxInforms {
		return ErrInforms
	}
	c.h.OnHead(&c.head, Body{})
	return nil
}

func (c *Conn) trailers(b []byte) *message.Fault {
	var fr framing
	if len(b) > 2 {
		if f := c.fields(b, &fr); f != nil {
			return f
		}
		if fr.hosts > 0 {
			return message.ErrTrailer
		}
		if f := c.head.CheckTrailers(); f != nil {
			return f
		}
		c.h.OnTrailers(&c.head)
	}
	c.ended()
	return nil
}
