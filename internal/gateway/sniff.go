package gateway

import (
	"bytes"

	"github.com/ambit-mesh/ambit/internal/l7/http1"
)

// guess is what the first bytes of a connection are.
type guess uint8

const (
	undecided guess = iota
	isHTTP1
	isHTTP2
	isOther
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// sniff looks at the first bytes of a connection, all that have come. It reads no
// further than the request line.
func sniff(p []byte) guess {
	if n := min(len(p), len(preface)); string(p[:n]) == preface[:n] {
		if n == len(preface) {
			return isHTTP2
		}
		return undecided
	}
	space := bytes.IndexByte(p[:min(len(p), http1.MaxMethod+1)], ' ')
	method := p
	if space >= 0 {
		method = p[:space]
	} else if len(p) > http1.MaxMethod {
		return isOther
	}
	for _, c := range method {
		if c < 'A' || 'Z' < c {
			return isOther
		}
	}
	if space < 0 {
		return undecided
	}
	if space == 0 {
		return isOther
	}
	line, _, complete := bytes.Cut(p, []byte("\n"))
	if !complete {
		if len(p) > http1.MaxStartLine {
			return isOther
		}
		for _, c := range line {
			if c < ' ' && c != '\r' || c >= 0x7f {
				return isOther
			}
		}
		return undecided
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	at := bytes.LastIndexByte(line, ' ')
	if at > space && bytes.HasPrefix(line[at+1:], []byte("HTTP/1.")) {
		return isHTTP1
	}
	return isOther
}
