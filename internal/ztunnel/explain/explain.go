// Package explain returns what a node proxy would do with a connection that does not
// exist: out of a pod, or into one. It calls the decisions of the data path, and
// nothing else of it: no socket, no metric, no log.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	modes "github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// World is the state of a node proxy at one moment.
type World struct {
	Snapshot *workload.Snapshot
	Policies *rbac.Set
	// Network and Node are those of the proxy, Domain is that of the cluster.
	Network, Node, Domain string
	LocalhostTunnel       bool
	// Exempt are destinations that outbound traffic policies do not refuse.
	Exempt egress.Exempt
	// Gate has the EgressPolicies, Egress what is known of a pod of this node; nil for none.
	Gate   *egress.Gate
	Egress func(namespace, name string) *egress.Pod
	// Served returns a pod of this node, and whether its connections are accepted.
	Served func(namespace, name string) (info bootstrap.Workload, accepting, ok bool)
	// Load counts connections in flight, by the UID of the endpoint.
	Load func(uid string) int
	// Traffic has the rules and routes of connections; nil for none.
	Traffic *traffic.Node
}

// Unknown lists the resources that a question is about and the directory does not have,
// for a directory that is filled on demand.
func Unknown(w *World, q *verdict.Question) []string {
	ns, name, err := q.PodName()
	if err != nil || q.Direction != verdict.Outbound {
		return nil
	}
	var like netip.Addr
	if p := w.pod(ns, name); p != nil {
		like = address(p, like)
	}
	if dst, err := w.find(q.To, ns, name, like); err == nil {
		host := w.host(ns, name, dst, w.first(q, ns, dst.Port()))
		names := append(route.Unknown(w.Snapshot, w.Network, dst.Addr(), ns, host), route.UnknownBackends(w.Snapshot, w.Network, w.Traffic, dst, ns, w.first(q, ns, dst.Port()), host)...)
		if info, _, ok := w.Served(ns, name); ok {
			names = append(names, egress.Unknown(w.Snapshot, w.Network, w.local(info), dst.Addr())...)
		}
		return names
	}
	host, _, err := split(q.To)
	if err != nil || strings.HasPrefix(host, "pod/") {
		return nil
	}
	_, host, qualified := strings.Cut(host, "/")
	if !qualified {
		host, _, _ = split(q.To)
	}
	var names []string
	for _, c := range Candidates(host, ns, w.Domain) {
		// The namespace of a Kubernetes Service is in its name.
		if parts := strings.SplitN(c, ".", 4); len(parts) == 4 && parts[2] == "svc" {
			names = append(names, parts[1]+"/"+c)
		} else {
			names = append(names, ns+"/"+c)
		}
	}
	return names
}

// local returns the workload that a pod of this node is, nil while the control plane
// has not sent it.
func (w *World) local(info bootstrap.Workload) *workload.Workload {
	return w.Snapshot.WorkloadByInfo(w.Node, info.Namespace, info.Name, info.ServiceAccount)
}

// pod returns the workload of a name, whether or not this node runs it; nil without one.
func (w *World) pod(namespace, name string) *workload.Workload {
	var best *workload.Workload
	for x := range w.Snapshot.Workloads() {
		if x.Namespace == namespace && x.Name == name && strings.Contains(x.UID, "/Pod/") && (best == nil || x.UID < best.UID) {
			best = x
		}
	}
	return best
}

func lowest(uint64) uint64 { return 0 }

// first is how the client of a question begins: by TLS if the question has a name, or calls a
// host by its name at a port of TLS.
func (w *World) first(q *verdict.Question, namespace string, port uint16) traffic.First {
	name := q.SNI
	if host, _, err := split(q.To); err == nil && name == "" && w.Gate != nil {
		host = strings.ToLower(host)
		if m := w.Gate.Hosts.Find([]modes.Name{{Host: host}}, namespace, port, hosts.First{}); m.Reads {
			name = host
		}
	}
	return traffic.First{Seen: true, TLS: name != "", Name: name}
}

// host returns the service that a connection of a pod is to by a look-up.
func (w *World) host(namespace, name string, dst netip.AddrPort, first traffic.First) hosts.Match {
	if w.Gate == nil {
		return hosts.Match{}
	}
	return w.Gate.Host(w.Egress(namespace, name), namespace, dst, first)
}

// lookedUp returns an address that look-ups of a pod have led to from a name.
func (w *World) lookedUp(to, host, namespace, name string, like netip.Addr) (netip.Addr, error) {
	if w.Gate == nil || !w.Gate.Hosts.Has(strings.ToLower(host), namespace) {
		return netip.Addr{}, nil
	}
	if a := w.Egress(namespace, name).Answers.Of(strings.ToLower(host), like, time.Now()); a.IsValid() {
		return a, nil
	}
	return netip.Addr{}, unknown("destination %q: it is a host of a ServiceEntry that is found by look-ups, and no look-up of pod %s/%s that counts has led to an address (have the pod look it up; see docs/addresses.md)", to, namespace, name)
}

// target is a workload as policies see it.
func target(w *workload.Workload) rbac.Target {
	return rbac.Target{Namespace: w.Namespace, Policies: w.Policies}
}

// address returns an address of a workload, of the family of like if it has one.
func address(w *workload.Workload, like netip.Addr) netip.Addr {
	for _, a := range w.Addrs() {
		if !like.IsValid() || a.Is4() == like.Is4() {
			return a
		}
	}
	if a := w.Addrs(); len(a) > 0 {
		return a[0]
	}
	return netip.Addr{}
}

func podName(w *workload.Workload) string { return w.Namespace + "/" + w.Name }

func kindOf(w *workload.Workload) string {
	if strings.Contains(w.UID, "/Pod/") {
		return "Pod"
	}
	return "workload"
}

func serviceObject(s *workload.Service) string {
	if strings.HasPrefix(s.Hostname, s.Name+"."+s.Namespace+".svc.") {
		return "Service " + s.Namespace + "/" + s.Name
	}
	return "ServiceEntry " + s.Namespace + "/" + s.Name
}

func unknown(format string, args ...any) error {
	return fmt.Errorf("%w: %w", verdict.ErrUnknown, fmt.Errorf(format, args...))
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", verdict.ErrQuestion, fmt.Errorf(format, args...))
}

// endpoints describes the endpoints of a service: those that were not chosen, and those
// that are not healthy.
func (w *World) endpoints(s *workload.Service, chosen string) string {
	var others, ill []string
	for e := range w.Snapshot.Endpoints(s) {
		switch {
		case e.UID == chosen:
		case e.Healthy:
			others = append(others, podName(e))
		default:
			ill = append(ill, podName(e))
		}
	}
	var parts []string
	if len(others) > 0 {
		parts = append(parts, "or "+some(others))
	}
	if len(ill) > 0 {
		parts = append(parts, "not ready: "+some(ill))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, "; ") + ")"
}

// maxNamed bounds the names in one step.
const maxNamed = 5

func some(names []string) string {
	slices.Sort(names)
	if n := len(names) - maxNamed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), n)
	}
	return strings.Join(names, ", ")
}

var errNotListening = reason.Errorf(reason.ConnectFailure, "the node proxy does not accept the pod's connections yet")
