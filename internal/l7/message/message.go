// Package message is the head of a request or response as both versions of
// HTTP and all filters see it: a flat list of fields with their order and case
// kept, and the parts that decide routing beside it. It performs no IO.
//
// A head that a parser made has slices of the parser's input, which are valid
// during the parser's call. Head.CopyFrom makes a head that owns its bytes.
// Edits put new bytes into the head's own arena. A head that is used again
// after Reset allocates nothing once its arena has grown.
package message

import "bytes"

// Version is the version of HTTP that a head arrived by.
type Version uint8

// The versions. The zero value is a head that was made here.
const (
	HTTP11 Version = iota
	HTTP10
	HTTP2
)

// Field is one header field. ID is the number of its Name.
type Field struct {
	Name, Value []byte
	ID          Name
	// Private fields are to enter no compression table, of any proxy on the way (RFC 7541,
	// 6.2.3).
	Private bool
}

// Head is the head of a request or a response, or trailers. The authority is
// in Authority alone: Fields never has a Host.
type Head struct {
	Method    []byte // of requests
	Scheme    []byte // of requests, empty if the sender gave none
	Authority []byte // of requests
	Path      []byte // of requests: path and query as sent; empty for CONNECT
	Protocol  []byte // what the sender asks to switch to: Upgrade, or :protocol
	Status    int    // of responses
	Version   Version
	Fields    []Field

	arena []byte
}

// Reset empties the head and keeps its memory.
func (h *Head) Reset() {
	*h = Head{Fields: h.Fields[:0], arena: h.arena[:0]}
}

// fieldSize is about what a Field takes, in bytes.
const fieldSize = 56

// Shrink is Reset that gives memory back beyond n bytes.
func (h *Head) Shrink(n int) {
	if cap(h.arena) > n {
		h.arena = nil
	}
	if cap(h.Fields) > n/fieldSize {
		h.Fields = nil
	}
	h.Reset()
}

// CopyFrom makes h a copy of o that owns its bytes.
func (h *Head) CopyFrom(o *Head) {
	h.Reset()
	h.Method, h.Scheme, h.Authority = h.own(o.Method), h.own(o.Scheme), h.own(o.Authority)
	h.Path, h.Protocol = h.own(o.Path), h.own(o.Protocol)
	h.Status, h.Version = o.Status, o.Version
	for i := range o.Fields {
		f := &o.Fields[i]
		h.Fields = append(h.Fields, Field{h.own(f.Name), h.own(f.Value), f.ID, f.Private})
	}
}

// arenaStart is the first size of an arena in bytes: most heads fit.
const arenaStart = 1024

// own copies b into the arena. When the arena is full a larger one follows;
// the slices of the former one stay valid.
func (h *Head) own(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	at := h.room(len(b))
	h.arena = append(h.arena, b...)
	return h.arena[at:len(h.arena):len(h.arena)]
}

func (h *Head) ownString(s string) []byte {
	at := h.room(len(s))
	h.arena = append(h.arena, s...)
	return h.arena[at:len(h.arena):len(h.arena)]
}

func (h *Head) room(n int) int {
	if cap(h.arena)-len(h.arena) < n {
		h.arena = make([]byte, 0, max(arenaStart, 2*cap(h.arena), n))
	}
	return len(h.arena)
}

// Size returns how many bytes HTTP/1 takes for the head.
func (h *Head) Size() int64 {
	const status, host, rest = len("HTTP/1.1 200 OK\r\n"), len("Host: \r\n"), len("  HTTP/1.1\r\n")
	n := status
	if h.Status == 0 {
		n = len(h.Method) + len(h.Path) + rest
		if len(h.Authority) > 0 {
			n += host + len(h.Authority)
		}
	}
	for i := range h.Fields {
		n += len(h.Fields[i].Name) + len(h.Fields[i].Value) + len(": \r\n")
	}
	return int64(n + len("\r\n"))
}

// Index returns the place of the first field with this number at or after
// from, or -1.
func (h *Head) Index(id Name, from int) int {
	for i := from; i < len(h.Fields); i++ {
		if h.Fields[i].ID == id {
			return i
		}
	}
	return -1
}

// Get returns the value of the first field with this number, or nil.
func (h *Head) Get(id Name) []byte {
	if i := h.Index(id, 0); i >= 0 {
		return h.Fields[i].Value
	}
	return nil
}

// Key is a field name that was looked up when configuration was compiled.
type Key struct {
	id   Name
	text string
}

