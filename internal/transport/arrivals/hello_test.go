package arrivals

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/transport/arrivals/arrivalstest"
)

// split puts the message of a record into records of at most n bytes.
func split(rec []byte, n int) (out []byte) {
	for body := range slices.Chunk(rec[recordHeader:], n) {
		out = append(out, recordHandshake, 3, 1, byte(len(body)>>8), byte(len(body)))
		out = append(out, body...)
	}
	return out
}

func TestLookAtHello(t *testing.T) {
	hello := arrivalstest.Hello(t)
	for _, form := range [][]byte{hello, split(hello, 100), split(hello, 1)} {
		for n := range form {
			if got := lookAtHello(form[:n]); got != helloPartial {
				t.Fatalf("%d of %d bytes: state %d", n, len(form), got)
			}
		}
		for _, more := range [][]byte{nil, {0}, []byte("GET /")} {
			if got := lookAtHello(append(slices.Clone(form), more...)); got != helloComplete {
				t.Errorf("a hello of %d bytes and %d more: state %d", len(form), len(more), got)
			}
		}
	}
	for name, p := range map[string][]byte{
		"HTTP":               []byte("GET / HTTP/1.1\r\n"),
		"alert":              {21, 3, 3, 0, 2, 2, 40},
		"not TLS 1":          {22, 2, 0, 0, 4},
		"empty record":       {22, 3, 1, 0, 0},
		"record too long":    {22, 3, 1, 0x40, 1},
		"ServerHello":        {22, 3, 1, 0, 4, 2},
		"hello of 16 MB":     {22, 3, 1, 0, 4, 1, 255, 255, 255},
		"never ends":         split(append([]byte{0, 0, 0, 0, 0, 1, 0, 0x3f, 0xf0}, make([]byte, maxHello)...)[:maxHello/4], 1)[:maxHello],
		"second is an alert": append(split(hello, 100)[:105], 21),
	} {
		if got := lookAtHello(p); got != helloForeign {
			t.Errorf("%s: state %d", name, got)
		}
	}
}

func FuzzLookAtHello(f *testing.F) {
	hello := arrivalstest.Hello(f)
	f.Add(hello)
	f.Add(split(hello, 7))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		// A state that is not partial is final.
		state := helloPartial
		for n := range len(p) + 1 {
			got := lookAtHello(p[:n])
			if state != helloPartial && got != state {
				t.Fatalf("state %d became %d with byte %d", state, got, n)
			}
			state = got
		}
	})
}
