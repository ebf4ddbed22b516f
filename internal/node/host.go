package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// HostRules are what the agent does in the host's namespace.
type HostRules interface {
	// Apply has pods at these addresses, and at no other, recognize what the
	// host itself sends to them. It says what was not as it should be before.
	Apply(pods []netip.Addr) (differs []string, err error)
}

// HostKernel is the real one.
type HostKernel struct{ Host *netns.NS }

// Apply writes the host's table.
func (h HostKernel) Apply(pods []netip.Addr) ([]string, error) { return nft.ApplyHost(h.Host, pods) }

// hostPoll is how often the host's table is looked at: a program that loads its
// own rules may flush all others, and pods are restarted after some probes that
// fail.
const hostPoll = 3 * time.Second

// probed keeps the host's table: the addresses of pods that are captured, or are
// about to be, and that the kubelet probes.
type probed struct {
	rules HostRules // nil: there is nothing to keep

	mu    sync.Mutex
	pods  map[string][]netip.Addr // by UID; nil until what a former agent did is known
	dirty bool                    // the table is not known to be as it should
}

func newProbed(rules HostRules) *probed { return &probed{rules: rules} }

// begin says which pods are captured at the start.
func (p *probed) begin(pods map[string][]netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pods = pods
	_, err := p.apply()
	return err
}

// set makes sure that the probes of a pod are recognized. A pod whose addresses
// are not known keeps those that were.
func (p *probed) set(pod Pod) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rules == nil || len(pod.IPs) == 0 {
		return nil
	}
	now := slices.Clone(pod.probedAt())
	slices.SortFunc(now, netip.Addr.Compare)
	now = slices.Compact(now)
	if !p.dirty && slices.Equal(p.pods[pod.UID], now) {
		return nil
	}
	p.pods[pod.UID] = now
	_, err := p.apply()
	return err
}

// drop forgets a pod. Should that fail, the pod's address stays in the table
// for a while, which means nothing to whoever has it.
func (p *probed) drop(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.pods[uid]; known {
		delete(p.pods, uid)
		_, _ = p.apply()
	}
}

// apply needs p.mu.
func (p *probed) apply() ([]string, error) {
	if p.rules == nil {
		return nil, nil
	}
	var all []netip.Addr
	for _, addrs := range p.pods {
		all = append(all, addrs...)
	}
	differs, err := p.rules.Apply(all)
	p.dirty = err != nil
	if err != nil {
		return nil, fmt.Errorf("the rules in the host's network namespace by which pods recognize the kubelet's probes: %w", err)
	}
	return differs, nil
}

// run compares the table with what it should be, and tells of failures and of
// their end.
func (p *probed) run(ctx context.Context, logger *slog.Logger, tell func(error)) {
	if p.rules == nil {
		return
	}
	failing := false
	tick := time.NewTicker(hostPoll)
	defer tick.Stop()
	for {
		p.mu.Lock()
		wasDirty := p.dirty
		differs, err := p.apply()
		p.mu.Unlock()
		switch {
		case err != nil && !failing:
			logger.Error("probes of enrolled pods may be captured and fail; trying again", "error", err)
		case err == nil && failing:
			logger.Info("the host's rules for probes are in place again")
		case len(differs) > 0 && !wasDirty:
			logger.Warn("the host's rules for probes were not as they should be; they are written anew", "differs", differs)
		}
		if now := err != nil; now != failing {
			failing = now
			if tell != nil {
				tell(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
