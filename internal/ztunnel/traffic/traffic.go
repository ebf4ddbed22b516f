// Package traffic is what DestinationRules, TCPRoutes and TLSRoutes do to the connections of a node:
// which rule is for a connection to a service, how many connections there may be, which
// endpoints are left out, and which service gets the connection instead.
package traffic

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	limits "github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	rules "github.com/ambit-mesh/ambit/internal/mesh/traffic"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/ratelimit"
)

const (
	// maxGroups bounds the groups of a node beside those that have connections.
	maxGroups = 4096
	// maxFound bounds the answers that are kept.
	maxFound = 16384
)

// Node has the rules and the routes of a node, and what its connections have shown of
// endpoints. Its methods may be called from any goroutine, and on nil.
type Node struct {
	Limits *ratelimit.Node // of connections into the node

	log *slog.Logger
	now atomic.Pointer[state]

	mu     sync.Mutex // guards what follows
	rules  map[string]*rules.Rule
	routes *wire.Store
	groups map[groupKey]*Group
}

// state is what holds at a moment. It is replaced as a whole.
type state struct {
	set    *rules.Set
	routes *route.Config
	found  sync.Map // what was looked up: *Group by lookup
	kept   atomic.Int64
}

// lookup is a question to the rules.
type lookup struct {
	client  string // namespace
	service workload.NamespacedName
	port    uint16
}

// groupKey is which connections are counted together, and decide together about endpoints:
// those to one port of one service under one rule, of clients of one namespace. A tenant
// spends no connections of another one's limit, and what fails for his clients may work for
// those of others.
type groupKey struct {
	namespace, name string // of the rule
	service         workload.NamespacedName
	port            uint16
	client          string // namespace
}

// New returns a Node without rules.
func New(log *slog.Logger) *Node {
	n := &Node{log: log, Limits: ratelimit.New(log), rules: map[string]*rules.Rule{}, routes: wire.NewStore(), groups: map[groupKey]*Group{}}
	n.now.Store(&state{set: rules.NewSet(nil), routes: n.routes.Config()})
	return n
}

