package egress

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/sni"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/conns"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

const (
	// helloTime is how long the rest of a ClientHello may take.
	helloTime = 10 * time.Second
	// maxEndpoints bounds the endpoints of a service that are looked at, to find out
	// whether they are outside of the mesh.
	maxEndpoints = 16
)

// Attempt is a connection on its way to the endpoint of a route.
type Attempt struct {
	Conn
	Route *route.Route
	// Open is the connection in the pod's list.
	Open *conns.Conn
	// Local returns the directory and the pod's workload as they are now; the workload is
	// nil while it is not known.
	Local func() (*workload.Snapshot, *workload.Workload)
	Lines *accesslog.Limit
}

// Outside returns the call that the policies decide about; ok is false for one that stays
// in the mesh.
func (a *Attempt) Outside() (c egress.Call, ok bool) {
	dst := netip.AddrPortFrom(a.Dst.Addr().Unmap(), a.Dst.Port())
	if dst.Addr().IsLoopback() || a.Exempt.has(dst) {
		return c, false
	}
	r := a.Route
	switch r.Via {
	case route.ServiceWaypoint:
		if !external(a.Snapshot, r.Service) {
			return c, false
		}
		// The waypoint connects to the hosts of its own configuration.
		return egress.Call{Port: dst.Port(), Unsniffed: true}, true
	case route.WorkloadWaypoint:
		to := r.Target.Addr
		if member(a.Snapshot.Find(a.Network, to.Addr(), a.Source.Namespace).Workload, false) {
			return c, false
		}
		return egress.Call{Addr: to.Addr(), Port: to.Port(), Unsniffed: true}, true
	case route.Direct, route.Passthrough:
	}
	if r.Protocol != connect.TCP || member(r.Workload, r.Service != nil) {
		return c, false
	}
	return egress.Call{Addr: r.Next.Addr().Unmap(), Port: r.Next.Port()}, true
}

// member reports whether a workload is of the mesh, or a pod beside it. An endpoint that a
// Service of Kubernetes lists counts where the Service was called: by default, roles of
// namespaces may not write EndpointSlices.
func member(w *workload.Workload, service bool) bool {
	if w == nil {
		return false
	}
	_, kind, _ := strings.Cut(w.UID, "/")
	return w.IsPod() || w.Protocol == workload.HBONE || service && strings.HasPrefix(kind, "discovery.k8s.io/EndpointSlice/")
}

// external reports whether a service leads to hosts outside.
func external(s *workload.Snapshot, svc *workload.Service) bool {
	if svc == nil {
		return true
	}
	n := 0
	for w := range s.Endpoints(svc) {
		if !member(w, true) {
			return true
		}
		if n++; n == maxEndpoints {
			break
		}
	}
	return n == 0 && !strings.Contains(svc.Hostname, ".svc.")
}

// names returns what the called address may have been found by.
func (p *Pod) names(a *Attempt, now time.Time) []egress.Name {
	out := p.Answers.Names(nil, a.Dst.Addr(), now)
	if a.Route != nil && a.Route.Named != "" {
		out = append(out, egress.Name{Host: strings.ToLower(strings.TrimSuffix(a.Route.Named, "."))})
	}
	return out
}

// Judge asks the EgressPolicies of a pod about a connection, before it is made. One that
// depends on its first bytes gets a hold. What is allowed is followed, and judged again when
// policies change.
func (g *Gate) Judge(p *Pod, a *Attempt) (*relay.Hold, *reason.Error) {
	if len(a.Source.Egress) == 0 && a.Source.Outbound == egress.AllowAny {
		return nil, nil
	}
	a.Exempt = g.Exempt
	call, outside := a.Outside()
	if !outside {
		return nil, nil
	}
	call.Names = p.names(a, time.Now())
	p.follow(a.Open, &call)
	v := g.verdict(p, a, &call)
	switch {
	case v.err != nil:
		return nil, v.err
	case v.wait:
		return g.hold(p, a, call), nil
	}
	return nil, nil
}

// result is what is done with a connection.
type result struct {
	err  *reason.Error
	wait bool
}

