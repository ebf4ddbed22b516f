package message

import "bytes"

// Normalisation is how a path is made the one form that routes and policies
// see and that is forwarded.
type Normalisation uint8

const (
	// Strict refuses each path that two programs might read in two ways, and
	// decodes percent-encoded unreserved characters. It is the default.
	Strict Normalisation = iota
	// None changes nothing.
	None
	// Base decodes unreserved characters, makes a backslash a slash and
	// removes dot segments (RFC 3986, 6.2.2).
	Base
	// MergeSlashes is Base, and then a run of slashes is made one.
	MergeSlashes
	// DecodeAndMergeSlashes decodes %2F and %5C first, then is MergeSlashes.
	DecodeAndMergeSlashes
)

// NormalisePath replaces h.Path by its normal form, or returns why the path is
// refused. The query stays as it is.
func (h *Head) NormalisePath(mode Normalisation) *Fault {
	path := h.PathOnly()
	if bytes.IndexByte(path, '#') >= 0 {
		return ErrFragment
	}
	if mode == None || len(path) == 0 || path[0] != '/' { // CONNECT, OPTIONS *
		return nil
	}
	if mode == Strict && plain(path) {
		return nil
	}
	at := h.room(len(h.Path))
	out, f := appendNormal(h.arena, path, mode)
	if f != nil {
		return f
	}
	h.arena = append(out, h.Path[len(path):]...) //nolint:gocritic // out continues the arena
	h.Path = h.arena[at:len(h.arena):len(h.arena)]
	return nil
}

// plain reports whether a path has nothing that strict would look at: the
// common case, which then costs one pass and no copy.
func plain(path []byte) bool {
	for i, c := range path {
		switch c {
		case '%', ';', '\\':
			return false
		case '/', '.':
			if i > 0 && path[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

// appendNormal appends the normal form of path to dst, which has the room: a
// normal form is never longer.
func appendNormal(dst, path []byte, mode Normalisation) ([]byte, *Fault) {
	start := len(dst)
	dst, f := appendDecoded(dst, path, mode)
	if f != nil {
		return dst, f
	}
	if mode == Strict {
		return dst, ambiguous(dst[start:])
	}
	dst = dst[:start+removeDots(dst[start:])]
	if mode >= MergeSlashes {
		dst = dst[:start+mergeSlashes(dst[start:])]
	}
	return dst, nil
}

func appendDecoded(dst, path []byte, mode Normalisation) ([]byte, *Fault) {
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' && mode != Strict {
			c = '/'
		}
		if c != '%' {
			dst = append(dst, c)
			continue
		}
		d, ok := Unescape(path[i:])
		switch {
		case !ok:
			return dst, ErrEscape
		case d < 0x20 || d == 0x7f:
			return dst, ErrPathControl
		case class[d]&isUnreserved != 0:
			dst = append(dst, d)
		case mode == DecodeAndMergeSlashes && (d == '/' || d == '\\'):
			dst = append(dst, '/')
		case mode == Strict && d == '/':
			return dst, ErrPathSlash
		case mode == Strict && d == '\\':
			return dst, ErrPathBackslash
		case mode == Strict && d == ';':
			return dst, ErrPathParameter
		case mode == Strict && d == '%' && encodedTwice(path[i+3:]):
			return dst, ErrPathDouble
		default:
			dst = append(dst, path[i:i+3]...)
		}
		i += 2
	}
	return dst, nil
}

// encodedTwice reports whether what follows %25 would be an escape once %25 is
// decoded: two hexadecimal digits, plain or themselves encoded.
func encodedTwice(p []byte) bool {
	for range 2 {
		if len(p) == 0 {
			return false
		}
		c, n := p[0], 1
		if c == '%' {
			d, ok := Unescape(p)
			if !ok {
				return false
			}
			c, n = d, 3
		}
		if hex(c) > 15 {
			return false
		}
		p = p[n:]
	}
	return true
}

// ambiguous returns the fault of a decoded path that strict refuses.
func ambiguous(p []byte) *Fault {
	for i, c := range p {
		switch {
		case c == ';':
			return ErrPathParameter
		case c == '\\':
			return ErrPathBackslash
		case c == '/' && i > 0 && p[i-1] == '/':
			return ErrPathEmptySeg
		case c == '/' || i == 0:
			if dots(segment(p[i+1:])) {
				return ErrPathDots
			}
		}
	}
	return nil
}

func segment(p []byte) []byte {
	if i := bytes.IndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return p
}

func dots(s []byte) bool { return string(s) == "." || string(s) == ".." }

// removeDots removes dot segments in place (RFC 3986, 5.2.4) and returns the
// new length. p starts with a slash.
func removeDots(p []byte) int {
	n := 0
	for i := 0; i < len(p); {
		s := segment(p[i+1:])
		next := i + 1 + len(s)
		switch {
		case !dots(s):
			n += copy(p[n:], p[i:next])
		default:
			if len(s) == 2 {
				n = max(0, bytes.LastIndexByte(p[:n], '/'))
			}
			if next == len(p) { // a dot segment at the end leaves its slash
				p[n] = '/'
				n++
			}
		}
		i = next
	}
	return n
}

func mergeSlashes(p []byte) int {
	n := 0
	for i, c := range p {
		if c == '/' && i > 0 && p[n-1] == '/' {
			continue
		}
		p[n] = c
		n++
	}
	return n
}
