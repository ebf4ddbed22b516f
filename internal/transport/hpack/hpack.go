// Package hpack compresses the header fields of HTTP/2 (RFC 7541). A section of fields
// that both tables have allocates nothing, nor does a field that enters no table.
package hpack

import (
	"errors"
	"unsafe"
)

// Field is one header field.
type Field struct {
	Name, Value string
	// Sensitive fields enter no table, and no proxy after this one may have them enter one.
	Sensitive bool
}

// overhead is what an entry of a table counts beside its text (RFC 7541, 4.1).
const overhead = 32

// Size returns what the field counts in a table and in a header list.
func (f *Field) Size() uint32 { return uint32(len(f.Name) + len(f.Value) + overhead) }

// First bits of a representation, and how many bits of its first byte are a number
// (RFC 7541, 6).
const (
	indexed, indexedBits         = 0x80, 7
	incremental, incrementalBits = 0x40, 6
	sizeUpdate, sizeUpdateBits   = 0x20, 5
	never, neverBits             = 0x10, 4
	without, withoutBits         = 0x00, 4
	huffmanText, textBits        = 0x80, 7
)

// Errors of a block that cannot be decoded. The tables of both ends differ from then on.
var (
	ErrTruncated = errors.New("header block ends within a field")
	ErrIndex     = errors.New("header field refers to an entry that no table has")
	ErrNumber    = errors.New("number of a header block is too large")
	ErrHuffman   = errors.New("invalid Huffman code")
	ErrLong      = errors.New("name or value is too long")
	ErrTableSize = errors.New("size of the table changes where it must not, or to more than permitted")
)

// entry is a field in a table. Its text is never written again.
type entry struct {
	name, value string
	named, hash uint32 // of the name, of both; of an encoder's table only
}

func (e *entry) size() uint32 { return uint32(len(e.name) + len(e.value) + overhead) }

// table is a dynamic table (RFC 7541, 2.3.2).
type table struct {
	entries   []entry // the oldest first, from head on
	head      int
	size, max uint32
	text      arena
}

func (t *table) len() int { return len(t.entries) - t.head }

// at returns the entry with an index from 0, the newest.
func (t *table) at(i int) *entry { return &t.entries[len(t.entries)-1-i] }

func (t *table) setMax(n uint32) {
	t.max = n
	t.evict(n)
}

// evict makes the table no larger than n.
func (t *table) evict(n uint32) {
	for t.size > n {
		t.size -= t.entries[t.head].size()
		t.entries[t.head] = entry{}
		t.head++
	}
}

// add adds an entry, or empties the table for one that is larger than it.
func (t *table) add(e entry) {
	n := e.size()
	if n > t.max {
		t.evict(0)
		return
	}
	t.evict(t.max - n)
	if t.head > 0 && t.head >= len(t.entries)-t.head {
		kept := copy(t.entries, t.entries[t.head:])
		clear(t.entries[kept:])
		t.entries, t.head = t.entries[:kept], 0
	}
	t.entries = append(t.entries, e)
	t.size += n
}

// arena lends memory for text that is never written again: many entries share a piece of
// it, which lives as long as one of them.
type arena struct{ free []byte }

// An arena's pieces, in bytes: the first is small, for a connection with few fields.
const (
	firstPiece = 512
	laterPiece = 4096
)

func (a *arena) keep(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if len(b) > cap(a.free)-len(a.free) {
		n := firstPiece
		if a.free != nil {
			n = laterPiece
		}
		a.free = make([]byte, 0, max(n, len(b)))
	}
	start := len(a.free)
	a.free = append(a.free, b...)
	return textOf(a.free[start:])
}

// textOf returns a string in the memory of b.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
