// Package socks5 serves programs of a pod that ask for connections by SOCKS5 (RFC 1928),
// at port 15080 of the pod's loopback. It reads what they ask for and answers; its owner
// makes the connection, by the same rules as any other.
package socks5

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Code is what a reply reports.
type Code byte

// The codes of RFC 1928.
const (
	Succeeded          Code = 0
	GeneralFailure     Code = 1
	NotAllowed         Code = 2
	NetworkUnreachable Code = 3
	HostUnreachable    Code = 4
	ConnectionRefused  Code = 5
	TTLExpired         Code = 6
	CommandUnsupported Code = 7
	AddressUnsupported Code = 8
)

const (
	version     = 5
	noneOffered = 0xff // no method of authentication that is accepted
	withoutAuth = 0    // the method without authentication
	connectCmd  = 1
	ipv4        = 1
	domainName  = 3
	ipv6        = 4
	maxName     = 253
	maxLabel    = 63
	// maxMessage is the longest message: 4 bytes, a name with its length, a port.
	maxMessage = 4 + 1 + 255 + 2
)

// Request is the destination that a program asks for.
type Request struct {
	Addr netip.Addr // invalid where there is a name
	Host string     // without a dot at its end
	Port uint16
}

// String returns host:port.
func (r Request) String() string {
	if r.Addr.IsValid() {
		return netip.AddrPortFrom(r.Addr, r.Port).String()
	}
	return fmt.Sprintf("%s:%d", r.Host, r.Port)
}

// Step is what follows after bytes were taken.
type Step uint8

// The steps.
const (
	More    Step = iota // read on
	Answer              // send the answer, and read on
	Refusal             // send the answer, and end the connection
	Done                // Request is complete
)

// phase is the part of a message that is read.
type phase uint8

const (
	greeting phase = iota
	methods
	head
	nameLength
	address
	finished
)

// Handshake reads a program's messages. It takes no byte that comes after them: those
// are for the destination. The zero value is not ready, see Begin.
type Handshake struct {
	Request Request
	// Err is why there is a Refusal.
	Err error

	phase phase
	kind  byte // of the address
	n     int
	need  int
	buf   [maxMessage]byte
	out   [10]byte
}

// Begin makes it ready for a program.
func (h *Handshake) Begin() { h.phase, h.n, h.need = greeting, 0, 2 }

// Room returns where the next bytes go, at least one and no more than there can be of the
// message.
func (h *Handshake) Room() []byte { return h.buf[h.n:h.need] }

// Got takes n bytes that were put into Room. The answer's memory is valid until the next
// call.
func (h *Handshake) Got(n int) (answer []byte, next Step) {
	if h.n += n; h.n < h.need {
		return nil, More
	}
	switch h.phase {
	case greeting:
		if h.buf[0] != version {
			// A program that speaks something else does not read a reply either.
			return h.refuse(nil, "version %d", h.buf[0])
		}
		if h.buf[1] == 0 {
			return h.refuse([]byte{version, noneOffered}, "no method of authentication is offered")
		}
		return h.wait(methods, int(h.buf[1]))
	case methods:
		for _, m := range h.buf[2:h.n] {
			if m == withoutAuth {
				h.phase, h.n, h.need = head, 0, 4
				return append(h.out[:0], version, withoutAuth), Answer
			}
		}
		return h.refuse([]byte{version, noneOffered}, "every method that the program offers has authentication (offer method 0, no authentication)")
	case head:
		return h.command()
	case nameLength:
		if h.buf[4] == 0 {
			return h.fail(GeneralFailure, "the name is empty")
		}
		return h.wait(address, int(h.buf[4])+2)
	default:
		return h.complete()
	}
}

// wait has more bytes of the message read.
func (h *Handshake) wait(p phase, more int) ([]byte, Step) {
	h.phase, h.need = p, h.n+more
	return nil, More
}

func (h *Handshake) command() ([]byte, Step) {
	switch {
	case h.buf[0] != version:
		return h.fail(GeneralFailure, "version %d", h.buf[0])
	case h.buf[1] != connectCmd:
		return h.fail(CommandUnsupported, "command %d; there is CONNECT alone", h.buf[1])
	case h.buf[2] != 0:
		return h.fail(GeneralFailure, "the reserved byte is %d", h.buf[2])
	}
	switch h.kind = h.buf[3]; h.kind {
	case ipv4:
		return h.wait(address, 4+2)
	case ipv6:
		return h.wait(address, 16+2)
	case domainName:
		return h.wait(nameLength, 1)
	}
	return h.fail(AddressUnsupported, "address type %d", h.kind)
}

func (h *Handshake) complete() ([]byte, Step) {
	end := h.n - 2
	h.Request.Port = binary.BigEndian.Uint16(h.buf[end:h.n])
	if h.Request.Port == 0 {
		return h.fail(GeneralFailure, "port 0")
	}
	if h.kind != domainName {
		a, _ := netip.AddrFromSlice(h.buf[4:end])
		h.Request.Addr = a.Unmap()
	} else if err := h.Request.name(string(h.buf[5:end])); err != nil {
		return h.fail(GeneralFailure, "%w", err)
	}
	h.phase = finished
	return nil, Done
}

// name takes the text of a name, which may be an address.
func (r *Request) name(text string) error {
	host := strings.TrimSuffix(text, ".")
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		r.Addr = a.Unmap()
		return nil
	}
	if len(host) > maxName {
		return fmt.Errorf("a name of %d bytes", len(host))
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > maxLabel {
			return fmt.Errorf("name %q: a label of %d bytes", host, len(label))
		}
		for _, c := range []byte(label) {
			if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return fmt.Errorf("name %q: %q is in no host name", host, c)
			}
		}
	}
	r.Host = strings.ToLower(host)
	return nil
}

func (h *Handshake) fail(c Code, format string, args ...any) ([]byte, Step) {
	return h.refuse(AppendReply(h.out[:0], c), format, args...)
}

func (h *Handshake) refuse(answer []byte, format string, args ...any) ([]byte, Step) {
	h.phase, h.Err = finished, fmt.Errorf("SOCKS5: "+format, args...)
	return answer, Refusal
}

// AppendReply adds a reply. It names no address: programs have no use for the proxy's.
func AppendReply(b []byte, c Code) []byte {
	return append(b, version, byte(c), 0, ipv4, 0, 0, 0, 0, 0, 0)
}