// verdict decides, counts and records.
func (g *Gate) verdict(p *Pod, a *Attempt, c *egress.Call) result {
	conn, w := a.Conn, a.Source
	s, now := a.Local()
	if conn.Snapshot = s; now != nil {
		w = now
	}
	var buf [8]*egress.Policy
	policies, missing := g.Policies.Of(buf[:0], w.Egress)
	if missing != "" {
		return result{err: reason.Errorf(reason.PolicyUnavailable, "EgressPolicy %s of workload %s/%s", missing, w.Namespace, w.Name)}
	}
	enforced := egress.Decide(policies, c, false)
	tried := enforced
	if slices.ContainsFunc(policies, func(p *egress.Policy) bool { return p.DryRun }) {
		tried = egress.Decide(policies, c, true)
	}
	reported := tried.Outcome == egress.Refused
	if w.Outbound == egress.DryRun && !tried.Listed && conn.Refusal() != nil {
		reported = true // by the outbound traffic policy, and in its log
	}
	switch {
	case enforced.Outcome == egress.Refused:
		err := g.refusal(p, &a.Conn, c, &enforced)
		g.policy.refused.Add(1)
		p.policy.refused.Add(1)
		p.note(c, decidedRefused)
		return result{err: err}
	case enforced.Outcome == egress.Undecided || tried.Outcome == egress.Undecided:
		return result{wait: true}
	case reported:
		if tried.Outcome == egress.Refused {
			g.policy.reported.Add(1)
			p.policy.reported.Add(1)
			if a.Lines.Permit(false) {
				err := g.refusal(p, &a.Conn, c, &tried)
				g.Log.Info("EgressPolicy would refuse the connection", "src", a.Src, "dst", a.Dst,
					"workload", w.Namespace+"/"+w.Name, "reason", err.Reason, "error", err)
			}
		}
		p.note(c, decidedReported)
	default:
		if len(policies) > 0 {
			g.policy.allowed.Add(1)
			p.policy.allowed.Add(1)
		}
		p.note(c, decidedAllowed)
	}
	return result{}
}

func (g *Gate) refusal(p *Pod, conn *Conn, c *egress.Call, d *egress.Decision) *reason.Error {
	cause := d.Cause
	if p.Answers.Seen() == 0 && slices.ContainsFunc(d.Policies, (*egress.Policy).HasHosts) {
		cause += "; the proxy has seen no look-up of the pod: turn the capture of look-ups on (docs/dns.md)"
	}
	return reason.Errorf(reason.EgressDenied, "%s: %s", conn.Dst, cause)
}

// hold returns what decides by the first bytes.
func (g *Gate) hold(p *Pod, a *Attempt, call egress.Call) *relay.Hold {
	attempt := *a
	// A connection may wait for long, and must not keep a directory of the past.
	attempt.Snapshot, attempt.Route = nil, nil
	decide := func(opening egress.Opening, name, instead string) (relay.Verdict, *reason.Error) {
		call.Opening, call.SNI = opening, name
		p.follow(attempt.Open, &call)
		v := g.verdict(p, &attempt, &call)
		switch {
		case v.err == nil:
			return relay.Pass, nil
		case instead != "":
			return relay.Refuse, reason.Errorf(v.err.Reason, "%s: %s", attempt.Dst, instead)
		}
		return relay.Refuse, v.err
	}
	return &relay.Hold{
		Time: helloTime,
		Late: func() (relay.Verdict, *reason.Error) {
			return decide(egress.TLS, "", "the connection begins like TLS, and its ClientHello did not come whole")
		},
		Decide: func(first []byte, end bool) (relay.Verdict, *reason.Error) {
			if end {
				return decide(egress.NoTLS, "", "")
			}
			switch name, v := sni.Read(first); v {
			case sni.More:
				return relay.Wait, nil
			case sni.Broken:
				return decide(egress.TLS, "", "the connection begins like TLS, and has no ClientHello that can be read")
			case sni.Hello:
				return decide(egress.TLS, name, "")
			case sni.Plain:
			}
			return decide(egress.NoTLS, "", "")
		},
	}
}
