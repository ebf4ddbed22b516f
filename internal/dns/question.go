// Package dns decides what a look-up of a pod gets: an answer from the directory, or
// the way to the pod's own name server. It reads questions and writes answers, and does
// no IO. Names of the mesh are answered; everything else is not interpreted.
//
// No part of it follows a compression pointer. A question that has one in its name is
// not answered from the directory.
package dns

import "encoding/binary"

// Types and classes of records.
const (
	TypeA     = 1
	TypeCNAME = 5
	TypePTR   = 12
	TypeTXT   = 16
	TypeAAAA  = 28
	TypeSRV   = 33
	TypeOPT   = 41
	TypeAXFR  = 252
	TypeIXFR  = 251
	ClassIN   = 1
)

// Response codes.
const (
	NoError  = 0
	ServFail = 2
	NXDomain = 3
	Refused  = 5
)

// Lengths in bytes.
const (
	headerLength = 12
	// MaxMessage is the length of the longest message there is, over TCP.
	MaxMessage = 65535
	// minUDP is what a client takes over UDP that does not say more, maxUDP what it
	// gets at most.
	minUDP, maxUDP = 512, 4096
	// maxName is the length of the longest name, written with dots.
	maxName = 253
	// maxRecords bounds the records after a question that are looked at.
	maxRecords = 8
)

// Bits of the second word of a header.
const (
	bitResponse  = 1 << 15
	bitAuthority = 1 << 10
	bitTruncated = 1 << 9
	bitDesired   = 1 << 8 // recursion
	bitAvailable = 1 << 7
	bitChecking  = 1 << 4 // disabled
	maskOpcode   = 15 << 11
	maskRcode    = 15
)

// Question is what a message asks. Its memory belongs to the caller and can be used for
// the next one.
type Question struct {
	// ID, and whether the message is a question at all: it has a header, and is no
	// response.
	ID    uint16
	Asks  bool
	flags uint16
	// Plain: it is one question of the usual kind, for a name as hosts have it. Only
	// then the rest is valid.
	Plain bool
	Type  uint16
	Class uint16
	// EDNS: the client reads the extension. Size is how long an answer over UDP
	// may be.
	EDNS bool
	Size int

	name [maxName]byte // in lower case, with dots, without the last one
	n    int
	end  int // of the question in the message
}

// Name returns the name in lower case, without a final dot. It is valid until the next
// Parse.
func (q *Question) Name() []byte { return q.name[:q.n] }

// Parse reads a message. What it cannot read is not Plain, and never an error: the
// pod's name server is to see it.
func (q *Question) Parse(m []byte) {
	q.ID, q.Asks, q.Plain, q.EDNS, q.Size, q.n, q.Type, q.Class = 0, false, false, false, minUDP, 0, 0, 0
	if len(m) < headerLength {
		return
	}
	q.ID, q.flags = binary.BigEndian.Uint16(m), binary.BigEndian.Uint16(m[2:])
	q.Asks = q.flags&bitResponse == 0
	count := func(i int) int { return int(binary.BigEndian.Uint16(m[4+2*i:])) }
	if !q.Asks || q.flags&(maskOpcode|bitTruncated) != 0 || count(0) != 1 {
		return
	}
	at, ok := q.readName(m)
	if !ok || at+4 > len(m) {
		return
	}
	q.Type, q.Class, q.end = binary.BigEndian.Uint16(m[at:]), binary.BigEndian.Uint16(m[at+2:]), at+4
	if count(1) != 0 || count(2) != 0 || count(3) > maxRecords {
		return
	}
	q.Plain = q.readAdditional(m, count(3))
}

// readName reads the name of the question, and returns where it ends.
func (q *Question) readName(m []byte) (end int, ok bool) {
	for at := headerLength; at < len(m); {
		length := int(m[at])
		if length == 0 {
			return at + 1, q.n > 0
		}
		if length > 63 || at+1+length > len(m) {
			return 0, false
		}
		if q.n > 0 {
			if q.n == maxName {
				return 0, false
			}
			q.name[q.n] = '.'
			q.n++
		}
		if q.n+length > maxName {
			return 0, false
		}
		for _, c := range m[at+1 : at+1+length] {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return 0, false
			}
			q.name[q.n] = c
			q.n++
		}
		at += 1 + length
	}
	return 0, false
}

