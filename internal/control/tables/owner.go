package tables

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/source"
)

// ownership is what decides who has an address: docs/addresses.md.
type ownership struct {
	// Pods and Services, by address. Pods of the host's network are apart: their
	// addresses are the node's.
	Pods      *collection.Collection[Ref, located]
	podAt     *collection.Index[Place, Ref, located]
	Services  *collection.Collection[Ref, []netip.Addr]
	serviceAt *collection.Index[virtual, Ref, []netip.Addr]
	hostPodAt *collection.Index[Place, Ref, located]
	// Of each address and range, the oldest entry that the whole mesh sees.
	claims *collection.Collection[netip.Prefix, Ref]
}

// virtual is an address of a Service, which is of a cluster and no network.
type virtual struct {
	cluster source.Cluster
	addr    netip.Addr
}

// Place is an address in a network.
type Place struct {
	Network string
	Addr    netip.Addr
}

// located is where a pod is found.
type located struct {
	Network string
	Addrs   []netip.Addr
	host    bool // shares its node's addresses
}

func sameLocated(a, b located) bool {
	return a.Network == b.Network && slices.Equal(a.Addrs, b.Addrs) && a.host == b.host
}

func (l located) places(host bool) []Place {
	if l.host != host {
		return nil
	}
	out := make([]Place, 0, len(l.Addrs))
	for _, a := range l.Addrs {
		out = append(out, Place{l.Network, a})
	}
	return out
}

// own derives who has which address. What changes in an object all the time
// (readiness, heartbeats) changes nothing here.
func (t *Tables) own(in *Inputs) {
	t.Owned.Pods = collection.Map(in.Pods.Collection, "addresses of pods", sameLocated, t.locate)
	t.Owned.podAt = collection.NewIndex(t.Owned.Pods, func(_ Ref, l located) []Place { return l.places(false) })
	t.Owned.hostPodAt = collection.NewIndex(t.Owned.Pods, func(_ Ref, l located) []Place { return l.places(true) })
	t.Owned.Services = collection.Map(in.Services.Collection, "addresses of services", slices.Equal[[]netip.Addr],
		func(_ *collection.Reader, _ Ref, s *corev1.Service) ([]netip.Addr, bool) {
			addrs := serviceAddresses(s)
			return addrs, len(addrs) > 0
		})
	t.Owned.serviceAt = collection.NewIndex(t.Owned.Services, func(k Ref, addrs []netip.Addr) []virtual {
		out := make([]virtual, 0, len(addrs))
		for _, a := range addrs {
			out = append(out, virtual{k.Cluster, a})
		}
		return out
	})
}

// locate leaves out pods that have ended.
func (t *Tables) locate(r *collection.Reader, k Ref, p *corev1.Pod) (located, bool) {
	if source.Ended(p) {
		return located{}, false
	}
	l := located{Network: t.Network(r, k.Home(), p.Labels), host: p.Spec.HostNetwork}
	for _, b := range PodAddresses(p) {
		a, _ := netip.AddrFromSlice(b)
		l.Addrs = append(l.Addrs, a)
	}
	return l, len(l.Addrs) > 0
}

// serviceAddresses are those that Kubernetes itself gave to a Service.
// externalIPs are not among them: who writes the Service chooses those.
func serviceAddresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	for _, a := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		out = appendAddr(out, a)
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		out = appendAddr(out, i.IP)
	}
	return out
}

// appendAddr adds an address that is one, once.
func appendAddr(list []netip.Addr, s string) []netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || slices.Contains(list, a.Unmap()) {
		return list
	}
	return append(list, a.Unmap())
}

// PodAt returns the pod that has an address.
func (t *Tables) PodAt(r *collection.Reader, at Place) (Ref, bool) {
	var pods []Ref
	for k := range collection.Lookup(r, t.Owned.podAt, at) {
		pods = append(pods, k)
	}
	if len(pods) == 0 {
		return Ref{}, false
	}
	// Two pods have one address only while one takes the other's place.
	return slices.MinFunc(pods, Ref.Compare), true
}

