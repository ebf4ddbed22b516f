package ztunnel

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
)

// maxOlder bounds the connections of before enrolment that are remembered for
// one pod, at about 150 bytes each. It is more than one client address can
// have to one port.
const maxOlder = 1 << 16

// older is the connections from outside to a pod's programs that were open
// before the pod was enrolled: the proxy does not carry them. Only the reviewer
// uses it.
type older struct {
	known map[uint64]*sockdiag.Socket
	// started and captured are when they have been looked for: when the pod came
	// to be served, and when the control plane said that it is redirected.
	// Between the two, new ones can have been made.
	started, captured bool
}

// reviewOlder ends those that a policy denies now. local is nil while the
// pod's workload is not known: then none is judged.
func (p *pod) reviewOlder(local *workload.Workload) {
	o := &p.older
	if p.ns == nil || p.closed.Load() || !p.node.Config.CloseUncaptured {
		return
	}
	look := !o.started || !o.captured && tunnelled(local)
	if !look && len(o.known) == 0 {
		return
	}
	var d *sockdiag.Diag
	var ephemeral sockdiag.Ports
	err := p.do(func() (err error) {
		if ephemeral, err = ephemeralPorts(); err == nil {
			d, err = sockdiag.Open()
		}
		return err
	})
	if err == nil {
		defer d.Close()
		if look {
			err = o.find(d, ephemeral)
		}
	}
	if err != nil {
		p.node.log.Warn("connections of before enrolment cannot be listed: policies do not end them", "uid", p.uid, "error", err)
		return
	}
	o.started, o.captured = true, o.captured || tunnelled(local)
	if local != nil {
		p.judgeOlder(d, local)
	}
}

// find adds what is there now. The kernel lists sockets one after the other: of a
// connection that begins meanwhile, the program's end can be in the list and the
// proxy's not. The proxy's end is the older one, so a second list has it.
func (o *older) find(d *sockdiag.Diag, ephemeral sockdiag.Ports) error {
	var lists [2][]*sockdiag.Socket
	for i := range lists {
		all, err := d.List(sockdiag.Connected | sockdiag.Listening)
		if err != nil {
			return err
		}
		lists[i] = sockdiag.Uncaptured(all, ephemeral)
	}
	if o.known == nil {
		o.known = map[uint64]*sockdiag.Socket{}
	}
	for _, s := range sockdiag.Both(lists[0], lists[1]) {
		if len(o.known) < maxOlder && !wellknown.IsProxyPort(s.Local.Port()) {
			own := *s // and not the whole list
			o.known[s.Key()] = &own
		}
	}
	return nil
}

// judgeOlder ends those that are denied, and forgets those that have ended.
func (p *pod) judgeOlder(d *sockdiag.Diag, local *workload.Workload) {
	n := p.node
	policies := n.Policies.Set()
	for key, s := range p.older.known {
		verdict := policies.Evaluate(established(local), &rbac.Conn{Src: s.Remote, Dst: s.Local})
		// A policy that has not come is no reason: its arrival asks for the next review.
		if verdict.Allowed || verdict.Reason == reason.PolicyUnavailable {
			if there, err := d.Find(s); err == nil && !there {
				delete(p.older.known, key)
			}
			continue
		}
		err := d.Destroy(s)
		switch {
		case err == nil:
			n.Metrics.older.Add(1)
			n.Recorder.Failed(p.logs, telemetry.Destination, s.Remote, s.Local, &reason.Error{
				Reason: reason.PolicyChanged, Detail: verdict.Policy,
				Err: errors.New("the connection was made before the pod was enrolled"),
			})
		case errors.Is(err, sockdiag.ErrGone):
		case errors.Is(err, sockdiag.ErrUnsupported):
			if n.spared.CompareAndSwap(false, true) {
				n.log.Warn("connections of before enrolment stay open, although policies deny them: restart their clients", "error", err)
			}
			continue
		default:
			n.log.Warn("a connection of before enrolment stays open, although a policy denies it", "src", s.Remote, "dst", s.Local, "error", err)
			continue
		}
		delete(p.older.known, key)
	}
}

// ephemeralPorts are those that the kernel gives to clients in the namespace
// of the calling thread.
func ephemeralPorts() (sockdiag.Ports, error) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	b, err := os.ReadFile(file)
	if err != nil {
		return sockdiag.Ports{}, err
	}
	var r sockdiag.Ports
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return r, errors.New(file + " is not understood: " + string(b))
	}
	for i, to := range []*uint16{&r.First, &r.Last} {
		v, err := strconv.ParseUint(f[i], 10, 16)
		if err != nil {
			return r, err
		}
		*to = uint16(v)
	}
	return r, nil
}
