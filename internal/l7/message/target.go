package message

import (
	"bytes"
	"net/netip"
)

// CheckAuthority returns the fault of a host with or without a port: user
// information, an empty host, a port above 65535, or bytes that no host name
// has.
func CheckAuthority[T []byte | string](a T) *Fault {
	host, port, ok := splitPort(a)
	if !ok || len(host) == 0 {
		return ErrAuthority
	}
	if host[0] == '[' {
		// ParseAddr of a string that does not escape allocates only for errors and zones.
		ip, err := netip.ParseAddr(string(host[1 : len(host)-1]))
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return ErrAuthority
		}
	} else {
		for i := 0; i < len(host); i++ {
			if class[host[i]]&isHost == 0 {
				return ErrAuthority
			}
		}
	}
	n := 0
	for i := 0; i < len(port); i++ {
		n = n*10 + int(port[i]-'0')
	}
	if n > 65535 {
		return ErrAuthority
	}
	return nil
}

// splitPort cuts a at the colon before a port of one to five digits. ok is
// false if brackets or port are malformed.
func splitPort[T []byte | string](a T) (host, port T, ok bool) {
	end := -1
	if len(a) > 0 && a[0] == '[' {
		for i := 0; i < len(a); i++ {
			if a[i] == ']' {
				end = i + 1
				break
			}
		}
		if end < 3 {
			return a, port, false
		}
	} else {
		for end = 0; end < len(a) && a[end] != ':'; end++ {
		}
	}
	host = a[:end]
	if end == len(a) {
		return host, port, true
	}
	port = a[end+1:]
	if a[end] != ':' || len(port) == 0 || len(port) > 5 {
		return host, port, false
	}
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return host, port, false
		}
	}
	return host, port, true
}

// HostOf returns an authority without its port.
func HostOf(a []byte) []byte {
	if host, _, ok := splitPort(a); ok {
		return host
	}
	return a
}

// SetTarget takes the target of a request whose Method is set (RFC 9112, 3.2):
// a path, an absolute URI, an authority for CONNECT, or * for OPTIONS.
func (h *Head) SetTarget(t []byte) *Fault {
	for _, b := range t {
		if class[b]&isTarget == 0 {
			return ErrTarget
		}
		if b == '#' {
			return ErrFragment
		}
	}
	switch {
	case string(h.Method) == "CONNECT":
		if _, port, ok := splitPort(t); !ok || len(port) == 0 {
			return ErrTarget
		}
		h.Authority = t
		return CheckAuthority(t)
	case len(t) > 0 && t[0] == '/':
		h.Path = t
		return checkEscapes(h.PathOnly())
	case string(t) == "*" && string(h.Method) == "OPTIONS":
		h.Path = t
		return nil
	}
	return h.setAbsolute(t)
}

var root = []byte("/")

func (h *Head) setAbsolute(t []byte) *Fault {
	i := bytes.Index(t, []byte("://"))
	if i <= 0 {
		return ErrTarget
	}
	if h.Scheme = t[:i]; !EqualFold(h.Scheme, "http") && !EqualFold(h.Scheme, "https") {
		return ErrScheme
	}
	rest := t[i+3:]
	slash := bytes.IndexByte(rest, '/')
	if slash < 0 { // http://host, http://host?query: other parsers disagree about the path
		if bytes.IndexByte(rest, '?') >= 0 {
			return ErrTarget
		}
		h.Authority, h.Path = rest, root
		return CheckAuthority(rest)
	}
	h.Authority, h.Path = rest[:slash], rest[slash:]
	if f := CheckAuthority(h.Authority); f != nil {
		return f
	}
	return checkEscapes(h.PathOnly())
}

// checkEscapes returns the fault of a path whose percent signs are not all
// followed by two hexadecimal digits.
func checkEscapes(p []byte) *Fault {
	for i := 0; i < len(p); i++ {
		if p[i] == '%' {
			if _, ok := Unescape(p[i:]); !ok {
				return ErrEscape
			}
		}
	}
	return nil
}

// Unescape returns the byte that the three bytes at the start of p encode.
func Unescape(p []byte) (byte, bool) {
	if len(p) < 3 {
		return 0, false
	}
	hi, lo := hex(p[1]), hex(p[2])
	return hi<<4 | lo, hi < 16 && lo < 16
}

func hex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}