// Owner returns what has an address in a cluster, for people: a Service, or a
// pod of its network. What is of namespace not does not count.
func (t *Tables) Owner(r *collection.Reader, c source.Cluster, a netip.Addr, not string) string {
	var found []string
	for k := range collection.Lookup(r, t.Owned.serviceAt, virtual{c, a}) {
		if k.Namespace != not {
			found = append(found, source.Service.Name+" "+k.String())
		}
	}
	at := Place{t.Cluster(r, c).Network, a}
	for _, index := range []*collection.Index[Place, Ref, located]{t.Owned.podAt, t.Owned.hostPodAt} {
		for k := range collection.Lookup(r, index, at) {
			if k.Namespace != not {
				found = append(found, source.Pod.Name+" "+k.String())
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return slices.Min(found)
}

// Ruling is what becomes of one address or range that an entry claims.
type Ruling struct {
	block netip.Prefix
	// Owner has the address, and no proxy receives the claim; empty for none.
	Owner string
	// Older is the entry of another namespace that claimed it first: its claim
	// holds for clients of all other namespaces.
	Older Ref
	// dropped claims are not sent.
	dropped bool
}

// Rule decides about an address of an entry of namespace k.Namespace. Clients
// of other namespaces must not be led away from the owner by a proxy that
// prefers claims, so a claim on what another namespace owns is not sent, unless
// only the entry's own namespace sees it.
func (t *Tables) Rule(r *collection.Reader, k Ref, scope meshconfig.Scope, p netip.Prefix) Ruling {
	v := Ruling{block: p}
	if scope != meshconfig.Public {
		return v
	}
	if p.IsSingleIP() {
		if v.Owner = t.Owner(r, k.Cluster, p.Addr(), k.Namespace); v.Owner != "" {
			v.dropped = true
			return v
		}
	}
	if first, ok := collection.Fetch(r, t.Owned.claims, p); ok && first.Namespace != k.Namespace {
		v.Older = first
		// The wire says who wins by the flag canonical alone. Where the older
		// entry does not have it, the younger claim has to go.
		v.dropped = !t.leads(r, first)
	}
	return v
}

// leads reports whether an entry is canonical for all its hosts.
func (t *Tables) leads(r *collection.Reader, k Ref) bool {
	e, ok := collection.Fetch(r, t.entries, k)
	if !ok {
		return false
	}
	for _, h := range e.Spec.Hosts {
		if !t.canonical(r, k.Cluster, Host{k.Namespace, h}) {
			return false
		}
	}
	return true
}

// blocks are the addresses and ranges that an entry claims for a host.
func blocks(e *networkingv1.ServiceEntry, host string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range service.EntryAddresses(e, host) {
		p, ok := service.ParseBlock(a)
		if p = Plain(p); ok && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// Plain is a range as it is compared: without host bits, and IPv4 as such.
func Plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// AllBlocks are those for any host.
func AllBlocks(e *networkingv1.ServiceEntry) []netip.Prefix {
	var out []netip.Prefix
	for _, h := range e.Spec.Hosts {
		for _, p := range blocks(e, h) {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// MaxClashes bounds an answer of Clashes.
const MaxClashes = 3

// Text is what the status says about a claim that does not hold everywhere.
func (v Ruling) Text(namespace string) string {
	what := v.block.String()
	if v.block.IsSingleIP() {
		what = v.block.Addr().String()
	}
	switch {
	case v.Owner != "":
		return fmt.Sprintf("address %s belongs to %s", what, v.Owner)
	case v.dropped:
		return fmt.Sprintf("%s was claimed first by ServiceEntry %s", what, v.Older)
	}
	return fmt.Sprintf("%s was claimed first by ServiceEntry %s, and only clients of namespace %s use this claim", what, v.Older, namespace)
}
