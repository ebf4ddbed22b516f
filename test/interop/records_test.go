package interop

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestKeyUpdates: keys of a tunnel change as often as in two terabytes, and more: eight
// times each way. A key is for few records here. Either proxy answers, and goes on.
func TestKeyUpdates(t *testing.T) {
	const keys, limit = 8, 16
	world := start(t)
	for _, node := range []string{peer, ours} {
		t.Run(node, func(t *testing.T) {
			w := world.For(t)
			pod := w.Pod("shop", "server-"+node, false)
			conn := w.Records(lab.InPod("street", "stranger"), netip.AddrPortFrom(pod, 15008), w.Bundle(account("client-"+node)), limit)
			tun, err := w.TunnelOn(conn)
			if err != nil {
				t.Fatal(err)
			}
			s, status, err := tun.Open(http.MethodConnect, netip.AddrPortFrom(pod, 9000).String(), nil)
			if err != nil || status != http.StatusOK {
				t.Fatalf("status %d, %v", status, err)
			}
			for range 4 * keys { // one after the other: a request is answered with what comes next
				exchange(t, s, limit*record.MaxPlain)
			}
			if in, out := conn.Updates(); in < keys || out < keys {
				t.Errorf("keys changed %d and %d times, want at least %d", in, out, keys)
			}
		})
	}
}

// exchange sends n bytes to an echo server and wants them back.
func exchange(t *testing.T, s *rig.Stream, n int) {
	t.Helper()
	want := make([]byte, n)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	go func() { _, _ = s.Write(want) }()
	got := make([]byte, n)
	if k, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came back, %v", k, n, err)
	}
}
