package ztunnel

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
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
		r.node.prunePolicies()
	}
}

// target is a workload as policies see it.
func target(w *workload.Workload) rbac.Target {
	return rbac.Target{Namespace: w.Namespace, Policies: w.Policies}
}

// established is a workload as policies see it for connections that were let in
// before: a waypoint that came afterwards is for new ones, or each client with an open
// connection would lose a request.
func established(w *workload.Workload) rbac.Target {
	t := target(w)
	derived := func(name string) bool {
		_, name, _ = strings.Cut(name, "/")
		return strings.HasPrefix(name, wellknown.DerivedWaypointPolicy)
	}
	if slices.ContainsFunc(t.Policies, derived) {
		t.Policies = slices.DeleteFunc(slices.Clone(t.Policies), derived)
	}
	return t
}

// review ends the pod's inbound connections that would not be let in now.
// While its workload is not known they are left alone: without the workload
// nobody can say which policies there are, and new connections are refused.
func (p *pod) review() {
	local := p.local(p.node.Directory.Snapshot())
	p.reviewOlder(local)
	if local == nil {
		return
	}
	p.node.egress.Review(&p.egress, &p.set, p.node.Directory.Snapshot(), p.node.Config.Network, local)
	policies := p.node.Policies.Set()
	for _, c := range p.set.All() {
		if !c.Inbound {
			continue
		}
		access := c.Access()
		// A policy that has not come is no reason: its arrival asks for the next review.
		if d := policies.Evaluate(established(local), &access); !d.Allowed && d.Reason != reason.PolicyUnavailable {
			p.set.Abort(c, reason.PolicyChanged, d.Policy)
		}
	}
}

// revoke ends the tunnels of peers whose certificates are on the revocation
// lists, in both directions. Handshakes that began under the former lists are
// checked once more when they end.
func (n *Node) revoke() {
	n.recheck()
	time.AfterFunc(bounds.ConnectTimeout, n.recheck)
}

func (n *Node) recheck() {
	crl := n.TLS.CRL
	if crl == nil {
		return
	}
	roots := map[identity.Identity]*mtls.Bundle{} // nil: there is no certificate
	for _, p := range n.list() {
		n.mu.Lock()
		srv, pool := p.srv, p.pool
		n.mu.Unlock()
		if srv == nil {
			continue // not served yet
		}
		srv.Recheck(func(peer *tls.ConnectionState) *reason.Error {
			return n.revoked(roots, telemetry.Destination, p.identity(), peer)
		})
		pool.Recheck(func(k hbone.Key, peer *tls.ConnectionState) *reason.Error {
			return n.revoked(roots, telemetry.Source, k.SrcIdentity, peer)
		})
	}
	n.Observed.Recheck(func(k hbone.Key, peer *tls.ConnectionState) *reason.Error {
		return n.revoked(roots, telemetry.Source, k.SrcIdentity, peer)
	})
}

// revoked judges the peer of a tunnel of id.
func (n *Node) revoked(roots map[identity.Identity]*mtls.Bundle, rep telemetry.Reporter, id identity.Identity, peer *tls.ConnectionState) *reason.Error {
	b, known := roots[id]
	if !known {
		ctx, cancel := context.WithTimeout(context.Background(), bounds.KnownTimeout)
		b, _ = n.Certs.Get(ctx, id) // nil: see below
		cancel()
		roots[id] = b
	}
	if b == nil || len(peer.PeerCertificates) == 0 {
		// Nothing can be said of this one; a new tunnel would be refused.
		n.Recorder.Untracked(rep)
		return nil
	}
	err := n.TLS.CRL.Recheck(peer, b)
	if err == nil {
		return nil
	}
	n.Recorder.Revoked(rep)
	return reason.As(reason.CertificateRevoked, err)
}
