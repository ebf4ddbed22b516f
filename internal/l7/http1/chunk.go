package http1

import "github.com/ambit-mesh/ambit/internal/l7/message"

// maxDigits is how many hexadecimal digits a chunk's size may have, leading
// zeros included. Fifteen cannot overflow 63 bits.
const maxDigits = 15

// chunk reads what is around the bytes of a chunk (RFC 9112, 7.1).
func (c *Conn) chunk(p []byte) int {
	for i, b := range p {
		if f := c.chunkByte(b); f != nil {
			return c.fail(f)
		}
		if c.in == inChunkData || c.in == inTrailers {
			return i + 1
		}
	}
	return len(p)
}

func (c *Conn) chunkByte(b byte) *message.Fault {
	switch c.in {
	case inChunkSize:
		return c.chunkSize(b)
	case inChunkExt:
		return c.chunkExtension(b)
	case inChunkLF:
		return c.chunkBegin(b)
	case inChunkCR:
		c.in = inChunkEnd
		return want(b, '\r')
	case inChunkEnd:
		c.in, c.left, c.digits, c.extension = inChunkSize, 0, 0, 0
		return want(b, '\n')
	default: // no state of a chunk: step asks bounded, or section
	}
	return ErrChunk
}

func want(b, w byte) *message.Fault {
	if b != w {
		return ErrChunk
	}
	return nil
}

func (c *Conn) chunkSize(b byte) *message.Fault {
	d := int64(b)
	switch {
	case '0' <= b && b <= '9':
		d -= '0'
	case 'a' <= b|0x20 && b|0x20 <= 'f':
		d = int64(b|0x20) - 'a' + 10
	case c.digits > 0 && b == ';':
		c.in = inChunkExt
		return c.chunkExtension(b)
	case c.digits > 0 && b == '\r':
		c.in = inChunkLF
		return nil
	default:
		return ErrChunk
	}
	if c.digits++; c.digits > maxDigits {
		return ErrChunk
	}
	c.left = c.left<<4 | d
	return nil
}

// chunkExtension skips an extension. Extensions are never forwarded.
func (c *Conn) chunkExtension(b byte) *message.Fault {
	if b == '\r' {
		c.in = inChunkLF
		return nil
	}
	c.extension++
	c.extensions++
	if c.extension > MaxExtension || c.extensions > MaxExtensions {
		return ErrChunkExt
	}
	if b < ' ' && b != '\t' || b >= 0x7f {
		return ErrChunk
	}
	return nil
}

func (c *Conn) chunkBegin(b byte) *message.Fault {
	if b != '\n' {
		return ErrChunk
	}
	if c.in = inChunkData; c.left == 0 {
		c.in, c.find = inTrailers, finder{lines: 1} // trailers have no start line
	}
	return nil
}
