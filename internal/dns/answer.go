package dns

import (
	"encoding/binary"
	"net/netip"
)

const (
	// TTL is how long clients may keep an answer, in seconds.
	TTL = 30
	// ednsSize is how long messages over UDP may be that the proxy takes.
	ednsSize   = 1232
	optLength  = 11
	pointer    = 0xC000
	maxPointer = 1<<14 - 1
)

// Answer is what a question gets.
type Answer struct {
	Rcode byte
	// Alias is the name that the one asked for stands for; empty: it is the name itself.
	Alias string
	// Addrs are of the family that was asked for.
	Addrs []netip.Addr
	// Turn rotates the list, so that clients which take the first spread.
	Turn uint64
}

// Append appends the answer to a message that q was read from. Over UDP it is cut to
// what the client takes.
func (q *Question) Append(b, message []byte, a Answer, udp bool) []byte {
	limit := MaxMessage
	if udp {
		limit = q.Size
	}
	start := len(b)
	flags := uint16(bitResponse|bitAvailable) | q.flags&(bitDesired|bitChecking|maskOpcode) | uint16(a.Rcode)
	if a.Rcode == NoError {
		flags |= bitAuthority
	}
	b = binary.BigEndian.AppendUint16(b, q.ID)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(b, message[headerLength:q.end]...)
	if q.EDNS {
		limit -= optLength
	}
	w := writer{b: b, start: start, limit: limit, owner: headerLength}
	w.records(q, a)
	b = w.b
	binary.BigEndian.PutUint16(b[start+6:], w.n)
	if w.cut {
		b[start+2] |= bitTruncated >> 8
	}
	if q.EDNS {
		b[start+11] = 1
		b = append(b, 0, 0, TypeOPT, ednsSize>>8, ednsSize&0xFF, 0, 0, 0, 0, 0, 0)
	}
	return b
}

// Fail appends a response without records to a question that may not be plain.
func Fail(b, question []byte, rcode byte) []byte {
	if len(question) < headerLength {
		return b
	}
	flags := binary.BigEndian.Uint16(question[2:])
	b = binary.BigEndian.AppendUint16(b, binary.BigEndian.Uint16(question))
	b = binary.BigEndian.AppendUint16(b, bitResponse|bitAvailable|flags&(bitDesired|bitChecking|maskOpcode)|uint16(rcode))
	end, ok := wholeName(question)
	if !ok || end+4 > len(question) || binary.BigEndian.Uint16(question[4:]) != 1 {
		return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	return append(b, question[headerLength:end+4]...)
}

// writer writes records until the message is full.
type writer struct {
	b            []byte
	start, limit int
	owner        int // where the name is whose records come next
	n            uint16
	cut          bool
}

func (w *writer) records(q *Question, a Answer) {
	if a.Alias != "" {
		if !w.head(TypeCNAME, len(a.Alias)+2) {
			return
		}
		w.owner = len(w.b) - w.start
		w.b = appendName(w.b, a.Alias)
	}
	for i := range a.Addrs {
		addr := a.Addrs[(uint64(i)+a.Turn)%uint64(len(a.Addrs))]
		if !w.head(q.Type, addr.BitLen()/8) {
			return
		}
		if addr.Is4() {
			v := addr.As4()
			w.b = append(w.b, v[:]...)
		} else {
			v := addr.As16()
			w.b = append(w.b, v[:]...)
		}
	}
}

// head begins a record with so many bytes of data, if there is room.
func (w *writer) head(kind uint16, length int) bool {
	if w.owner > maxPointer || len(w.b)-w.start+12+length > w.limit {
		w.cut = true
		return false
	}
	w.b = binary.BigEndian.AppendUint16(w.b, pointer|uint16(w.owner))
	w.b = binary.BigEndian.AppendUint16(w.b, kind)
	w.b = binary.BigEndian.AppendUint16(w.b, ClassIN)
	w.b = binary.BigEndian.AppendUint32(w.b, TTL)
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(length))
	w.n++
	return true
}

// appendName appends a name that has dots, as it is in messages: len(name)+2 bytes.
func appendName(b []byte, name string) []byte {
	for len(name) > 0 {
		i := 0
		for i < len(name) && name[i] != '.' {
			i++
		}
		b = append(append(b, byte(i)), name[:i]...)
		name = name[min(i+1, len(name)):]
	}
	return append(b, 0)
}
