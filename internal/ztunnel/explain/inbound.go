package explain

import (
	"fmt"
	"net/http"
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
)

// Inbound returns what happens to a connection to a pod.
func Inbound(w *World, q *verdict.Question) (*verdict.Verdict, error) {
	ns, name, err := q.PodName()
	if err != nil {
		return nil, err
	}
	v := verdict.New(verdict.RoleDestination)
	info, accepting, served := w.Served(ns, name)
	v.Captured = served
	object := "Pod " + ns + "/" + name
	capture := func(says string, decides bool) {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepCapture, Says: says, Object: object, Decides: decides})
	}
	if !served {
		p := w.pod(ns, name)
		switch {
		case p == nil:
			return nil, unknown("no pod %s/%s: the proxy of %s has no such workload", ns, name, w.Node)
		case p.NativeTunnel:
			capture("the pod ends tunnels itself: its program decides", true)
		case q.Tunnel:
			capture("no node proxy serves the pod, so nothing ends tunnels there", true)
			return v.Refuse(reason.Errorf(reason.ConnectFailure, "nothing listens on port %d of the pod", wellknown.PortHBONE)), nil
		default:
			capture("the pod is not in the mesh: no proxy and no policy is in front of it", true)
		}
		v.Next = &verdict.Next{To: verdict.ToProgram, Namespace: ns, Name: name, Node: p.Node, UID: p.UID, Authority: q.Authority}
		return v, nil
	}
	local := w.local(info)
	switch {
	case !accepting:
		capture("the pod is captured, and its proxy does not accept connections yet", true)
		return v.Refuse(errNotListening), nil
	case local == nil:
		capture("the pod is captured, and the control plane has not sent its workload", true)
		return v.Refuse(reason.Errorf(reason.UnknownSource, "%s/%s (service account %s)", ns, name, info.ServiceAccount)), nil
	}
	capture("the pod is in the mesh as "+local.Identity().String(), false)
	to, re, err := w.arrives(v, q, local)
	if err != nil {
		return nil, err
	}
	if re != nil {
		return v.Refuse(re), nil
	}
	conn := rbac.Conn{Identity: q.Identity, Src: netip.AddrPortFrom(q.Source, 0), Dst: to}
	if !q.Tunnel {
		conn.Identity.TrustDomain, conn.Identity.Namespace, conn.Identity.ServiceAccount = "", "", ""
	}
	d, considered := w.Policies.Explain(target(local), &conn)
	w.policies(v, local, d, considered)
	if re := d.Error(); re != nil {
		return v.Refuse(re), nil
	}
	if re := w.limits(v, local, &conn); re != nil {
		return v.Refuse(re), nil
	}
	v.Next = &verdict.Next{To: verdict.ToProgram, Namespace: ns, Name: name, Node: local.Node, UID: local.UID, Authority: to.String()}
	return v, nil
}

// arrives returns the address of the pod that a connection is for, which policies see.
func (w *World) arrives(v *verdict.Verdict, q *verdict.Question, local *workload.Workload) (netip.AddrPort, *reason.Error, error) {
	asked, perr := netip.ParseAddrPort(q.Authority)
	if !q.Tunnel {
		if perr != nil {
			return netip.AddrPort{}, nil, bad("authority %q is not ADDRESS:PORT", q.Authority)
		}
		asked = netip.AddrPortFrom(asked.Addr().Unmap(), asked.Port())
		if route.Recursive(asked.Port()) {
			v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepTunnel, Says: "the port is the node proxy's own", Decides: true})
			return asked, reason.Errorf(reason.RecursiveCall, "to %s", asked), nil
		}
		v.Add(verdict.StepTunnel, "the connection comes in plaintext, without an identity, from "+text(q.Source))
		return asked, nil, nil
	}
	at := address(local, q.Source)
	if perr == nil && local.HasAddr(asked.Addr().Unmap()) {
		at = asked.Addr().Unmap()
	}
	plan, _, re := route.Inbound(route.In{
		Snapshot: w.Snapshot, Network: w.Network, Local: local, At: netip.AddrPortFrom(at, wellknown.PortHBONE),
		Method: http.MethodConnect, Authority: q.Authority, Host: q.Service, LocalhostTunnel: w.LocalhostTunnel,
	})
	if re != nil {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepTunnel, Says: "the tunnel's request cannot be carried out", Decides: true})
		return netip.AddrPort{}, re, nil
	}
	v.Add(verdict.StepTunnel, fmt.Sprintf("the connection comes by mutual TLS from %s, for %s", q.Identity, plan.Upstream))
	return plan.Upstream, nil, nil
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return "an unknown address"
	}
	return a.String()
}

// policies adds what policies say, those that decide last.
func (w *World) policies(v *verdict.Verdict, local *workload.Workload, d rbac.Decision, all []rbac.Considered) {
	decided := false
	for i := range all {
		c := &all[i]
		object, derived := verdict.PolicyObject(c.Policy)
		if derived != nil && derived.Waypoint {
			object = w.waypointOf(local, object)
		}
		step := verdict.Step{Step: verdict.StepPolicy, Object: object}
		if c.Rule >= 0 {
			step.Rule = fmt.Sprintf("rule %d", c.Rule)
		}
		if derived != nil {
			step.Rule = ""
		}
		switch matches := c.Matches(); {
		case c.Broken != nil:
			step.Says = "it cannot be enforced as it is, and " + action(c.Deny) + ": " + c.Broken.Error()
		case c.DryRun && matches:
			step.Says = "dry run: it matches, and decides nothing"
		case c.DryRun:
			step.Says = "dry run: it does not match"
		case matches && derived != nil:
			step.Says = derived.Refuses
		case derived != nil:
			step.Says = derived.Satisfied
		case matches:
			step.Says = map[bool]string{true: "DENY matches", false: "ALLOW matches"}[c.Deny]
		default:
			step.Says = map[bool]string{true: "DENY does not match", false: "ALLOW does not match"}[c.Deny]
		}
		if !decided && c.Policy == d.Policy && c.Matches() && !c.DryRun {
			step.Decides, decided = true, true
		}
		v.Steps = append(v.Steps, step)
		if decided {
			return
		}
	}
	switch {
	case d.Reason == reason.PolicyUnavailable:
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: "the workload names a policy that this proxy does not have", Object: "AuthorizationPolicy " + d.Policy, Decides: true})
	case !d.Allowed:
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: "ALLOW policies are for the pod, and none of them matches", Decides: true})
	case len(all) == 0:
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: "no policy is for the pod", Decides: true})
	default:
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Says: "no policy refuses", Decides: true})
	}
}

func action(deny bool) string {
	if deny {
		return "denies everything"
	}
	return "allows nothing"
}

// waypointOf returns the Gateway that a workload's derived policy is for, if it is one.
func (w *World) waypointOf(local *workload.Workload, or string) string {
	found := map[string]bool{}
	add := func(g workload.GatewayAddress) {
		if g.IsZero() {
			return
		}
		var at workload.Destination
		if g.ByHostname() {
			at = w.Snapshot.FindHostname(g.Hostname)
		} else {
			at = w.Snapshot.Find(g.Address.Network, g.Address.Addr, "")
		}
		if at.Service != nil {
			found["Gateway "+at.Service.Namespace+"/"+at.Service.Name] = true
		}
	}
	add(local.Waypoint)
	for i := range local.Services {
		if s := w.Snapshot.ServiceByName(local.Services[i].Service.Namespace, local.Services[i].Service.Hostname); s != nil {
			add(s.Waypoint)
		}
	}
	if len(found) != 1 {
		return or
	}
	for name := range found {
		or = name
	}
	return or
}
