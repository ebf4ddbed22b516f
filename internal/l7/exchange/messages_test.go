package exchange

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestFrames: messages are counted once, however the body is cut.
func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(0, 20), 0, 20).Draw(t, "sizes")
		var body []byte
		for _, n := range sizes {
			body = append(append(body, 0, 0, 0, 0, byte(n)), bytes.Repeat([]byte{0xff}, n)...)
		}
		var f frames
		got := uint64(0)
		for len(body) > 0 {
			n := rapid.IntRange(1, len(body)).Draw(t, "cut")
			got += f.count(body[:n])
			body = body[n:]
		}
		if got != uint64(len(sizes)) {
			t.Fatalf("%d messages of %d", got, len(sizes))
		}
	})
}
