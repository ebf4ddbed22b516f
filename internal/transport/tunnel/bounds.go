package tunnel

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/record"
)

// aheadSize is how much a handshake reads ahead: the flight of a peer with a short chain.
const aheadSize = 4 << 10

var aheads = sync.Pool{New: func() any { return new([aheadSize]byte) }}

// bounds follows where the records of a handshake begin and end, and keeps what was read
// of the ones that follow.
type bounds struct {
	head [record.HeaderLen]byte
	got  int // of head
	left int // of the record behind it

	buf   *[aheadSize]byte // borrowed while ahead has something
	ahead []byte
}

// next is how many bytes may pass without going beyond a record.
func (b *bounds) next() int {
	if b.left > 0 {
		return b.left
	}
	return record.HeaderLen - b.got
}

// passed notes what has passed.
func (b *bounds) passed(p []byte) {
	if b.left > 0 {
		b.left -= len(p)
		return
	}
	if b.got += copy(b.head[b.got:], p); b.got == record.HeaderLen {
		b.got, b.left = 0, int(binary.BigEndian.Uint16(b.head[3:]))
	}
}

// inside reports whether a record has begun and not ended.
func (b *bounds) inside() bool { return b.got > 0 || b.left > 0 }

// read takes what was read ahead, or reads what fd has now.
func (b *bounds) read(fd int, p []byte) (int, error) {
	if len(b.ahead) == 0 {
		b.buf = aheads.Get().(*[aheadSize]byte)
		n, err := poll.Read(fd, b.buf[:])
		if err != nil || n == 0 {
			b.giveBack()
			return n, err
		}
		b.ahead = b.buf[:n]
	}
	n := copy(p, b.ahead)
	if b.ahead = b.ahead[n:]; len(b.ahead) == 0 {
		b.giveBack()
	}
	return n, nil
}

// rest takes what was read ahead, and is not of the handshake.
func (b *bounds) rest() []byte {
	p := bytes.Clone(b.ahead)
	b.giveBack()
	return p
}

func (b *bounds) giveBack() {
	if b.buf != nil {
		aheads.Put(b.buf)
	}
	b.buf, b.ahead = nil, nil
}
