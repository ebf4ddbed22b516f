package access

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Gateway names a Gateway of a cluster.
type Gateway struct{ Cluster, Namespace, Name string }

// Gateways holds the service accounts of gateways. It may be asked from any
// goroutine.
type Gateways struct {
	// Changed, when set, is called for every account that begins or ends to be
	// that of a gateway. It is set before the first change.
	Changed func(Account)

	mu  sync.RWMutex
	own map[Gateway]string // service account, of the Gateway's namespace
	of  map[Account]map[Gateway]struct{}
}

// NewGateways returns Gateways without any.
func NewGateways() *Gateways {
	return &Gateways{own: map[Gateway]string{}, of: map[Account]map[Gateway]struct{}{}}
}

// Set notes the service account of a gateway, in the gateway's namespace. An
// empty account removes the gateway.
func (g *Gateways) Set(name Gateway, account string) {
	old := g.set(name, account)
	if g.Changed == nil || old == account {
		return
	}
	for _, a := range [...]string{old, account} {
		if a != "" {
			g.Changed(Account{name.Cluster, name.Namespace, a})
		}
	}
}

// set returns the account of before, empty where there was none.
func (g *Gateways) set(name Gateway, account string) (old string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, had := g.own[name]
	if had {
		a := Account{name.Cluster, name.Namespace, old}
		if delete(g.of[a], name); len(g.of[a]) == 0 {
			delete(g.of, a)
		}
		delete(g.own, name)
	}
	if account == "" {
		return old
	}
	a := Account{name.Cluster, name.Namespace, account}
	if g.of[a] == nil {
		g.of[a] = map[Gateway]struct{}{}
	}
	g.of[a][name] = struct{}{}
	g.own[name] = account
	return old
}

// Of returns the gateways of a service account, sorted by name.
func (g *Gateways) Of(a Account) []Gateway {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return slices.SortedFunc(maps.Keys(g.of[a]), func(a, b Gateway) int { return strings.Compare(a.Name, b.Name) })
}
