package ztunnel

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
	"github.com/ambit-mesh/ambit/internal/ztunnel/uncaptured"
)

// reviewOlder ends connections from before enrolment that a policy denies now. local is
// nil while the pod's workload is not known: then none is judged.
func (p *pod) reviewOlder(local *workload.Workload) {
	if p.ns == nil || p.closed.Load() || !p.node.Config.CloseUncaptured {
		return
	}
	var j *uncaptured.Judge
	if local != nil {
		j = p.judgeOlder(local)
	}
	if err := p.older.Review(p.do, tunnelled(local), j); err != nil {
		p.node.log.Warn("connections of before enrolment cannot be listed: policies do not end them", "uid", p.uid, "error", err)
	}
}

func (p *pod) judgeOlder(local *workload.Workload) *uncaptured.Judge {
	n := p.node
	policies := n.Policies.Set()
	return &uncaptured.Judge{
		Denied: func(s *sockdiag.Socket) (string, bool) {
			d := policies.Evaluate(established(local), &rbac.Conn{Src: s.Remote, Dst: s.Local})
			// A policy that has not come is no reason: its arrival asks for the next review.
			return d.Policy, !d.Allowed && d.Reason != reason.PolicyUnavailable
		},
		Ended: func(s *sockdiag.Socket, policy string) {
			n.Metrics.Older.Add(1)
			n.Recorder.Failed(p.logs, telemetry.Destination, s.Remote, s.Local, &reason.Error{
				Reason: reason.PolicyChanged, Detail: policy,
				Err: errors.New("the connection was made before the pod was enrolled"),
			})
		},
		Stays: func(s *sockdiag.Socket, err error) {
			switch unsupported := errors.Is(err, sockdiag.ErrUnsupported); {
			case !unsupported:
				n.log.Warn("a connection of before enrolment stays open, although a policy denies it", "src", s.Remote, "dst", s.Local, "error", err)
			case n.spared.CompareAndSwap(false, true):
				n.log.Warn("connections of before enrolment stay open, although policies deny them: restart their clients", "error", err)
			}
		},
	}
}
