package sockdiag

import (
	"net/netip"
	"testing"
)

// TestBoth: a connection that begins while the kernel lists sockets has its
// program's end in the first list alone; one that is not captured is in both.
func TestBoth(t *testing.T) {
	keyed := func(key byte, local, remote string) Socket {
		s := Socket{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
		s.id[idLen-8] = key
		return s
	}
	old := keyed(1, "10.0.0.1:8080", "10.0.0.9:5000")
	program := keyed(2, "10.0.0.1:8080", "10.0.0.8:6000")
	proxy := keyed(3, "10.0.0.8:6000", "10.0.0.1:8080")
	listens := Socket{Local: netip.MustParseAddrPort("10.0.0.1:8080"), Listens: true}
	first := Uncaptured([]Socket{listens, old, program}, Ports{32768, 60999})
	second := Uncaptured([]Socket{listens, old, program, proxy}, Ports{32768, 60999})
	if len(first) != 2 {
		t.Fatalf("the first list: %d", len(first))
	}
	got := Both(first, second)
	if len(got) != 1 || got[0].Key() != old.Key() {
		t.Errorf("%d are in both: %v", len(got), got)
	}
}
