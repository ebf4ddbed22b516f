package registry

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/source"
)

// ownership is what decides who has an address: docs/addresses.md.
type ownership struct {
	// Pods and Services, by address. Pods of the host's network are apart: their
	// addresses are the node's.
	pods      *collection.Collection[Ref, located]
	podAt     *collection.Index[place, Ref, located]
	services  *collection.Collection[Ref, []netip.Addr]
	serviceAt *collection.Index[virtual, Ref, []netip.Addr]
	hostPodAt *collection.Index[place, Ref, located]
	// Of each address and range, the oldest entry that the whole mesh sees.
	claims *collection.Collection[netip.Prefix, Ref]
}

// virtual is an address of a Service, which is of a cluster and no network.
type virtual struct {
	cluster source.Cluster
	addr    netip.Addr
}

// place is an address in a network.
type place struct {
	network string
	addr    netip.Addr
}

// located is where a pod is found.
type located struct {
	network string
	addrs   []netip.Addr
	host    bool // shares its node's addresses
}

func sameLocated(a, b located) bool {
	return a.network == b.network && slices.Equal(a.addrs, b.addrs) && a.host == b.host
}

func (l located) places(host bool) []place {
	if l.host != host {
		return nil
	}
	out := make([]place, 0, len(l.addrs))
	for _, a := range l.addrs {
		out = append(out, place{l.network, a})
	}
	return out
}

// own derives who has which address. What changes in an object all the time
// (readiness, heartbeats) changes nothing here.
func (t *tables) own(in *inputs) {
	t.owned.pods = collection.Map(in.pods.Collection, "addresses of pods", sameLocated, t.locate)
	t.owned.podAt = collection.NewIndex(t.owned.pods, func(_ Ref, l located) []place { return l.places(false) })
	t.owned.hostPodAt = collection.NewIndex(t.owned.pods, func(_ Ref, l located) []place { return l.places(true) })
	t.owned.services = collection.Map(in.services.Collection, "addresses of services", slices.Equal[[]netip.Addr],
		func(_ *collection.Reader, _ Ref, s *corev1.Service) ([]netip.Addr, bool) {
			addrs := serviceAddresses(s)
			return addrs, len(addrs) > 0
		})
	t.owned.serviceAt = collection.NewIndex(t.owned.services, func(k Ref, addrs []netip.Addr) []virtual {
		out := make([]virtual, 0, len(addrs))
		for _, a := range addrs {
			out = append(out, virtual{k.Cluster, a})
		}
		return out
	})
}

// locate leaves out pods that have ended.
func (t *tables) locate(r *collection.Reader, k Ref, p *corev1.Pod) (located, bool) {
	if source.Ended(p) {
		return located{}, false
	}
	l := located{network: t.network(r, k.Home(), p.Labels), host: p.Spec.HostNetwork}
	for _, b := range podAddresses(p) {
		a, _ := netip.AddrFromSlice(b)
		l.addrs = append(l.addrs, a)
	}
	return l, len(l.addrs) > 0
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

// podAt returns the pod that has an address.
func (t *tables) podAt(r *collection.Reader, at place) (Ref, bool) {
	var pods []Ref
	for k := range collection.Lookup(r, t.owned.podAt, at) {
		pods = append(pods, k)
	}
	if len(pods) == 0 {
		return Ref{}, false
	}
	// Two pods have one address only while one takes the other's place.
	return slices.MinFunc(pods, Ref.Compare), true
}

// owner returns what has an address in a cluster, for people: a Service, or a
// pod of its network. What is of namespace not does not count.
func (t *tables) owner(r *collection.Reader, c source.Cluster, a netip.Addr, not string) string {
	var found []string
	for k := range collection.Lookup(r, t.owned.serviceAt, virtual{c, a}) {
		if k.Namespace != not {
			found = append(found, source.Service.Name+" "+k.String())
		}
	}
	at := place{t.cluster(r, c).network, a}
	for _, index := range []*collection.Index[place, Ref, located]{t.owned.podAt, t.owned.hostPodAt} {
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

// ruling is what becomes of one address or range that an entry claims.
type ruling struct {
	block netip.Prefix
	// owner has the address, and no proxy receives the claim; empty for none.
	owner string
	// older is the entry of another namespace that claimed it first: its claim
	// holds for clients of all other namespaces.
	older Ref
	// dropped claims are not sent.
	dropped bool
}

// rule decides about an address of an entry of namespace k.Namespace. Clients
// of other namespaces must not be led away from the owner by a proxy that
// prefers claims, so a claim on what another namespace owns is not sent, unless
// only the entry's own namespace sees it.
func (t *tables) rule(r *collection.Reader, k Ref, scope meshconfig.Scope, p netip.Prefix) ruling {
	v := ruling{block: p}
	if scope != meshconfig.Public {
		return v
	}
	if p.IsSingleIP() {
		if v.owner = t.owner(r, k.Cluster, p.Addr(), k.Namespace); v.owner != "" {
			v.dropped = true
			return v
		}
	}
	if first, ok := collection.Fetch(r, t.owned.claims, p); ok && first.Namespace != k.Namespace {
		v.older = first
		// The wire says who wins by the flag canonical alone. Where the older
		// entry does not have it, the younger claim has to go.
		v.dropped = !t.leads(r, first)
	}
	return v
}

// leads reports whether an entry is canonical for all its hosts.
func (t *tables) leads(r *collection.Reader, k Ref) bool {
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
	for _, a := range entryAddresses(e, host) {
		p, ok := parseBlock(a)
		if p = plain(p); ok && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// plain is a range as it is compared: without host bits, and IPv4 as such.
func plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// allBlocks are those for any host.
func allBlocks(e *networkingv1.ServiceEntry) []netip.Prefix {
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

// Clashes returns what other namespaces have in an address or range, for
// people, at most a few, and how much more there is. It looks at every object
// for a range.
func (r *Registry) Clashes(namespace string, p netip.Prefix) (owners []string, more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p = plain(p)
	if p.IsSingleIP() {
		if o := r.t.owner(collection.Untracked(), source.Cluster{}, p.Addr(), namespace); o != "" {
			owners = append(owners, o)
		}
		return owners, 0
	}
	var found []string
	add := func(kind, ns, name string, addrs []netip.Addr) {
		if ns != namespace && slices.ContainsFunc(addrs, p.Contains) {
			found = append(found, kind+" "+name)
		}
	}
	for k, addrs := range r.t.owned.services.All() {
		if !k.Cluster.Own() {
			continue
		}
		add(source.Service.Name, k.Namespace, k.String(), addrs)
	}
	for k, l := range r.t.owned.pods.All() {
		if l.network == r.opts.Network {
			add(source.Pod.Name, k.Namespace, k.String(), l.addrs)
		}
	}
	slices.Sort(found)
	n := min(len(found), maxClashes)
	return found[:n], len(found) - n
}

// maxClashes bounds an answer of Clashes.
const maxClashes = 3

// text is what the status says about a claim that does not hold everywhere.
func (v ruling) text(namespace string) string {
	what := v.block.String()
	if v.block.IsSingleIP() {
		what = v.block.Addr().String()
	}
	switch {
	case v.owner != "":
		return fmt.Sprintf("address %s belongs to %s", what, v.owner)
	case v.dropped:
		return fmt.Sprintf("%s was claimed first by ServiceEntry %s", what, v.older)
	}
	return fmt.Sprintf("%s was claimed first by ServiceEntry %s, and only clients of namespace %s use this claim", what, v.older, namespace)
}
