package tunnel

import (
	"testing"
	"unsafe"
)

// Every connection that is carried in a tunnel has a stream. The bound is a size class
// of the allocator.
func TestStreamSize(t *testing.T) {
	const most = 192
	if n := unsafe.Sizeof(Stream{}); n > most {
		t.Errorf("a stream takes %d bytes, want at most %d", n, most)
	}
}
