// Package proxyproto writes the PROXY protocol's version 2 header, which tells
// an application behind the proxy who is calling; and reads it, for tests and
// for applications of this project.
//
// Specification: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Type-length-value types of Istio's node proxy.
const (
	TLVSourceIdentity  = 0xD0 // SPIFFE ID of the caller
	TLVServiceHostname = 0xD1 // reserved: hostname of the called service
)

const signature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	headerLen   = 16
	versionCmd  = 0x21 // version 2, PROXY
	versionOwn  = 0x20 // version 2, LOCAL
	familyTCP4  = 0x11
	familyTCP6  = 0x21
	maxIdentity = 2048 // SPIFFE ID, section 2.3
)

// maxHeader bounds what Decode accepts. Nothing that is written here comes
// near it.
const maxHeader = 4 << 10

// ErrIncomplete tells that more bytes are needed.
var ErrIncomplete = errors.New("incomplete PROXY header")

// ErrMalformed is matched by every other error of Decode.
var ErrMalformed = errors.New("malformed PROXY header")

// Header is what a PROXY header says.
type Header struct {
	// Src and Dst are the ends of the original connection.
	Src, Dst netip.AddrPort
	// Identity is the caller's SPIFFE ID; empty when it has none.
	Identity string
}

// Append appends the header to b. When the families of the addresses differ,
// both are written as IPv6. An identity longer than a SPIFFE ID can be is left
// out.
func Append(b []byte, h Header) []byte {
	src, dst := h.Src.Addr().Unmap(), h.Dst.Addr().Unmap()
	family, addrs := byte(familyTCP4), 12
	if !src.Is4() || !dst.Is4() {
		family, addrs = familyTCP6, 36
	}
	tlv := 0
	if n := len(h.Identity); n > 0 && n <= maxIdentity {
		tlv = 3 + n
	}
	b = append(b, signature...)
	b = append(b, versionCmd, family)
	b = binary.BigEndian.AppendUint16(b, uint16(addrs+tlv))
	if family == familyTCP4 {
		s, d := src.As4(), dst.As4()
		b = append(append(b, s[:]...), d[:]...)
	} else {
		s, d := src.As16(), dst.As16()
		b = append(append(b, s[:]...), d[:]...)
	}
	b = binary.BigEndian.AppendUint16(b, h.Src.Port())
	b = binary.BigEndian.AppendUint16(b, h.Dst.Port())
	if tlv > 0 {
		b = append(b, TLVSourceIdentity)
		b = binary.BigEndian.AppendUint16(b, uint16(len(h.Identity)))
		b = append(b, h.Identity...)
	}
	return b
}

// Decode reads a header from the front of b and tells its length. A LOCAL
// header (a health check of the proxy itself) has no addresses.
func Decode(b []byte) (Header, int, error) {
	n := min(len(b), len(signature))
	if string(b[:n]) != signature[:n] {
		return Header{}, 0, fmt.Errorf("%w: no signature", ErrMalformed)
	}
	if len(b) < headerLen {
		return Header{}, 0, ErrIncomplete
	}
	length := int(binary.BigEndian.Uint16(b[14:]))
	if length > maxHeader {
		return Header{}, 0, fmt.Errorf("%w: %d bytes", ErrMalformed, length)
	}
	if len(b) < headerLen+length {
		return Header{}, 0, ErrIncomplete
	}
	body := b[headerLen : headerLen+length]
	switch b[12] {
	case versionOwn:
		return Header{}, headerLen + length, nil
	case versionCmd:
	default:
		return Header{}, 0, fmt.Errorf("%w: version and command %#x", ErrMalformed, b[12])
	}
	var h Header
	var size int
	switch b[13] {
	case familyTCP4:
		size = 4
	case familyTCP6:
		size = 16
	default:
		return Header{}, 0, fmt.Errorf("%w: family %#x", ErrMalformed, b[13])
	}
	if len(body) < 2*size+4 {
		return Header{}, 0, fmt.Errorf("%w: %d bytes of addresses", ErrMalformed, len(body))
	}
	src, _ := netip.AddrFromSlice(body[:size])
	dst, _ := netip.AddrFromSlice(body[size : 2*size])
	ports := body[2*size:]
	h.Src = netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(ports))
	h.Dst = netip.AddrPortFrom(dst.Unmap(), binary.BigEndian.Uint16(ports[2:]))
	for tlv := ports[4:]; len(tlv) > 0; {
		if len(tlv) < 3 {
			return Header{}, 0, fmt.Errorf("%w: torn TLV", ErrMalformed)
		}
		n := int(binary.BigEndian.Uint16(tlv[1:]))
		if len(tlv) < 3+n {
			return Header{}, 0, fmt.Errorf("%w: TLV of %d bytes in %d", ErrMalformed, n, len(tlv)-3)
		}
		if tlv[0] == TLVSourceIdentity {
			h.Identity = string(tlv[3 : 3+n])
		}
		tlv = tlv[3+n:]
	}
	return h, headerLen + length, nil
}
