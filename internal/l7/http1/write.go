package http1

import (
	"errors"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// output is how the body of the message to the peer is framed.
type output uint8

const (
	outNone    output = iota // no head was written
	outEmpty                 // no body
	outExact                 // outLeft bytes
	outChunked               // chunks
	outClose                 // until the connection closes
	outRaw                   // no HTTP
)

// What the writers fail with, beside a *message.Fault of the head. Nothing was
// appended then.
var (
	ErrState    = errors.New("HTTP/1 connection permits no such message now")
	ErrBodySize = errors.New("body is not as long as its head promised")
)

// Request appends a request with a body of length bytes, or Chunked. It takes
// Host from the authority, and it frames the body itself: h's own fields for
// framing and for the connection are left out.
func (c *Conn) Request(dst []byte, h *message.Head, length int64) ([]byte, error) {
	if c.server || c.in != inIdle {
		return dst, ErrState
	}
	if f := checkHead(h); f != nil {
		return dst, f
	}
	if f := h.CheckRequest(); f != nil {
		return dst, f
	}
	method, target := h.Method, h.Path
	upgrade := len(h.Protocol) > 0
	if string(method) == "CONNECT" {
		if upgrade { // extended CONNECT of HTTP/2 (RFC 8441)
			method = get
		} else {
			target = h.Authority
		}
	}
	connect := string(method) == "CONNECT"
	if (connect || upgrade) && length != 0 || length < Chunked || upgrade && message.CheckValue(h.Protocol) != nil {
		return dst, ErrState
	}
	c.asked = request{head: string(method) == "HEAD", connect: connect, upgrade: upgrade}
	dst = append(append(append(append(dst, method...), ' '), target...), " HTTP/1.1\r\nHost: "...)
	dst = append(append(dst, h.Authority...), crlf...)
	c.in, c.close = inHead, c.draining
	body := length != 0 || string(method) == "POST" || string(method) == "PUT" || string(method) == "PATCH"
	dst = c.finishHead(dst, h, length, body)
	if connect || upgrade {
		c.outDone = true
	}
	return dst, nil
}

var get = []byte("GET")

const crlf = "\r\n"

// Inform appends a 1xx response, but for 101. Clients of HTTP/1.0 get none.
func (c *Conn) Inform(dst []byte, h *message.Head) ([]byte, error) {
	if !c.server || c.out != outNone || c.in == inHead || c.in == inDead || h.Status < 100 || h.Status > 199 || h.Status == 101 {
		return dst, ErrState
	}
	if f := checkHead(h); f != nil {
		return dst, f
	}
	if c.asked.old {
		return dst, nil
	}
	if h.Status == 100 {
		c.asked.expects = false
	}
	return append(appendFields(appendStatus(dst, h.Status), h), crlf...), nil
}

// Respond appends the final response with a body of length bytes, or Chunked:
// then the peer's version decides how the end is marked. Responses to HEAD and
// 304 carry the length alone. A response that switches protocols makes the
// connection raw.
func (c *Conn) Respond(dst []byte, h *message.Head, length int64) ([]byte, error) {
	if !c.server || c.out != outNone || c.in == inHead || c.in == inDead || h.Status < 101 || h.Status > 599 || length < Chunked {
		return dst, ErrState
	}
	switched := c.asked.connect && h.Status/100 == 2 || h.Status == 101
	if h.Status < 200 && !c.asked.upgrade || switched && length > 0 {
		return dst, ErrState
	}
	if f := checkHead(h); f != nil {
		return dst, f
	}
	if c.asked.expects || c.draining {
		// A client that waits for 100 may or may not send its body now: nothing after it can be read.
		c.close = true
	}
	dst = appendStatus(dst, h.Status)
	if switched {
		return c.switchTo(dst, h), nil
	}
	c.asked.upgrade = false
	bodiless := c.asked.head || h.Status == 304
	if h.Status == 204 {
		length, bodiless = 0, true
	}
	if length == Chunked && c.asked.old && !bodiless {
		c.close = true
	}
	announce := !bodiless || h.Status != 204 && length > 0
	if bodiless {
		return c.headOnly(dst, h, length, announce), nil
	}
	return c.finishHead(dst, h, length, announce), nil
}

// switchTo ends the head of a response after which the connection is raw.
func (c *Conn) switchTo(dst []byte, h *message.Head) []byte {
	dst = appendFields(dst, h)
	if h.Status == 101 {
		dst = append(dst, "Connection: upgrade\r\nUpgrade: "...)
		protocol := h.Protocol
		if len(protocol) == 0 {
			protocol = h.Get(message.Upgrade)
		}
		dst = append(append(dst, protocol...), crlf...)
	}
	c.in, c.out, c.close = inRaw, outRaw, true
	return append(dst, crlf...)
}

// headOnly ends a head that no body follows, whatever length it names.
func (c *Conn) headOnly(dst []byte, h *message.Head, length int64, announce bool) []byte {
	if announce && length >= 0 {
		dst = appendLength(dst, length)
	}
	dst = append(appendFields(c.appendConnection(dst, h), h), crlf...)
	c.out = outEmpty
	c.sent()
	return dst
}

// finishHead appends framing, connection and fields.
func (c *Conn) finishHead(dst []byte, h *message.Head, length int64, announce bool) []byte {
	switch {
	case length == Chunked && c.server && c.asked.old:
		c.out = outClose
	case length == Chunked:
		c.out = outChunked
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	default:
		c.out, c.outLeft = outExact, length
		if announce {
			dst = appendLength(dst, length)
		}
	}
	dst = append(appendFields(c.appendConnection(dst, h), h), crlf...)
	if c.out == outExact && length == 0 {
		c.out = outEmpty
		c.sent()
	}
	return dst
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	return append(strconv.AppendInt(dst, n, 10), crlf...)
}

// appendConnection appends the Connection field that this hop needs.
func (c *Conn) appendConnection(dst []byte, h *message.Head) []byte {
	const name = "Connection: "
	start := len(dst)
	dst = append(dst, name...)
	if c.close {
		dst = append(dst, "close, "...)
	} else if c.server && c.asked.old {
		dst = append(dst, "keep-alive, "...)
	}
	if !c.server && h.Index(message.TE, 0) >= 0 {
		dst = append(dst, "TE, "...)
	}
	if !c.server && c.asked.upgrade {
		dst = append(dst, "upgrade, "...)
	}
	if len(dst) == start+len(name) {
		return dst[:start]
	}
	dst = append(dst[:len(dst)-2], crlf...)
	if !c.server && c.asked.upgrade {
		dst = append(append(append(dst, "Upgrade: "...), h.Protocol...), crlf...)
	}
	return dst
}

// own reports whether the writers make a field themselves, or leave it out.
func own(id message.Name) bool {
	switch id {
	case message.Host, message.ContentLength, message.TransferEncoding, message.Connection,
		message.Upgrade, message.KeepAlive, message.ProxyConnection, message.HTTP2Settings:
		return true
	default:
		return false
	}
}

func appendFields(dst []byte, h *message.Head) []byte {
	for i := range h.Fields {
		f := &h.Fields[i]
		if !own(f.ID) {
			dst = append(append(dst, f.Name...), ':', ' ')
			dst = append(append(dst, f.Value...), crlf...)
		}
	}
	return dst
}

// checkHead returns the fault of a head that must not be written: a line end
// in a name or value would become a field or message of its own.
func checkHead(h *message.Head) *message.Fault {
	for i := range h.Fields {
		f := &h.Fields[i]
		if !message.Token(f.Name) {
			return message.ErrName
		}
		if bad := message.CheckValue(f.Value); bad != nil {
			return bad
		}
	}
	return message.CheckValue(h.Protocol)
}

// Data appends bytes of the body, or of the raw stream.
func (c *Conn) Data(dst, p []byte) ([]byte, error) {
	if len(p) == 0 {
		return dst, nil
	}
	switch c.out {
	case outExact:
		if int64(len(p)) > c.outLeft {
			return dst, ErrBodySize
		}
		c.outLeft -= int64(len(p))
	case outChunked:
		dst = append(strconv.AppendInt(dst, int64(len(p)), 16), crlf...)
		return append(append(dst, p...), crlf...), nil
	case outClose, outRaw:
	default:
		return dst, ErrState
	}
	return append(dst, p...), nil
}

// Frame is Data for bytes that the caller writes itself: it appends what comes
// before n bytes, and returns what comes behind them.
func (c *Conn) Frame(dst []byte, n int) (before []byte, after string, err error) {
	switch {
	case n <= 0 || c.out == outNone || c.out == outEmpty:
		return dst, "", ErrState
	case c.out == outExact:
		if int64(n) > c.outLeft {
			return dst, "", ErrBodySize
		}
		c.outLeft -= int64(n)
	case c.out == outChunked:
		return append(strconv.AppendInt(dst, int64(n), 16), crlf...), crlf, nil
	}
	return dst, "", nil
}

// Finish ends the body. Trailers go out with a chunked body; the other framings
// have no place for them. trailers may be nil. A head without a body has ended
// its message already: then Finish appends nothing.
func (c *Conn) Finish(dst []byte, trailers *message.Head) ([]byte, error) {
	switch c.out {
	case outNone:
		if c.server && c.in != inHead && c.in != inDead { // no response to this request yet
			return dst, ErrState
		}
		return dst, nil
	case outEmpty:
		return dst, nil
	case outExact:
		if c.outLeft != 0 {
			return dst, ErrBodySize
		}
	case outChunked:
		if trailers != nil {
			if f := checkHead(trailers); f != nil {
				return dst, f
			}
			if f := trailers.CheckTrailers(); f != nil {
				return dst, f
			}
		}
		dst = append(dst, "0\r\n"...)
		if trailers != nil {
			dst = appendFields(dst, trailers)
		}
		dst = append(dst, crlf...)
	case outClose:
		c.close = true
	case outRaw: // the other side of an upgrade
	}
	c.out = outEmpty
	c.sent()
	return dst, nil
}

// sent notes that the message to the peer is complete.
func (c *Conn) sent() {
	c.outDone = true
	c.next()
}

// Refuse appends the answer to a request that Receive refused. It appends
// nothing when a response has begun: then the connection can only be closed.
func (c *Conn) Refuse(dst []byte) []byte {
	if !c.server || c.fault == nil || c.out != outNone {
		return dst
	}
	c.out = outEmpty
	dst = appendStatus(dst, c.fault.Status())
	return append(dst, "Content-Length: 0\r\nConnection: close\r\n\r\n"...)
}

// appendStatus appends a status line.
func appendStatus(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(strconv.AppendInt(dst, int64(status), 10), ' ')
	return append(append(dst, statusText[status]...), crlf...)
}

// statusText has the phrases of the statuses (RFC 9110, 15). Not net/http's
// function: the engine does not link net/http.
var statusText = [600]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints", 200: "OK", 201: "Created", 202: "Accepted",
	203: "Non-Authoritative Information", 204: "No Content", 205: "Reset Content", 206: "Partial Content", 300: "Multiple Choices",
	301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable",
	408: "Request Timeout", 409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large",
	414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed", 421: "Misdirected Request",
	422: "Unprocessable Content", 425: "Too Early", 426: "Upgrade Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
	505: "HTTP Version Not Supported",
}
