package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

const (
	// addressesFresh is how old the list of the node's addresses may be. A pod
	// that is started brings it up to date: the first one of a node may have
	// brought a bridge with an address into being.
	addressesFresh = time.Second
	addressesPoll  = 5 * time.Second
	// maxProbeSources bounds the rules of a pod.
	maxProbeSources = 64
)

// HostAddresses are the addresses of the node, from which the kubelet probes
// pods. They belong to whoever is in the host's network namespace.
type HostAddresses struct {
	host   *netns.NS
	logger *slog.Logger

	mu      sync.Mutex
	list    []netip.Prefix
	read    time.Time
	failing bool
}

// NewHostAddresses makes a list of the addresses in a network namespace, which
// stays the caller's.
func NewHostAddresses(host *netns.NS, logger *slog.Logger) *HostAddresses {
	return &HostAddresses{host: host, logger: logger}
}

// List returns the addresses in order. When they cannot be read, it is those
// that were read last.
func (h *HostAddresses) List() []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.read.IsZero() && time.Since(h.read) < addressesFresh {
		return h.list
	}
	h.read = time.Now()
	list, err := hostAddresses(h.host)
	switch {
	case err == nil:
		h.list = list
	case !h.failing:
		h.logger.Error("cannot read the node's addresses; probes may be captured and fail", "error", err)
	}
	h.failing = err != nil
	return h.list
}

// Run calls changed when the addresses are others than before.
func (h *HostAddresses) Run(ctx context.Context, changed func()) {
	tick := time.NewTicker(addressesPoll)
	defer tick.Stop()
	last := h.List()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := h.List(); !slices.Equal(now, last) {
			h.logger.Info("the node's addresses have changed; pods are probed from these", "addresses", now)
			last = now
			changed()
		}
	}
}

func hostAddresses(host *netns.NS) ([]netip.Prefix, error) {
	var all, ipvs []net.Addr
	err := host.Do(func() error {
		var err error
		if all, err = net.InterfaceAddrs(); err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		if link, err := net.InterfaceByName(ipvsLink); err == nil {
			ipvs, _ = link.Addrs()
		}
		return nil
	})
	never := map[netip.Addr]bool{}
	for _, a := range ipvs {
		never[addrOf(a)] = true
	}
	var list []netip.Prefix
	for _, a := range all {
		if a := addrOf(a); !never[a] && probesFrom(a) {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	list = slices.Compact(list)
	return list[:min(len(list), maxProbeSources)], err
}

// ipvsLink is kube-proxy's in IPVS mode. It has the address of every Service,
// and none of them is ever a source.
const ipvsLink = "kube-ipvs0"

func addrOf(a net.Addr) netip.Addr {
	p, _ := netip.ParsePrefix(a.String())
	return p.Addr().Unmap()
}

// probesFrom reports whether a connection from the host to a pod can have this
// source.
func probesFrom(a netip.Addr) bool {
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && (a.Is4() || !a.IsLinkLocalUnicast())
}
