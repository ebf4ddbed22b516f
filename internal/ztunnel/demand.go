package ztunnel

import (
	"context"
	"errors"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// learn has the directory filled with what a connection needs, when that comes
// on demand, and calls then on the loop. unknown lists what is missing; it is
// asked again after every answer, because an answer can need more. The error
// is why something is still not known; an address that nobody has is none.
func (p *pod) learn(l *poll.Loop, unknown func(*workload.Snapshot) []string, then func(*reason.Error)) {
	n := p.node
	if n.Demand == nil {
		then(nil)
		return
	}
	names := unknown(n.Directory.Snapshot())
	if len(names) == 0 {
		then(nil)
		return
	}
	err := p.off(l, func() {
		err := n.fetch(names, unknown)
		l.Post(func() { then(err) })
	})
	if err != nil {
		then(err)
	}
}

// fetch asks for names, and for what then turns out to be missing.
func (n *Node) fetch(names []string, unknown func(*workload.Snapshot) []string) *reason.Error {
	ctx, cancel := context.WithTimeout(context.Background(), knownTimeout)
	defer cancel()
	var asked []string
	for len(names) > 0 && len(asked) < maxLearnt {
		for _, name := range names[:min(len(names), maxLearnt-len(asked))] {
			if err := n.Demand(ctx, name); err != nil {
				n.log.Debug("nothing is known of a name", "name", name, "error", err)
				if errors.Is(err, context.DeadlineExceeded) {
					return reason.Errorf(reason.UnknownDestination, "%s: the control plane did not answer in %s", name, knownTimeout)
				}
				return reason.Errorf(reason.ResourceExhausted, "%s: %w", name, err)
			}
			asked = append(asked, name)
		}
		names = slices.DeleteFunc(unknown(n.Directory.Snapshot()), func(name string) bool { return slices.Contains(asked, name) })
	}
	return nil
}
