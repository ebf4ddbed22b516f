package h2

import "sync"

// buffer is a byte slice that connections borrow only while they have
// something to keep, so that an idle connection owns none.
type buffer struct{ b []byte }

// Buffers start at firstBuffer bytes, enough for the control frames of many
// turns, and are left to the collector once grown beyond keptBuffer.
const (
	firstBuffer = 2 << 10
	keptBuffer  = 128 << 10
)

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, firstBuffer)} }}

func borrow() *buffer { return buffers.Get().(*buffer) }

// giveBack returns what borrow lent; nil is permitted.
func giveBack(b *buffer) {
	if b == nil || cap(b.b) > keptBuffer {
		return
	}
	b.b = b.b[:0]
	buffers.Put(b)
}
