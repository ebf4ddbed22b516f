package ztunnel

import (
	"context"
	"crypto/tls"
	"sync"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/telemetry"
)

// reviewer judges open connections again when policies or their workload
// changed. Changes that come while it works are merged.
type reviewer struct {
	node *Node
	kick chan struct{}
	done chan struct{}
	once sync.Once

	mu    sync.Mutex // guards what follows
	every bool
	some  map[*pod]struct{}
}

func newReviewer(n *Node) *reviewer {
	r := &reviewer{node: n, kick: make(chan struct{}, 1), done: make(chan struct{}), some: map[*pod]struct{}{}}
	go r.run()
	return r
}

func (r *reviewer) close() { r.once.Do(func() { close(r.done) }) }

// all asks for a review of every connection.
func (r *reviewer) all() {
	r.mu.Lock()
	r.every = true
	r.mu.Unlock()
	r.wake()
}

// pod asks for a review of one pod's connections.
func (r *reviewer) pod(p *pod) {
	r.mu.Lock()
	r.some[p] = struct{}{}
	r.mu.Unlock()
	r.wake()
}

func (r *reviewer) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *reviewer) run() {
	for {
		select {
		case <-r.done:
			return
		case <-r.kick:
		}
		r.mu.Lock()
		every, some := r.every, r.some
		r.every, r.some = false, map[*pod]struct{}{}
		r.mu.Unlock()
		for p := range some {
			p.identify()
			if !every {
				p.review()
			}
		}
		if every {
			for _, p := range r.node.list() {
				p.review()
			}
		}
	}
}

// target is a workload as policies see it.
func target(w *workload.Workload) rbac.Target {
	return rbac.Target{Namespace: w.Namespace, Policies: w.Policies}
}

// review ends the pod's inbound connections that would not be let in now.
// While its workload is not known they are left alone: without the workload
// nobody can say which policies there are, and new connections are refused.
func (p *pod) review() {
	local := p.local(p.node.Directory.Snapshot())
	if local == nil {
		return
	}
	policies := p.node.Policies.Set()
	for _, c := range p.set.All() {
		if !c.Inbound {
			continue
		}
		access := c.Access()
		if d := policies.Evaluate(target(local), &access); !d.Allowed {
			p.set.Abort(c, reason.PolicyChanged, d.Policy)
		}
	}
}

// revoke ends the inbound connections of peers whose certificates are on the
// revocation lists by now.
func (n *Node) revoke() {
	if n.TLS.CRL == nil {
		return
	}
	for _, p := range n.list() {
		verdicts := map[*tls.ConnectionState]bool{} // of each tunnel
		for _, c := range p.set.All() {
			if c.Peer == nil {
				continue
			}
			bad, known := verdicts[c.Peer]
			if !known {
				bad = p.revoked(c.Peer)
				verdicts[c.Peer] = bad
			}
			if bad {
				p.set.Abort(c, reason.CertificateRevoked, "")
			}
		}
	}
}

func (p *pod) revoked(cs *tls.ConnectionState) bool {
	ctx, cancel := context.WithTimeout(context.Background(), knownTimeout)
	defer cancel()
	b, err := p.node.Certs.Get(ctx, p.identity())
	if err != nil {
		return false // without roots nothing can be said; new tunnels are refused
	}
	if p.node.TLS.CRL.Recheck(cs, b) == nil {
		return false
	}
	p.node.Recorder.Revoked(telemetry.Destination)
	return true
}
