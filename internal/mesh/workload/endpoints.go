package workload

import (
	"iter"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/trie"
)

// bucketTarget is how many endpoints a bucket of an endpointSet holds on
// average before the set doubles its buckets: a change copies one bucket and
// the list of buckets, which for 10,000 endpoints are about as large.
const bucketTarget = 64

// endpoint is a workload as a member of one service.
type endpoint struct {
	w *Workload
	m *Membership
}

// weight is the endpoint's share of connections.
func (e endpoint) weight(allowUnhealthy bool) uint64 {
	if !e.w.Healthy && !allowUnhealthy {
		return 0
	}
	return uint64(e.w.Capacity)
}

// endpointSet is the endpoints of one service, healthy or not, whether the
// service itself is known yet or not. It is persistent: edits return a new set
// that shares all but one bucket. Weights are summed up so that a random
// choice need not look at every endpoint.
type endpointSet struct {
	service        NamespacedName
	allowUnhealthy bool
	epoch          uint64
	n              int
	weight         uint64
	buckets        []*bucket // by hash of UID; a power of two
}

type bucket struct {
	epoch     uint64
	weight    uint64
	endpoints []endpoint
}

func newEndpointSet(epoch uint64, name NamespacedName) *endpointSet {
	return &endpointSet{service: name, epoch: epoch, buckets: []*bucket{{epoch: epoch}}}
}

func (s *endpointSet) edit(epoch uint64) *endpointSet {
	if s.epoch == epoch {
		return s
	}
	out := *s
	out.epoch = epoch
	out.buckets = slices.Clone(s.buckets)
	return &out
}

// open returns the bucket of a UID for change by a set already edited.
func (s *endpointSet) open(uid string) *bucket {
	i := trie.String(uid) & uint64(len(s.buckets)-1)
	b := s.buckets[i]
	if b.epoch != s.epoch {
		b = &bucket{s.epoch, b.weight, slices.Clone(b.endpoints)}
		s.buckets[i] = b
	}
	return b
}

// get returns the endpoint of a UID.
func (s *endpointSet) get(uid string) (endpoint, bool) {
	b := s.buckets[trie.String(uid)&uint64(len(s.buckets)-1)]
	if i := b.find(uid); i >= 0 {
		return b.endpoints[i], true
	}
	return endpoint{}, false
}

// put adds or replaces the endpoint of e's workload.
func (s *endpointSet) put(epoch uint64, e endpoint) *endpointSet {
	out := s.edit(epoch)
	b := out.open(e.w.UID)
	out.weight -= b.weight
	if i := b.find(e.w.UID); i >= 0 {
		b.endpoints[i] = e
	} else {
		b.endpoints = append(b.endpoints, e)
		out.n++
	}
	b.sum(out.allowUnhealthy)
	out.weight += b.weight
	if out.n > bucketTarget*len(out.buckets) {
		out.grow()
	}
	return out
}

// drop removes an endpoint.
func (s *endpointSet) drop(epoch uint64, uid string) *endpointSet {
	out := s.edit(epoch)
	b := out.open(uid)
	i := b.find(uid)
	if i < 0 {
		return out
	}
	out.weight -= b.weight
	b.endpoints = slices.Delete(b.endpoints, i, i+1)
	out.n--
	b.sum(out.allowUnhealthy)
	out.weight += b.weight
	return out
}

// withPolicy returns the set under another health policy.
func (s *endpointSet) withPolicy(epoch uint64, allowUnhealthy bool) *endpointSet {
	if s.allowUnhealthy == allowUnhealthy {
		return s
	}
	out := s.edit(epoch)
	out.allowUnhealthy = allowUnhealthy
	out.weight = 0
	for i, b := range out.buckets {
		b = &bucket{epoch: epoch, endpoints: slices.Clone(b.endpoints)}
		b.sum(allowUnhealthy)
		out.buckets[i] = b
		out.weight += b.weight
	}
	return out
}

func (s *endpointSet) grow() {
	old := s.buckets
	s.buckets = make([]*bucket, 2*len(old))
	for i := range s.buckets {
		s.buckets[i] = &bucket{epoch: s.epoch}
	}
	for _, b := range old {
		for _, e := range b.endpoints {
			to := s.open(e.w.UID)
			to.endpoints = append(to.endpoints, e)
			to.weight += e.weight(s.allowUnhealthy)
		}
	}
}

func (b *bucket) find(uid string) int {
	return slices.IndexFunc(b.endpoints, func(e endpoint) bool { return e.w.UID == uid })
}

func (b *bucket) sum(allowUnhealthy bool) {
	b.weight = 0
	for _, e := range b.endpoints {
		b.weight += e.weight(allowUnhealthy)
	}
}

// at returns the endpoint that owns share r of the set's weight, r < weight.
func (s *endpointSet) at(r uint64) endpoint {
	for _, b := range s.buckets {
		if r >= b.weight {
			r -= b.weight
			continue
		}
		for _, e := range b.endpoints {
			w := e.weight(s.allowUnhealthy)
			if r < w {
				return e
			}
			r -= w
		}
	}
	return endpoint{}
}

func (s *endpointSet) all() iter.Seq[endpoint] {
	return func(yield func(endpoint) bool) {
		for _, b := range s.buckets {
			for _, e := range b.endpoints {
				if !yield(e) {
					return
				}
			}
		}
	}
}