// NewKey returns the key of a name.
func NewKey(name string) Key { return Key{Lookup(name), name} }

// String returns the name as it was given to NewKey.
func (k Key) String() string { return k.text }

// Is reports whether a field has this name.
func (k Key) Is(f *Field) bool {
	return k.id == f.ID && (k.id != Other || EqualFold(f.Name, k.text))
}

// Find returns the place of the first field of this name at or after from,
// or -1. Host is not a field: see Authority.
func (h *Head) Find(k Key, from int) int {
	for i := from; i < len(h.Fields); i++ {
		if k.Is(&h.Fields[i]) {
			return i
		}
	}
	return -1
}

// Add appends a field. The bytes of value are copied.
func (h *Head) Add(k Key, value []byte) {
	if k.id == Host {
		h.Authority = h.own(value)
		return
	}
	h.Fields = append(h.Fields, Field{Name: h.ownString(k.text), Value: h.own(value), ID: k.id})
}

// Set gives the first field of this name the value and removes all others of
// that name. It appends the field if there is none. Setting Host sets the
// authority.
func (h *Head) Set(k Key, value []byte) {
	i := h.Find(k, 0)
	if i < 0 {
		h.Add(k, value)
		return
	}
	h.Fields[i].Value = h.own(value)
	h.removeFrom(k, i+1)
}

// Append adds a value to the field at place i, behind a comma. There is no space, as in
// the examples of Gateway API.
func (h *Head) Append(i int, value string) {
	f := &h.Fields[i]
	at := h.room(len(f.Value) + 1 + len(value))
	h.arena = append(append(append(h.arena, f.Value...), ','), value...)
	f.Value = h.arena[at:len(h.arena):len(h.arena)]
}

// Remove removes all fields of this name and reports how many there were.
func (h *Head) Remove(k Key) int { return h.removeFrom(k, 0) }

// RemovePrefixed removes all fields whose names begin with one of the prefixes, which
// are in lower case. Well-known names do not.
func (h *Head) RemovePrefixed(prefixes []string) int {
	return h.filter(0, func(f *Field) bool {
		if f.ID != Other {
			return true
		}
		for _, p := range prefixes {
			if len(f.Name) >= len(p) && EqualFold(f.Name[:len(p)], p) {
				return false
			}
		}
		return true
	})
}

func (h *Head) removeFrom(k Key, from int) int {
	return h.filter(from, func(f *Field) bool { return !k.Is(f) })
}

// filter keeps the fields at or after from that keep accepts.
func (h *Head) filter(from int, keep func(*Field) bool) int {
	n := from
	for i := from; i < len(h.Fields); i++ {
		if !keep(&h.Fields[i]) {
			continue
		}
		if n != i {
			h.Fields[n] = h.Fields[i]
		}
		n++
	}
	gone := len(h.Fields) - n
	h.Fields = h.Fields[:n]
	return gone
}

// RemoveFunc removes the fields that remove accepts, by their places and what they are,
// and reports how many there were.
func (h *Head) RemoveFunc(remove func(place int, f *Field) bool) int {
	place := -1
	return h.filter(0, func(f *Field) bool {
		place++
		return !remove(place, f)
	})
}

// Rename gives every field of one name another, at its place.
func (h *Head) Rename(from, to Key) int {
	n := 0
	for i := range h.Fields {
		if f := &h.Fields[i]; from.Is(f) {
			f.Name, f.ID = h.ownString(to.text), to.id
			n++
		}
	}
	return n
}

// SetPath replaces path and query, SetAuthority the authority.
func (h *Head) SetPath(p []byte) { h.Path = h.own(p) }

// SetAuthority replaces the authority.
func (h *Head) SetAuthority(a []byte) { h.Authority = h.own(a) }

// PathOnly returns the path without its query.
func (h *Head) PathOnly() []byte {
	if i := bytes.IndexByte(h.Path, '?'); i >= 0 {
		return h.Path[:i]
	}
	return h.Path
}

// Query returns what follows the first question mark of the path.
func (h *Head) Query() []byte {
	if i := bytes.IndexByte(h.Path, '?'); i >= 0 {
		return h.Path[i+1:]
	}
	return nil
}

// CheckTrailers returns the fault of a trailer section.
func (h *Head) CheckTrailers() *Fault {
	for i := range h.Fields {
		if !h.Fields[i].ID.inTrailer() {
			return ErrTrailer
		}
	}
	return nil
}
