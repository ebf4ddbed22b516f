package registry

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
)

// claims reports which hosts and addresses of an entry are not its own; nil when
// all are.
func (d describer) claims(n tables.Ref, e *networkingv1.ServiceEntry) *status.Condition {
	scope := d.t.Scope(d.r, n, e)
	var hosts, owned, earlier, merged []string
	for _, h := range e.Spec.Hosts {
		if d.t.OfService(d.r, n.Cluster, tables.Host{Namespace: n.Namespace, Hostname: h}) {
			hosts = append(hosts, fmt.Sprintf("host %s belongs to the Kubernetes Service of that name", h))
			continue
		}
		merged = append(merged, d.disputes(n, e, h)...)
	}
	for _, p := range tables.AllBlocks(d.t.Addressed(d.r, n, e)) {
		switch v := d.t.Rule(d.r, n, scope, p); {
		case v.Owner != "":
			owned = append(owned, v.Text(n.Namespace))
		case v.Older != (tables.Ref{}):
			earlier = append(earlier, v.Text(n.Namespace))
		}
	}
	no := func(reason, next string, what []string) *status.Condition {
		c := status.No(status.ClaimsAccepted, reason, "%s; %s", strings.Join(what, ", "), next)
		return &c
	}
	switch {
	case len(owned) > 0:
		return no(status.ReasonOwnedByOthers, fmt.Sprintf(`proxies do not receive these claims: remove them, or write exportTo: ["."] to take addresses for clients of namespace %s only`, n.Namespace), slices.Concat(owned, hosts, earlier))
	case len(hosts) > 0:
		return no(status.ReasonHostOfService, "its endpoints do not join the Service: give the entry a host of its own", append(hosts, earlier...))
	case len(earlier) > 0:
		return no(status.ReasonClaimedEarlier, "the older entry serves clients of other namespaces: remove one of the two claims", earlier)
	case len(merged) > 0:
		return no(status.ReasonMerged, "give the entries of one host different ports and the same resolution and exportTo", merged)
	}
	return nil
}

// disputes reports in what an entry differs from the older entries of its host,
// with which it makes one service.
func (d describer) disputes(n tables.Ref, e *networkingv1.ServiceEntry, host string) []string {
	var out []string
	scope := d.t.Scope(d.r, n, e)
	for _, s := range d.t.Shares(d.r, n.Cluster, tables.Host{Namespace: n.Namespace, Hostname: host}) {
		if s.Key == n {
			break
		}
		with := fmt.Sprintf("ServiceEntry %s of the same host %s", s.Key, host)
		if p := samePort(e.Spec.Ports, s.Entry.Spec.Ports); p != 0 {
			out = append(out, fmt.Sprintf("port %d is a port of %s, too", p, with))
		}
		if (e.Spec.Resolution == networkingapi.ServiceEntry_NONE) != (s.Entry.Spec.Resolution == networkingapi.ServiceEntry_NONE) {
			out = append(out, fmt.Sprintf("resolution %s is not that of %s, which is older and decides", e.Spec.Resolution, with))
		}
		if scope != s.Scope && (scope == meshconfig.Namespace || s.Scope == meshconfig.Namespace) {
			out = append(out, fmt.Sprintf("exportTo is not that of %s: only clients of namespace %s see either", with, n.Namespace))
		}
	}
	return out
}

// samePort is the first port that two lists have in common; 0 for none.
func samePort(a, b []*networkingapi.ServicePort) uint32 {
	for _, p := range a {
		for _, o := range b {
			if p.Number == o.Number {
				return p.Number
			}
		}
	}
	return 0
}

// isPod returns the pod whose address a WorkloadEntry has.
func (d describer) isPod(n tables.Ref, e *networkingv1.WorkloadEntry) (tables.Ref, bool) {
	addr, err := netip.ParseAddr(e.Spec.Address)
	if err != nil || addr.Zone() != "" {
		return tables.Ref{}, false
	}
	network := e.Spec.Network
	if network == "" {
		network = d.t.Network(d.r, n.Home(), tables.EntryLabels(e.Labels, e.Spec.Labels))
	}
	return d.t.PodAt(d.r, tables.Place{Network: network, Addr: addr.Unmap()})
}