// readAdditional reads the records after the question, in search of EDNS. It reports
// whether an answer can be written.
func (q *Question) readAdditional(m []byte, records int) bool {
	at := q.end
	for range records {
		root := at < len(m) && m[at] == 0
		var ok bool
		if at, ok = skipName(m, at); !ok || at+10 > len(m) {
			return false
		}
		kind, length := binary.BigEndian.Uint16(m[at:]), int(binary.BigEndian.Uint16(m[at+8:]))
		if at+10+length > len(m) {
			return false
		}
		if kind == TypeOPT {
			version := m[at+5]
			if q.EDNS || !root || version != 0 {
				return false
			}
			q.EDNS = true
			q.Size = min(max(int(binary.BigEndian.Uint16(m[at+2:])), minUDP), maxUDP)
		} else {
			return false // a signature, or something else that is not for a proxy
		}
		at += 10 + length
	}
	return at == len(m)
}

// skipName returns where the name at a place of a message ends. A pointer ends it.
func skipName(m []byte, at int) (end int, ok bool) {
	for at < len(m) {
		switch length := int(m[at]); {
		case length == 0:
			return at + 1, true
		case length >= 0xC0:
			return at + 2, at+2 <= len(m)
		case length > 63:
			return 0, false
		default:
			at += 1 + length
		}
	}
	return 0, false
}

// wholeName returns where the name of a question ends, if it has no pointer and is no
// longer than names may be.
func wholeName(m []byte) (end int, ok bool) {
	at := headerLength
	for at < len(m) && m[at] != 0 {
		if m[at] > 63 {
			return 0, false
		}
		at += 1 + int(m[at])
	}
	return at + 1, at < len(m) && at+1-headerLength <= maxName+2
}

// Answers reports whether a message is a response to a question, as its sender wrote
// it: the number, the operation and the question are the same. A response that only
// reports an error may leave the question out.
func Answers(question, m []byte) bool {
	if len(m) < headerLength || len(question) < headerLength {
		return false
	}
	asked, flags := binary.BigEndian.Uint16(question[2:]), binary.BigEndian.Uint16(m[2:])
	if m[0] != question[0] || m[1] != question[1] || flags&bitResponse == 0 || (flags^asked)&maskOpcode != 0 {
		return false
	}
	n, want := binary.BigEndian.Uint16(m[4:]), binary.BigEndian.Uint16(question[4:])
	if n == 0 && (want == 0 || flags&maskRcode != NoError && binary.BigEndian.Uint16(m[6:]) == 0) {
		return true
	}
	if n != want {
		return false
	}
	if n != 1 {
		return true // no name server answers several; there is nothing to compare them by
	}
	end, ok := skipName(question, headerLength)
	if !ok || end+4 > len(question) || end+4 > len(m) {
		return !ok // the name server makes of such a question what it likes
	}
	return sameName(question[headerLength:end], m[headerLength:end]) && string(question[end:end+4]) == string(m[end:end+4])
}

// sameName compares names as they are in messages, in any case of letters. A length of
// a label is below that of any letter.
func sameName(a, b []byte) bool {
	for i, c := range a {
		d := b[i]
		if c == d {
			continue
		}
		if c|0x20 != d|0x20 || c|0x20 < 'a' || c|0x20 > 'z' {
			return false
		}
	}
	return true
}

// Exists makes a response that the name does not exist into one that it has no such
// record, and reports whether it was one. The mesh knows the name.
func Exists(m []byte) bool {
	if len(m) < headerLength || m[3]&maskRcode != NXDomain {
		return false
	}
	m[3] &^= maskRcode
	return true
}

// Transfers reports whether a question may have several messages as its answer.
func Transfers(question []byte) bool {
	end, ok := skipName(question, headerLength)
	if !ok || end+2 > len(question) {
		return false
	}
	kind := binary.BigEndian.Uint16(question[end:])
	return kind == TypeAXFR || kind == TypeIXFR
}
