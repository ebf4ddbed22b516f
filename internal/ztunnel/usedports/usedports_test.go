package usedports

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var u Set
		a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
		to := netip.MustParseAddrPort("10.0.0.2:80")
		other := netip.MustParseAddrPort("10.0.0.2:81")
		if u.Has(a, to) {
			t.Error("full from the start")
		}
		u.Add(a, to)
		if !u.Has(a, to) || u.Has(b, to) || u.Has(a, other) {
			t.Error("not what was added")
		}
		time.Sleep(usedFor + time.Nanosecond)
		if u.Has(a, to) || u.n.Load() != 0 {
			t.Error("kept")
		}
		for i := range 3 * maxUsed {
			u.Add(a, netip.AddrPortFrom(to.Addr(), uint16(i)))
		}
		if len(u.until) > maxUsed || !u.Has(a, netip.AddrPortFrom(to.Addr(), 3*maxUsed-1)) {
			t.Errorf("%d are kept", len(u.until))
		}
	})
}
