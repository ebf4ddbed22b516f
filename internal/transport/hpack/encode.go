package hpack

// Encoder writes the header blocks of one connection.
type Encoder struct {
	table   table
	minimum uint32 // smallest table size since the last header block (RFC 7541, 4.2)
	changed bool   // the size was set after the block before
}

// NewEncoder returns an encoder with a table of size bytes.
func NewEncoder(size uint32) *Encoder { return &Encoder{table: table{max: size}} }

// SetTableSize changes the size of the table, which the next block begins with.
func (e *Encoder) SetTableSize(n uint32) {
	if !e.changed {
		e.changed, e.minimum = true, n
	}
	e.minimum = min(e.minimum, n)
	e.table.setMax(n)
}

// Append appends a field of a block to dst. It keeps no string of f.
func (e *Encoder) Append(dst []byte, f *Field) []byte {
	if e.changed {
		e.changed = false
		if e.minimum < e.table.max {
			// Zero, not e.minimum: decoders exist that take a second size for an empty table only.
			e.table.evict(0)
			dst = appendNumber(dst, sizeUpdate, sizeUpdateBits, 0)
		}
		dst = appendNumber(dst, sizeUpdate, sizeUpdateBits, e.table.max)
	}
	named := hashOf(f.Name)
	hash := named*31 ^ hashOf(f.Value)
	name, both := e.search(f, named, hash)
	switch {
	case both:
		return appendNumber(dst, indexed, indexedBits, name)
	case f.Sensitive:
		dst = appendNumber(dst, never, neverBits, name)
	case f.Size() > e.table.max:
		dst = appendNumber(dst, without, withoutBits, name)
	default:
		dst = appendNumber(dst, incremental, incrementalBits, name)
		if name == 0 {
			dst = appendText(dst, f.Name)
		}
		dst = appendText(dst, f.Value)
		e.insert(f, name, named, hash)
		return dst
	}
	// What enters no table is often another each time: bytes are cheaper than codes.
	if name == 0 {
		dst = appendPlain(dst, f.Name)
	}
	return appendPlain(dst, f.Value)
}

// insert adds f to the table. name is the index of an entry with its name, if there is one.
func (e *Encoder) insert(f *Field, name, named, hash uint32) {
	in := entry{named: named, hash: hash}
	switch {
	case name == 0:
		in.name = e.table.text.keep([]byte(f.Name))
	case name <= uint32(len(static)):
		in.name = static[name-1].Name
	default:
		// Not the other entry's: its memory would live as long as this one.
		in.name = e.table.text.keep([]byte(f.Name))
	}
	in.value = e.table.text.keep([]byte(f.Value))
	e.table.add(in)
}

// search returns the index of an entry that is f, or else of one that has its name, or 0.
func (e *Encoder) search(f *Field, named, hash uint32) (i uint32, both bool) {
	if first := findStatic(f.Name, named); first > 0 {
		for i = first; i <= uint32(len(static)) && static[i-1].Name == f.Name; i++ {
			if static[i-1].Value == f.Value && !f.Sensitive {
				return i, true
			}
		}
		i = first
	}
	t := &e.table
	for at := range t.len() {
		in := t.at(at)
		switch {
		case in.named != named || in.name != f.Name:
		case in.hash == hash && in.value == f.Value && !f.Sensitive:
			return uint32(len(static) + at + 1), true
		case i == 0:
			i = uint32(len(static) + at + 1)
		}
	}
	return i, false
}

// findStatic returns the index of the first entry of the static table with a name, or 0.
func findStatic(name string, hash uint32) uint32 {
	for at := hash; ; at++ {
		s := &names[at%uint32(len(names))]
		if s.first == 0 || s.hash == hash && static[s.first-1].Name == name {
			return s.first
		}
	}
}

// named is a name of the static table: its hash, and its first entry's index.
type named struct{ hash, first uint32 }

// names are the names of the static table, each at its hash or behind it.
var names = func() (t [256]named) {
	for i := range static {
		if i > 0 && static[i].Name == static[i-1].Name {
			continue
		}
		hash := hashOf(static[i].Name)
		at := hash % uint32(len(t))
		for t[at].first != 0 {
			at = (at + 1) % uint32(len(t))
		}
		t[at] = named{hash, uint32(i + 1)}
	}
	return t
}()

// hashOf returns a hash of some of a string's bytes. Strings that have the same one cost
// comparisons, with as many entries as a table of 4 KiB holds.
func hashOf(s string) uint32 {
	h, n := uint64(len(s)), len(s)
	switch {
	case n >= word:
		h = (h ^ load(s, 0)) * multiplier
		h = (h ^ h>>32 ^ load(s, n/2-word/2)) * multiplier
		h = (h ^ h>>32 ^ load(s, n-word)) * multiplier
	default:
		for i := range n {
			h = (h ^ uint64(s[i])) * multiplier
		}
	}
	return uint32(h >> 32)
}

const (
	word       = 8
	multiplier = 0x9e3779b97f4a7c15
)

// load returns the word of a string at i.
func load(s string, i int) uint64 {
	s = s[i : i+word]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// appendNumber appends an integer behind the first bits of a byte (RFC 7541, 5.1).
func appendNumber(dst []byte, first byte, bits uint8, n uint32) []byte {
	full := uint32(1)<<bits - 1
	if n < full {
		return append(dst, first|byte(n))
	}
	dst = append(dst, first|byte(full))
	for n -= full; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

func appendPlain(dst []byte, s string) []byte {
	return append(appendNumber(dst, 0, textBits, uint32(len(s))), s...)
}

// appendText appends a string in the shorter form.
func appendText(dst []byte, s string) []byte {
	if n := codedLen(s); n < len(s) {
		return appendCoded(appendNumber(dst, huffmanText, textBits, uint32(n)), s)
	}
	return appendPlain(dst, s)
}
