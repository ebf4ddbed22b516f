package app

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/resolve"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const (
	// learnTimeout bounds how long a connection waits for the control plane's answer.
	learnTimeout = 5 * time.Second
	// maxLearning bounds the connections that wait off the loops; each costs a
	// goroutine of about 4 KiB.
	maxLearning = 4096
)

// learner requests what the directory lacks from the control plane. It is safe for
// use by several goroutines.
type learner struct {
	client  *xds.Client
	names   *resolve.Resolver
	waiting atomic.Int64
}

// learn is the gateway's Learn.
func (n *learner) learn(l *poll.Loop, names []string, done func()) bool {
	if len(names) == 0 {
		return false
	}
	if n.waiting.Add(1) > maxLearning {
		n.waiting.Add(-1)
		return false
	}
	l.Go(func() {
		defer n.waiting.Add(-1)
		ctx, cancel := context.WithTimeout(context.Background(), learnTimeout)
		defer cancel()
		for _, name := range names {
			if !strings.Contains(name, "/") { // a host outside
				_, _ = n.names.Lookup(ctx, name)
				continue
			}
			if n.client.DemandBriefly(ctx, wellknown.TypeAddress, name) != nil { // a client has chosen it
				break // what is missing is found missing by who needs it
			}
		}
		l.Post(done)
	})
	return true
}

// answered is the gateway's Answered.
func (n *learner) answered(name string) bool { return n.client.Answered(wellknown.TypeAddress, name) }

// all requests names until the control plane has answered for each, or ctx ends.
func (n *learner) all(ctx context.Context, names []string) bool {
	for _, name := range names {
		for {
			if ctx.Err() != nil {
				return false
			}
			try, cancel := context.WithTimeout(ctx, learnTimeout)
			err := n.client.Demand(try, wellknown.TypeAddress, name)
			cancel()
			if err == nil {
				break
			}
		}
	}
	return true
}

// self returns the gateway's own workload, nil while it is unknown.
func (a *App) self() *workload.Workload {
	return a.dir.Snapshot().WorkloadByAddr(a.cfg.Network, a.cfg.Source)
}

// ownServices lists those that the gateway's own workload is an endpoint of: by them
// others name the gateway.
func (a *App) ownServices() []string {
	w := a.self()
	if w == nil {
		return nil
	}
	var names []string
	for i := range w.Services {
		names = append(names, w.Services[i].Service.String())
	}
	slices.Sort(names)
	return names
}
