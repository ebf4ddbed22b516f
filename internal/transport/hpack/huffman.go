package hpack

import "slices"

// code is the Huffman code of a byte.
type code struct {
	value uint32
	bits  uint8
}

const (
	// shortBits is the length of the codes that are found by one look.
	shortBits = 8
	minBits   = 5
	maxBits   = 30
)

// short has the byte whose code a look of shortBits begins with. No bits: it is longer.
type short struct{ char, bits uint8 }

var (
	shorts [1 << shortBits]short
	// longer are the codes of one length, which are consecutive: the first, how many there
	// are, and where their bytes are in chars.
	longer [maxBits + 1]struct{ first, count, at uint32 }
	chars  [256]uint8
)

func init() {
	n := uint32(0)
	for bits := uint8(minBits); bits <= maxBits; bits++ {
		l := &longer[bits]
		l.at = n
		for {
			// The next code of this length, in the order of codes.
			next := -1
			for b := range codes {
				if c := codes[b]; c.bits == bits && (l.count == 0 || c.value > codes[chars[n-1]].value) && (next < 0 || c.value < codes[next].value) {
					next = b
				}
			}
			if next < 0 {
				break
			}
			if l.count == 0 {
				l.first = codes[next].value
			}
			chars[n] = uint8(next)
			n++
			l.count++
		}
	}
	for b, c := range codes {
		if c.bits <= shortBits {
			from := c.value << (shortBits - c.bits)
			for i := range uint32(1) << (shortBits - c.bits) {
				shorts[from+i] = short{uint8(b), c.bits}
			}
		}
	}
}

// appendDecoded appends what p is the code of, longest bytes at most.
func appendDecoded(dst, p []byte, longest int) ([]byte, error) {
	start := len(dst)
	dst = slices.Grow(dst, len(p)*8/minBits+1)
	out, at := dst[:cap(dst)], start
	var acc uint64 // the lowest n bits are still to be read
	var n uint8
	for {
		for n <= 56 && len(p) > 0 {
			acc = acc<<8 | uint64(p[0])
			p = p[1:]
			n += 8
		}
		for n >= shortBits {
			s := shorts[uint8(acc>>(n-shortBits))]
			if s.bits == 0 {
				break
			}
			out[at] = s.char
			at++
			n -= s.bits
		}
		if n >= shortBits && n < maxBits && len(p) > 0 {
			continue
		}
		top := acc << (64 - n) // 0 for n = 0
		s := shorts[top>>(64-shortBits)]
		if s.bits == 0 {
			s = long(top)
		}
		if s.bits == 0 || s.bits > n {
			if n < shortBits && len(p) > 0 {
				continue
			}
			break
		}
		out[at] = s.char
		at++
		n -= s.bits
	}
	// The rest fills the last byte, with ones (RFC 7541, 5.2).
	if n > 7 || acc&(1<<n-1) != 1<<n-1 {
		return nil, ErrHuffman
	}
	if at-start > longest {
		return nil, ErrLong
	}
	return out[:at], nil
}

// long returns the byte whose code the bits of top begin with, no bits if there is none.
func long(top uint64) short {
	for bits := uint8(shortBits + 1); bits <= maxBits; bits++ {
		l := &longer[bits]
		if at := uint32(top>>(64-bits)) - l.first; at < l.count {
			return short{chars[l.at+at], bits}
		}
	}
	return short{}
}

// codedLen returns the length of the code of s in bytes.
func codedLen(s string) int {
	n := 0
	for i := range len(s) {
		n += int(codes[s[i]].bits)
	}
	return (n + 7) / 8
}

// appendCoded appends the code of s.
func appendCoded(dst []byte, s string) []byte {
	var acc uint64
	var n uint8
	for i := range len(s) {
		c := &codes[s[i]]
		acc = acc<<c.bits | uint64(c.value)
		for n += c.bits; n >= 8; n -= 8 {
			dst = append(dst, byte(acc>>(n-8)))
		}
	}
	if n > 0 {
		dst = append(dst, byte(acc<<(8-n))|byte(0xff)>>n)
	}
	return dst
}
