package lines

import (
	"maps"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
)

// Budgets are how many lines the clients of each identity may have on one loop. They
// belong to that loop.
type Budgets struct {
	of map[identity.Identity]*budget
}

// budget is that of one identity, and how many connections have it now.
type budget struct {
	limit    *accesslog.Limit
	sessions int
}

// NewBudgets returns no budgets.
func NewBudgets() *Budgets { return &Budgets{of: map[identity.Identity]*budget{}} }

// Limiter makes the limit of a pod, or of whatever a name stands for.
type Limiter interface {
	Limit(name string) *accesslog.Limit
}

// maxBudgets is how many budgets a loop keeps of identities without a connection, so that
// a client does not get a new one by coming again.
const maxBudgets = 1024

// Of returns the budget of an identity.
func (b *Budgets) Of(id identity.Identity, l Limiter) *accesslog.Limit { return b.find(id, l).limit }

// Join is Of for a connection, which keeps the budget until Leave.
func (b *Budgets) Join(id identity.Identity, l Limiter) *accesslog.Limit {
	one := b.find(id, l)
	one.sessions++
	return one.limit
}

// Leave reports that a connection has ended.
func (b *Budgets) Leave(id identity.Identity) {
	if one := b.of[id]; one != nil {
		one.sessions--
	}
}

func (b *Budgets) find(id identity.Identity, l Limiter) *budget {
	one := b.of[id]
	if one == nil {
		if len(b.of) >= maxBudgets {
			maps.DeleteFunc(b.of, func(_ identity.Identity, o *budget) bool { return o.sessions == 0 })
		}
		one = &budget{limit: l.Limit(id.Namespace + "/" + id.ServiceAccount)}
		b.of[id] = one
	}
	return one
}
