package hosts

import (
	"cmp"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/trie"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// few is how many services of one host or range are searched one by one. More of them have an
// order in which each question finds its answer at once; it costs more memory.
const few = 8

// group has the services of one host, or of one range. It is immutable, and has one at least.
type group struct {
	list []*workload.Service // of a few, in no order
	root *branch             // of more
	n    int                 // services
}

// anyPort stands for the question whether there is a service, whatever its ports.
const anyPort = -1

// find returns the service with a port that clients of a namespace mean; nil for none.
func (g *group) find(namespace string, port int) (out *workload.Service) {
	if g == nil {
		return nil
	}
	if g.root != nil {
		if svc := g.root.first(place{scope: namespace, port: port}); svc != nil {
			return svc
		}
		return g.root.first(place{shared: true, port: port})
	}
	for _, svc := range g.list {
		if !svc.VisibleTo(namespace) || port != anyPort && !hasPort(svc, uint16(port)) { //nolint:gosec // it is a port
			continue
		}
		if out == nil || better(svc, out, namespace) {
			out = svc
		}
	}
	return out
}

// better reports whether a client of a namespace means a and not b: that of its own
// namespace, else the canonical one, else the first by name.
func better(a, b *workload.Service, namespace string) bool {
	if own := a.Namespace == namespace; own != (b.Namespace == namespace) {
		return own
	}
	if a.Canonical != b.Canonical {
		return a.Canonical
	}
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Hostname, b.Hostname)) < 0
}

func hasPort(s *workload.Service, port uint16) bool {
	_, has := s.TargetPort(port)
	return has
}

// with returns the group with a service more. A nil group is an empty one.
func (g *group) with(s *workload.Service) *group {
	if g == nil {
		return &group{list: []*workload.Service{s}, n: 1}
	}
	out := &group{n: g.n + 1, root: g.root}
	switch {
	case g.root != nil:
		out.root = out.root.put(s)
	case g.n < few:
		out.list = slices.Concat(g.list, []*workload.Service{s})
	default:
		for _, svc := range g.list {
			out.root = out.root.put(svc)
		}
		out.root = out.root.put(s)
	}
	return out
}

// without returns the group without a service that it has; nil when it was the last one.
func (g *group) without(s *workload.Service) *group {
	if g.n == 1 {
		return nil
	}
	out := &group{n: g.n - 1}
	if g.root == nil {
		for _, svc := range g.list {
			if svc != s {
				out.list = append(out.list, svc)
			}
		}
		return out
	}
	out.root = g.root.drop(s)
	if out.n <= few/2 {
		out.list = out.root.services(nil)
		out.root = nil
	}
	return out
}

// place is where a service stands in the order of a group: by a question, and for one question
// the best answer first. A service has one for each of its ports and for anyPort, in the scope
// of its namespace and, if others see it, in the shared one.
type place struct {
	shared bool
	scope  string // a namespace, unless shared
	port   int
	svc    *workload.Service // nil: before all services
}

func (p *place) compare(o *place) int {
	switch {
	case p.shared != o.shared:
		if p.shared {
			return 1
		}
		return -1
	case p.scope != o.scope:
		return strings.Compare(p.scope, o.scope)
	case p.port != o.port:
		return cmp.Compare(p.port, o.port)
	case p.svc == o.svc:
		return 0
	case p.svc == nil:
		return -1
	case o.svc == nil:
		return 1
	case better(p.svc, o.svc, p.scope):
		return -1
	}
	return 1
}

// places calls f with each place of a service.
func places(s *workload.Service, f func(place)) {
	seen := map[int]bool{}
	each := func(port int) {
		if seen[port] {
			return
		}
		seen[port] = true
		f(place{scope: s.Namespace, port: port, svc: s})
		if !s.NamespaceOnly {
			f(place{shared: true, port: port, svc: s})
		}
	}
	each(anyPort)
	for _, p := range s.Ports {
		each(int(p.Service))
	}
}

// branch is a part of a balanced tree of places: a treap, whose versions stay. The place with
// the highest rank is above.
type branch struct {
	place
	rank        uint64
	left, right *branch
}

// first returns the service of the first place at or after p that answers its question.
func (b *branch) first(p place) (out *workload.Service) {
	for b != nil {
		if b.compare(&p) < 0 {
			b = b.right
			continue
		}
		if b.shared == p.shared && b.scope == p.scope && b.port == p.port {
			out = b.svc
		}
		b = b.left
	}
	return out
}

// rank is random, and not to be chosen by users: so the tree is balanced.
func rank(p *place) uint64 {
	n := uint64(p.port+1) << 1 //nolint:gosec // at most 65,536
	if p.shared {
		n++
	}
	return trie.Mix(trie.Pair(p.svc.Namespace, p.svc.Hostname) + trie.Mix(n))
}

func (b *branch) put(s *workload.Service) *branch {
	places(s, func(p place) { b = b.insert(&branch{place: p, rank: rank(&p)}) })
	return b
}

func (b *branch) drop(s *workload.Service) *branch {
	places(s, func(p place) { b = b.remove(&p) })
	return b
}

func (b *branch) insert(n *branch) *branch {
	switch {
	case b == nil:
		return n
	case n.rank > b.rank:
		n.left, n.right = b.split(&n.place)
		return n
	}
	out := *b
	if n.compare(&b.place) < 0 {
		out.left = b.left.insert(n)
	} else {
		out.right = b.right.insert(n)
	}
	return &out
}

// split returns the places before p, and those after it.
func (b *branch) split(p *place) (before, after *branch) {
	if b == nil {
		return nil, nil
	}
	out := *b
	if b.compare(p) < 0 {
		out.right, after = b.right.split(p)
		return &out, after
	}
	before, out.left = b.left.split(p)
	return before, &out
}

func (b *branch) remove(p *place) *branch {
	if b == nil {
		return nil
	}
	c := p.compare(&b.place)
	if c == 0 {
		return b.left.join(b.right)
	}
	out := *b
	if c < 0 {
		out.left = b.left.remove(p)
	} else {
		out.right = b.right.remove(p)
	}
	return &out
}

// join returns a tree of two, of which all places of the first come before those of the other.
func (b *branch) join(o *branch) *branch {
	switch {
	case b == nil:
		return o
	case o == nil:
		return b
	case b.rank > o.rank:
		out := *b
		out.right = b.right.join(o)
		return &out
	}
	out := *o
	out.left = b.join(o.left)
	return &out
}

// services appends the services of a tree.
func (b *branch) services(out []*workload.Service) []*workload.Service {
	if b == nil {
		return out
	}
	out = b.left.services(out)
	if !b.shared && b.port == anyPort {
		out = append(out, b.svc)
	}
	return b.right.services(out)
}
