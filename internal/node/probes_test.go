package node

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

func TestHostAddresses(t *testing.T) {
	host, _ := netnstest.Link(t)
	h := NewHostAddresses(host, slog.New(slog.DiscardHandler))
	if got, want := h.List(), []netip.Prefix{netip.PrefixFrom(netnstest.PodIPv4, 32), netip.PrefixFrom(netnstest.PodIPv6, 128)}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	bridge := netip.MustParseAddr("10.244.1.1")
	netnstest.AddAddr(t, host, "eth0", bridge)
	netnstest.Eventually(t, "a new address is seen", func() bool { return slices.Contains(h.List(), netip.PrefixFrom(bridge, 32)) })
}

func TestProbeSourceAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.1": true, "169.254.7.1": true, "fd00::1": true, "2001:db8::1": true,
		"127.0.0.1": false, "::1": false, "fe80::1": false, "224.0.0.1": false, "0.0.0.0": false,
	} {
		if got := probesFrom(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if probesFrom(netip.Addr{}) {
		t.Error("no address at all")
	}
}
