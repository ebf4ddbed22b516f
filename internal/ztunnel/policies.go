package ztunnel

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
)

// Workloads and policies are two types of resources, and come in either order.
// A connection waits a moment for a policy that its workload names; a policy
// that was removed holds until no workload of this node names it (rbac.Store).

// judge asks the policies, and connects when they allow. A policy that has not
// come yet is waited for, off the loop.
func (in *incoming) judge() {
	n := in.pod.node
	access := in.conn.Access()
	d := n.Policies.Set().Evaluate(target(in.local), &access)
	if d.Reason != reason.PolicyUnavailable {
		in.decided(&access, d)
		return
	}
	err := in.pod.off(in.loop, func() {
		d := in.await(&access)
		in.loop.Post(func() { in.decided(&access, d) })
	})
	if err != nil {
		in.deny(http.StatusServiceUnavailable, err.Reason, err, "")
	}
}

// await evaluates whenever policies or workloads change, until no policy is
// missing or the time is over.
func (in *incoming) await(access *rbac.Conn) rbac.Decision {
	n := in.pod.node
	over := time.NewTimer(bounds.PolicyTimeout)
	defer over.Stop()
	for {
		changed := n.news.Next()
		local := in.local
		if w := in.pod.local(n.Directory.Snapshot()); w != nil {
			local = w
		}
		d := n.Policies.Set().Evaluate(target(local), access)
		if d.Reason != reason.PolicyUnavailable {
			return d
		}
		select {
		case <-changed:
		case <-over.C:
			return d
		}
	}
}

func (in *incoming) decided(access *rbac.Conn, d rbac.Decision) {
	p := in.pod
	p.node.Observed.Decided(p.node.log, p.node.decisions(), &in.conn.Conn, access, &d)
	err := d.Error()
	switch {
	case err == nil:
		if over, asks := p.node.Traffic.Limit(in.local, access); asks {
			p.node.Traffic.Ask(in.loop, in.local, access, in.admitted)
		} else {
			in.admitted(over)
		}
	case err.Reason == reason.PolicyUnavailable:
		// Not the caller's fault: another endpoint may do.
		in.deny(http.StatusServiceUnavailable, err.Reason, accesslog.Rejection(err), d.Policy)
	default:
		in.deny(http.StatusUnauthorized, err.Reason, accesslog.Rejection(err), d.Policy)
	}
}

// admitted connects, unless a limit refuses the connection.
func (in *incoming) admitted(over *reason.Error) {
	if why, _ := in.pod.set.Aborted(in.conn); why != reason.OK { // while it waited
		in.connected(-1, nil)
		return
	}
	if over != nil {
		in.deny(http.StatusTooManyRequests, over.Reason, over, "")
		return
	}
	in.dial(in.to, in.src)
}

// decisions is the level at which decisions of policies are logged.
func (n *Node) decisions() slog.Level {
	if n.Config.AuthzInfoLogging {
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// prunePolicies drops removed policies that no workload of this node names.
func (n *Node) prunePolicies() {
	n.Observed.Policies(n.Policies.Set())
	if n.Policies.Set().Retired() == 0 && !n.egress.Policies.Retired() {
		return
	}
	named, egress := map[string]bool{}, map[string]bool{}
	s := n.Directory.Snapshot()
	for _, p := range n.list() {
		if w := p.local(s); w != nil {
			for _, name := range w.Policies {
				named[name] = true
			}
			for _, name := range w.Egress {
				egress[name] = true
			}
		}
	}
	n.Policies.Prune(func(name string) bool { return named[name] })
	n.egress.Policies.Prune(func(name string) bool { return egress[name] })
}
