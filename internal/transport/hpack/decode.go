package hpack

// Decoder reads the header blocks of one connection.
type Decoder struct {
	table   table
	allowed uint32   // what the peer may have the table be
	longest int      // of a name or value
	scratch *Scratch // of the block that is read; nil: strings may be kept
}

// Scratch is memory for strings that live no longer than the fields of a block are used.
type Scratch struct{ b []byte }

// keptScratch bounds the scratch that is used again.
const keptScratch = 32 << 10

// NewDecoder returns a decoder with a table of size bytes at most, which accepts names and
// values of longest bytes.
func NewDecoder(size uint32, longest int) *Decoder {
	return &Decoder{table: table{max: size}, allowed: size, longest: longest}
}

// Begin begins a block, and returns what follows the changes of the table's size. With s,
// strings of fields are valid until the next Begin with s; without, they may be kept.
func (d *Decoder) Begin(block []byte, s *Scratch) ([]byte, error) {
	if d.scratch = s; s != nil {
		if s.b = s.b[:0]; cap(s.b) > keptScratch {
			s.b = nil
		}
	}
	for len(block) > 0 && block[0]&0xe0 == sizeUpdate {
		n, rest, err := number(block, sizeUpdateBits)
		if err != nil {
			return nil, err
		}
		if n > d.allowed {
			return nil, ErrTableSize
		}
		d.table.setMax(n)
		block = rest
	}
	return block, nil
}

// Next reads the next field of a block that is not empty, and returns what follows it.
// Without wanted the field may be empty: only the table is kept in step.
func (d *Decoder) Next(block []byte, wanted bool) (f Field, rest []byte, err error) {
	switch b := block[0]; {
	case b&indexed != 0:
		return d.indexed(block)
	case b&incremental != 0:
		return d.literal(block, incrementalBits, true, true)
	case b&sizeUpdate != 0:
		return f, nil, ErrTableSize
	default:
		f, rest, err = d.literal(block, neverBits, false, wanted)
		f.Sensitive = b&never != 0
		return f, rest, err
	}
}

func (d *Decoder) indexed(block []byte) (f Field, rest []byte, err error) {
	i, rest, err := number(block, indexedBits)
	if err != nil {
		return f, nil, err
	}
	f.Name, f.Value, err = d.at(i)
	if err == nil && (len(f.Name) > d.longest || len(f.Value) > d.longest) {
		err = ErrLong
	}
	return f, rest, err
}

// at returns the entry with an index of the protocol.
func (d *Decoder) at(i uint32) (name, value string, err error) {
	switch {
	case i == 0 || i > uint32(len(static)+d.table.len()):
		return "", "", ErrIndex
	case i <= uint32(len(static)):
		return static[i-1].Name, static[i-1].Value, nil
	}
	e := d.table.at(int(i) - len(static) - 1)
	return e.name, e.value, nil
}

func (d *Decoder) literal(block []byte, bits uint8, enters, wanted bool) (f Field, rest []byte, err error) {
	i, rest, err := number(block, bits)
	if err != nil {
		return f, nil, err
	}
	if i > 0 {
		if f.Name, _, err = d.at(i); err != nil {
			return f, nil, err
		}
	} else if f.Name, rest, err = d.text(rest, enters, wanted); err != nil {
		return f, nil, err
	}
	if f.Value, rest, err = d.text(rest, enters, wanted); err != nil {
		return f, nil, err
	}
	if len(f.Name) > d.longest {
		return f, nil, ErrLong
	}
	if enters {
		if i > uint32(len(static)) && d.scratch != nil {
			// Not the other entry's: its memory would live as long as this one.
			f.Name = d.table.text.keep([]byte(f.Name))
		}
		d.table.add(entry{name: f.Name, value: f.Value})
	}
	return f, rest, nil
}

// text reads a name or value. enters: the table will have it.
func (d *Decoder) text(p []byte, enters, wanted bool) (s string, rest []byte, err error) {
	if len(p) == 0 {
		return "", nil, ErrTruncated
	}
	coded := p[0]&huffmanText != 0
	n, p, err := number(p, textBits)
	switch {
	case err != nil:
		return "", nil, err
	case uint64(n) > uint64(d.longest):
		return "", nil, ErrLong
	case uint64(n) > uint64(len(p)):
		return "", nil, ErrTruncated
	}
	text, rest := p[:n], p[n:]
	if !wanted || n == 0 {
		return "", rest, nil
	}
	if s := d.scratch; coded && s != nil && !enters {
		s.room(len(text)*8/minBits + 1)
		start := len(s.b)
		plain, err := appendDecoded(s.b, text, d.longest)
		if err != nil {
			return "", nil, err
		}
		s.b = plain
		return textOf(plain[start:]), rest, nil
	}
	if coded {
		var space [256]byte
		plain, err := appendDecoded(space[:0], text, d.longest)
		if err != nil {
			return "", nil, err
		}
		return d.string(plain, enters), rest, nil
	}
	return d.string(text, enters), rest, nil
}

// string returns b as a string that lives long enough.
func (d *Decoder) string(b []byte, enters bool) string {
	switch {
	case d.scratch == nil:
		return string(b)
	case enters:
		return d.table.text.keep(b)
	}
	s := d.scratch
	s.room(len(b))
	start := len(s.b)
	s.b = append(s.b, b...)
	return textOf(s.b[start:])
}

// room makes room for n bytes. Strings in the memory before stay what they are.
func (s *Scratch) room(n int) {
	if n > cap(s.b)-len(s.b) {
		s.b = make([]byte, 0, max(2*cap(s.b), 1<<10, n))
	}
}

// number reads an integer of which the first byte has so many bits (RFC 7541, 5.1).
func number(p []byte, bits uint8) (n uint32, rest []byte, err error) {
	if len(p) == 0 {
		return 0, nil, ErrTruncated
	}
	full := uint32(1)<<bits - 1
	if n = uint32(p[0]) & full; n < full {
		return n, p[1:], nil
	}
	v := uint64(n)
	for i, b := range p[1:] {
		if i == maxContinued {
			return 0, nil, ErrNumber
		}
		if v += uint64(b&0x7f) << (7 * i); v > 1<<31-1 {
			return 0, nil, ErrNumber
		}
		if b&0x80 == 0 {
			return uint32(v), p[i+2:], nil
		}
	}
	return 0, nil, ErrTruncated
}

// maxContinued bounds the bytes that continue a number.
const maxContinued = 5