// Apply takes rules in. One that is rejected leaves what was there before.
func (n *Node) Apply(d xds.Delta) (out []xds.Rejection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, res := range d.Updated {
		r, err := rules.Decode(res.Body)
		if err != nil {
			n.log.Error("rule of connections rejected: what was in effect stays", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
			continue
		}
		n.rules[res.Name] = r
	}
	for _, name := range d.Removed {
		delete(n.rules, name)
	}
	all := make([]*rules.Rule, 0, len(n.rules))
	for _, r := range n.rules {
		all = append(all, r)
	}
	n.publish(rules.NewSet(all))
	return out
}

// ApplyRoutes takes routes in.
func (n *Node) ApplyRoutes(d xds.Delta) (out []xds.Rejection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, res := range d.Updated {
		if err := n.routes.Set(res.Name, res.Body); err != nil {
			n.log.Error("route rejected: what was in effect stays", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
		}
	}
	for _, name := range d.Removed {
		n.routes.Remove(name)
	}
	n.publish(n.now.Load().set)
	return out
}

// publish makes the state of now; the caller holds mu.
func (n *Node) publish(set *rules.Set) {
	there := map[[2]string]bool{}
	for _, r := range set.All() {
		there[[2]string{r.Namespace, r.Name}] = true
	}
	for k, g := range n.groups {
		if g.idle() && !there[[2]string{k.namespace, k.name}] {
			delete(n.groups, k)
		}
	}
	n.now.Store(&state{set: set, routes: n.routes.Config()})
}

// For returns the group of connections from clients of a namespace to a port of a service;
// nil when no rule is for them.
func (n *Node) For(client string, svc *workload.Service, port uint16) *Group {
	if n == nil {
		return nil
	}
	s := n.now.Load()
	if s.set.Len() == 0 {
		return nil
	}
	q := lookup{client, svc.Key(), port}
	if g, ok := s.found.Load(q); ok {
		return g.(*Group)
	}
	if _, ok := svc.TargetPort(port); !ok {
		return nil // which port is called is the program's choice: nothing is kept of it
	}
	r := s.set.Find(client, svc.Namespace, svc.Hostname)
	var g *Group
	if r != nil {
		g = n.group(groupKey{r.Namespace, r.Name, svc.Key(), port, client}, r)
	}
	if s.found.Store(q, g); s.kept.Add(1) > maxFound {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.renew()
	}
	return g
}

// group returns the group of a key under the rule as it is now.
func (n *Node) group(k groupKey, r *rules.Rule) *Group {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.groups[k]
	if g == nil {
		if len(n.groups) >= maxGroups {
			n.sweep()
		}
		g = &Group{key: k}
		g.turns = g.next
		n.groups[k] = g
	}
	set := r.For(k.port)
	g.rule.Store(&bound{r, set, nearest(set.Locality)})
	return g
}

// sweep forgets the groups without connections; the caller holds mu. Looked-up groups are
// found anew.
func (n *Node) sweep() {
	for k, g := range n.groups {
		if g.idle() {
			delete(n.groups, k)
		}
	}
	n.renew()
}

// Forget forgets what was seen of an endpoint that is gone, or whose UID another instance
// has: what comes after it has not failed.
func (n *Node) Forget(uid string) {
	if n == nil {
		return
	}
	n.Limits.Forget(uid)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.groups {
		g.forget(uid)
	}
}

// renew forgets what was looked up; the caller holds mu.
func (n *Node) renew() {
	s := n.now.Load()
	n.now.Store(&state{set: s.set, routes: s.routes})
}

// First is what the first bytes of a connection have shown.
type First = opening.Opening

// Routes are those that a connection may take.
type Routes = route.Connections

// Shift is where a route sends a connection.
type Shift struct {
	// Origin is the rule of the route, for people; empty when no rule is in effect.
	Origin string
	// To is the backend. Failure is why there is none.
	To      route.PortKey
	Failure *reason.Error
}

// Call is a connection as routes see it.
type Call struct {
	Client  string // namespace
	Service *workload.Service
	Port    uint16
	First   First
}

// Shift returns where a route sends a connection to a service; ok is false when there is
// no route. roll is a random number, the same for each try of one connection.
func (n *Node) Shift(c Call, roll uint64) (s Shift, ok bool) {
	t, failure, ok := n.Route(c)
	if !ok {
		return s, false
	}
	if t == nil {
		s.Failure = reason.Errorf(reason.NoRoute, "port %d of %s: %s", c.Port, c.Service.Key(), failure)
		return s, true
	}
	s.Origin = t.Rule.Origin
	b, none := t.Pick(roll)
	switch {
	case none != route.OK:
		s.Failure = reason.Errorf(reason.NoBackend, "%s: %s", t.Rule.Origin, none)
	case b.Name == "":
		s.Failure = reason.Errorf(reason.NoBackend, "%s: %s", t.Rule.Origin, b.Invalid)
	default:
		if u := n.now.Load().routes.Upstreams[b.Name]; u != nil {
			s.To = u.Service
		} else { // the routes have changed since
			s.To, _ = wire.ParseUpstream(b.Name) // was checked when it came
		}
	}
	return s, true
}

// table returns the routes for a connection, nil without any.
func (n *Node) table(c Call) *Routes {
	if n == nil {
		return nil
	}
	all := n.now.Load().routes
	if len(all.Ports) == 0 {
		return nil
	}
	return all.Port(route.PortKey{Namespace: c.Service.Namespace, Hostname: c.Service.Hostname, Port: c.Port}).ConnectionsFor(c.Client)
}

// Reads returns the routes for a connection if its first bytes decide, and have not been
// read; nil otherwise.
func (n *Node) Reads(c Call) *Routes {
	if t := n.table(c); t.Named() && !c.First.Seen {
		return t
	}
	return nil
}

// Route returns the rule for a connection, or why there is none; ok is false when there is
// no route.
func (n *Node) Route(c Call) (t *route.Target, failure string, ok bool) {
	table := n.table(c)
	if table == nil {
		return nil, "", false
	}
	if t, failure = c.First.Find(table); t == nil && !table.Named() {
		failure = "no rule of its routes is in effect"
	}
	return t, failure, true
}

// Backends returns the backends of the route for a connection.
func (n *Node) Backends(c Call) (out []route.PortKey) {
	if n.Reads(c) != nil {
		return nil // which route is not decided
	}
	t, _, _ := n.Route(c)
	if t == nil {
		return nil
	}
	for i := range t.Rule.Backends {
		if k, err := wire.ParseUpstream(t.Rule.Backends[i].Name); err == nil && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// Limit counts a connection into a pod that policies allow, or returns which limit refuses
// it. asks is true when it is for Ask to decide.
func (n *Node) Limit(w *workload.Workload, c *rbac.Conn) (over *reason.Error, asks bool) {
	if n == nil {
		return nil, false
	}
	over = n.Limits.Take(w, c.Dst.Port(), limits.Source{Identity: c.Identity, Addr: c.Src.Addr()})
	return over, over == nil && n.Limits.Asks(w, c.Dst.Port())
}

// Ask asks the rate limit services. done is called once, on the loop, with which limit
// refuses the connection, if one does.
func (n *Node) Ask(l *poll.Loop, w *workload.Workload, c *rbac.Conn, done func(*reason.Error)) {
	n.Limits.Ask(l, w, c.Dst.Port(), limits.Source{Identity: c.Identity, Addr: c.Src.Addr()}, done)
}

// Limited returns what the limits say of a connection into a pod, which is not counted.
func (n *Node) Limited(w *workload.Workload, c *rbac.Conn) []ratelimit.Finding {
	if n == nil {
		return nil
	}
	return n.Limits.Explain(w, c.Dst.Port(), limits.Source{Identity: c.Identity, Addr: c.Src.Addr()})
}
