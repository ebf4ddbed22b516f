// Package vips allocates virtual addresses for hosts of ServiceEntries that list none, so
// that a connection shows which host its client has looked up. The
// allocation is a function of the entries alone, not of their history: every replica makes the
// same one. A change of one entry costs what that entry has. What was written into an entry's
// status stays.
package vips

import (
	"net/netip"
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

// LabelAllocate has the value false on entries that get no address. It is Istio's.
const LabelAllocate = "networking.istio.io/enable-autoallocate-ip"

// The ranges of allocated addresses, which are Istio's.
var (
	IPv4 = netip.MustParsePrefix("240.240.0.0/16")
	IPv6 = netip.MustParsePrefix("2001:2::/48")
)

// Address is an allocated address of a host.
type Address struct {
	Host string
	Addr netip.Addr
}

// Request is what the allocation depends on of one entry.
type Request struct {
	Created int64    // Unix seconds
	Hosts   []string // that get addresses
	// Kept are addresses in the entry's status, Taken those that it lists itself.
	Kept  []Address
	Taken []netip.Addr
}

func (a *Request) equal(b *Request) bool {
	return a.Created == b.Created && slices.Equal(a.Hosts, b.Hosts) && slices.Equal(a.Kept, b.Kept) && slices.Equal(a.Taken, b.Taken)
}

// Allocates reports whether the hosts of an entry get addresses.
func Allocates(e *networkingv1.ServiceEntry) bool {
	r := e.Spec.Resolution
	if r == networkingapi.ServiceEntry_NONE || r == networkingapi.ServiceEntry_DYNAMIC_DNS {
		return false // a connection goes where it was going
	}
	return len(e.Spec.Addresses) == 0 && !strings.EqualFold(e.Labels[LabelAllocate], "false")
}

// Read returns the request of an entry; ok is false for one that has no part in the
// allocation.
func Read(e *networkingv1.ServiceEntry) (out *Request, ok bool) {
	out = &Request{Created: e.CreationTimestamp.Unix()}
	for _, text := range e.Spec.Addresses {
		if a, err := netip.ParseAddr(text); err == nil && (IPv4.Contains(a.Unmap()) || IPv6.Contains(a)) {
			out.Taken = append(out.Taken, a.Unmap())
		}
	}
	if !Allocates(e) {
		return out, len(out.Taken) > 0
	}
	gets := map[string]bool{}
	for _, h := range e.Spec.Hosts {
		if h != "" && !strings.Contains(h, "*") && !gets[h] {
			gets[h] = true
			out.Hosts = append(out.Hosts, h)
		}
	}
	for _, s := range e.Status.GetAddresses() {
		if a, err := netip.ParseAddr(s.GetValue()); err == nil && a.Zone() == "" && gets[s.GetHost()] {
			out.Kept = append(out.Kept, Address{s.GetHost(), a.Unmap()})
		}
	}
	return out, len(out.Hosts) > 0
}

// Pools are the ranges to allocate from.
type Pools struct{ IPv4, IPv6 netip.Prefix }

// Default are the ranges that are used.
var Default = Pools{IPv4, IPv6}

// Entries returns the entries of a mesh with the addresses that are allocated for them.
func Entries(in *collection.Collection[source.Ref, *networkingv1.ServiceEntry]) *collection.Collection[source.Ref, *networkingv1.ServiceEntry] {
	requests := collection.Map(in, "requests for addresses", (*Request).equal, func(_ *collection.Reader, k source.Ref, e *networkingv1.ServiceEntry) (*Request, bool) {
		req, ok := Read(e)
		return req, ok && k.Cluster.Own()
	})
	own := collection.Follow(requests, "allocated addresses", slices.Equal[[]Address], collection.Machine[source.Ref, *Request, []Address](NewAllocation(Default)))
	return collection.Map(in, "service entries with addresses", func(a, b *networkingv1.ServiceEntry) bool { return a == b },
		func(r *collection.Reader, k source.Ref, e *networkingv1.ServiceEntry) (*networkingv1.ServiceEntry, bool) {
			addrs, ok := collection.Fetch(r, own, k)
			if !ok || slices.Equal(addrs, written(e)) {
				return e, true
			}
			next := e.DeepCopy()
			next.Status.Addresses = nil
			for _, a := range addrs {
				next.Status.Addresses = append(next.Status.Addresses, &networkingapi.ServiceEntryAddress{Host: a.Host, Value: a.Addr.String()})
			}
			return next, true
		})
}

// written are the addresses in the status of an entry, as they are.
func written(e *networkingv1.ServiceEntry) (out []Address) {
	for _, s := range e.Status.GetAddresses() {
		a, _ := netip.ParseAddr(s.GetValue())
		out = append(out, Address{s.GetHost(), a})
	}
	return out
}
