package conns

import (
	"testing"
	"unsafe"
)

// A connection that carries nothing costs little more than this. The bound is a size
// class of the allocator: one word more would take 32 bytes of every connection.
func TestSize(t *testing.T) {
	const most = 320
	if n := unsafe.Sizeof(Conn{}); n > most {
		t.Errorf("a connection takes %d bytes, want at most %d", n, most)
	}
}
