package ztunnel

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u usedUp
		a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
		to := netip.MustParseAddrPort("10.0.0.2:80")
		other := netip.MustParseAddrPort("10.0.0.2:81")
		if u.has(a, to) {
			t.Error("full from the start")
		}
		u.add(a, to)
		if !u.has(a, to) || u.has(b, to) || u.has(a, other) {
			t.Error("not what was added")
		}
		time.Sleep(usedUpFor + time.Nanosecond)
		if u.has(a, to) || u.n.Load() != 0 {
			t.Error("kept")
		}
		for i := range 3 * maxUsedUp {
			u.add(a, netip.AddrPortFrom(to.Addr(), uint16(i)))
		}
		if len(u.until) > maxUsedUp || !u.has(a, netip.AddrPortFrom(to.Addr(), 3*maxUsedUp-1)) {
			t.Errorf("%d are kept", len(u.until))
		}
	})
}
