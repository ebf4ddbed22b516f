package hbone

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// both makes two connections of two tunnels: to uid-1, which go on, and another.
func both(t *testing.T, w *world) (one, other net.Conn) {
	t.Helper()
	one = held(t, w, 1)[0]
	var second atomic.Bool
	was := w.key
	done := make(chan struct{})
	w.near.Loop(0).Post(func() {
		w.key = func() Key {
			k := was()
			if second.Load() {
				k.DstUID = "uid-2"
			}
			return k
		}
		close(done)
	})
	<-done
	second.Store(true)
	return one, held(t, w, 1)[0]
}

// Only the tunnels that are judged to be bad end, with the judge's reason.
func TestRecheckPool(t *testing.T) {
	w := newWorld(t, echo, loops(2))
	one, other := both(t, w)
	asked := 0
	w.pool.Recheck(func(k Key, peer *tls.ConnectionState) *reason.Error {
		asked++
		if id, err := mtls.PeerIdentity(peer); err != nil || id != bob {
			t.Errorf("peer %s, %v", id, err)
		}
		if k.DstUID == "uid-2" {
			return reason.Errorf(reason.CertificateRevoked, "test")
		}
		return nil
	})
	if r := get(t, w.closed, "the flow ends"); asked != 2 || r.Reason != reason.CertificateRevoked {
		t.Errorf("asked %d times; ended with %v", asked, r)
	}
	roundTrip(t, one, "still mine")
	_ = other.Close()
}

func TestRecheckServer(t *testing.T) {
	w := newWorld(t, echo, loops(2))
	both(t, w)
	first := true
	w.server.Recheck(func(peer *tls.ConnectionState) *reason.Error {
		if id, err := mtls.PeerIdentity(peer); err != nil || id != alice {
			t.Errorf("peer %s, %v", id, err)
		}
		if first {
			first = false
			return reason.Errorf(reason.CertificateRevoked, "test")
		}
		return nil
	})
	if r := get(t, w.closedServer, "the flow ends"); r.Reason != reason.CertificateRevoked {
		t.Errorf("ended with %v", r)
	}
	eventually(t, "the other tunnel stays", func() bool { return w.tunnels.Load() == 1 })
	if r := get(t, w.closed, "the client's end"); r.Reason != reason.TunnelClosed {
		t.Errorf("the client saw %v", r)
	}
}

// Tunnels to a workload that is released end with their connections, also
// those that are made later; none of the connections notices.
func TestReleaseWorkload(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 2)
	w.pool.ReleaseWorkload("uid-other")
	w.pool.ReleaseWorkload("uid-1")
	late := held(t, w, 1)[0]
	for _, c := range append(old, late) {
		roundTrip(t, c, "carried")
		if n := w.tunnels.Load(); n != 1 {
			t.Errorf("%d tunnels", n)
		}
		_ = c.Close()
	}
	eventually(t, "the tunnel ends", func() bool { return w.tunnels.Load() == 0 })

	idle := held(t, w, 1)[0]
	_ = idle.Close()
	w.pool.ReleaseWorkload("uid-1")
	eventually(t, "the idle tunnel ends", func() bool { return w.tunnels.Load() == 0 })
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
}

// TestRenewWorkload: a workload that takes the place of another one gets tunnels of its
// own. Connections of before go on, and those to other workloads share their tunnel still.
func TestRenewWorkload(t *testing.T) {
	w := newWorld(t, echo, loops(2))
	old := held(t, w, 2)
	w.pool.RenewWorkload("uid-other")
	same := held(t, w, 1)[0]
	if n := w.tunnels.Load(); n != 1 {
		t.Errorf("%d tunnels, although another workload was replaced", n)
	}
	w.pool.ReleaseWorkload("uid-1")
	w.pool.RenewWorkload("uid-1")
	next := held(t, w, 2)
	if n := w.tunnels.Load(); n != 2 {
		t.Errorf("%d tunnels", n)
	}
	for _, c := range append(old, append(next, same)...) {
		roundTrip(t, c, "carried")
	}
	for _, c := range append(old, same) {
		_ = c.Close()
	}
	eventually(t, "the former tunnel ends", func() bool { return w.tunnels.Load() == 1 })
	for _, c := range next {
		_ = c.Close()
	}
	// The successor's is kept: it does not leave.
	c := held(t, w, 1)[0]
	roundTrip(t, c, "kept")
	if n := w.tunnels.Load(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
}

// A server whose clients are about to do without tunnels gets rid of idle
// ones; connections are carried nevertheless, old and new.
func TestLeave(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 1)[0]
	w.server.Leave(true)
	for range 3 {
		c := held(t, w, 1)[0]
		roundTrip(t, c, "new")
		roundTrip(t, old, "old")
		_ = c.Close()
		eventually(t, "only the old tunnel is left", func() bool { return w.tunnels.Load() == 1 })
	}
	roundTrip(t, old, "old")
	_ = old.Close()
	eventually(t, "all tunnels end", func() bool { return w.tunnels.Load() == 0 })
	if len(w.failures) > 0 {
		t.Errorf("failed: %v", (<-w.failures).err)
	}
	w.server.Leave(false)
	c := held(t, w, 1)[0]
	_ = c.Close()
	if n := w.tunnels.Load(); n != 1 {
		t.Errorf("%d tunnels", n)
	}
}
