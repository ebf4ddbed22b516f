// Package sniff finds out from the first bytes of a connection which version of HTTP it
// carries, if any.
package sniff

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Guess is what the first bytes of a connection are.
type Guess uint8

// The guesses. Undecided needs more bytes.
const (
	Undecided Guess = iota
	HTTP1
	HTTP2
	Other
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Look looks at the first bytes of a connection, all that have come. It reads no
// further than the request line.
func Look(p []byte) Guess {
	if n := min(len(p), len(preface)); string(p[:n]) == preface[:n] {
		if n == len(preface) {
			return HTTP2
		}
		return Undecided
	}
	space := bytes.IndexByte(p[:min(len(p), message.MaxMethod+1)], ' ')
	method := p
	if space >= 0 {
		method = p[:space]
	} else if len(p) > message.MaxMethod {
		return Other
	}
	for _, c := range method {
		if c < 'A' || 'Z' < c {
			return Other
		}
	}
	if space < 0 {
		return Undecided
	}
	if space == 0 {
		return Other
	}
	line, _, complete := bytes.Cut(p, []byte("\n"))
	if !complete {
		if len(p) > http1.MaxStartLine {
			return Other
		}
		for _, c := range line {
			if c < ' ' && c != '\r' || c >= 0x7f {
				return Other
			}
		}
		return Undecided
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	at := bytes.LastIndexByte(line, ' ')
	if at > space && bytes.HasPrefix(line[at+1:], []byte("HTTP/1.")) {
		return HTTP1
	}
	return Other
}
