package wire

import (
	"maps"

	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Store keeps the rules that the control plane has sent, and the configuration
// that follows from them. It belongs to one goroutine; a Config that it returns
// may be used by any.
type Store struct {
	rules map[string]*Rule
	// Names of rules, by the ports that they are for, and by the upstreams that
	// they send to.
	ports     map[route.PortKey]names
	upstreams map[string]names
	// What the next Config has to look at.
	dirty  map[route.PortKey]struct{}
	config *route.Config
}

type names map[string]struct{}

// NewStore returns a Store without rules.
func NewStore() *Store {
	return &Store{
		rules: map[string]*Rule{}, ports: map[route.PortKey]names{}, upstreams: map[string]names{}, dirty: map[route.PortKey]struct{}{},
		config: &route.Config{},
	}
}

// Set takes a resource in. When the resource is rejected, the one of that name
// that was there stays in effect.
func (s *Store) Set(name string, body []byte) error {
	r, err := Decode(body)
	if err != nil {
		return err
	}
	s.put(name, r)
	return nil
}

// Remove removes a resource. It need not be there.
func (s *Store) Remove(name string) { s.put(name, nil) }

// put replaces a rule; nil removes it.
func (s *Store) put(name string, r *Rule) {
	if old := s.rules[name]; old != nil {
		for _, p := range old.Parents {
			s.dirty[p.Port] = struct{}{}
			drop(s.ports, p.Port, name)
		}
		for _, u := range old.upstreams() {
			drop(s.upstreams, u, name)
		}
		delete(s.rules, name)
	}
	if r == nil {
		return
	}
	s.rules[name] = r
	for _, p := range r.Parents {
		s.dirty[p.Port] = struct{}{}
		note(s.ports, p.Port, name)
	}
	for _, u := range r.upstreams() {
		note(s.upstreams, u, name)
	}
}

func note[K comparable](of map[K]names, k K, name string) {
	if of[k] == nil {
		of[k] = names{}
	}
	of[k][name] = struct{}{}
}

func drop[K comparable](of map[K]names, k K, name string) {
	delete(of[k], name)
	if len(of[k]) == 0 {
		delete(of, k)
	}
}

// upstreams returns what the backends and mirrors of a rule name.
func (r *Rule) upstreams() (out []string) {
	for i := range r.Rule.Backends {
		if b := &r.Rule.Backends[i]; b.Name != "" {
			out = append(out, b.Name)
		}
	}
	for i := range r.Rule.Filters.Mirrors {
		out = append(out, r.Rule.Filters.Mirrors[i].Backend.Name)
	}
	return out
}

// Rules returns the rules by the names of their resources. The map is the
// Store's.
func (s *Store) Rules() map[string]*Rule { return s.rules }

// Config returns the configuration of what was taken in. It compiles the tables
// of the ports whose rules have changed, and shares the others with the Config
// before. It never returns nil.
func (s *Store) Config() *route.Config {
	if len(s.dirty) == 0 {
		return s.config
	}
	next := &route.Config{Ports: clone(s.config.Ports), Upstreams: make(map[string]*route.Upstream, len(s.upstreams))}
	for k := range s.dirty {
		if p := s.compile(k); p != nil {
			next.Ports[k] = p
		} else {
			delete(next.Ports, k)
		}
	}
	clear(s.dirty)
	for name := range s.upstreams {
		if next.Upstreams[name] = s.config.Upstreams[name]; next.Upstreams[name] == nil {
			k, _ := ParseUpstream(name) // Decode has parsed it
			next.Upstreams[name] = &route.Upstream{Service: k}
		}
	}
	s.config = next
	return next
}

// clone copies a map, also one that is nil. Its values are pointers: copying
// them costs less than compiling one table.
func clone[K comparable, V any](m map[K]V) map[K]V {
	out := make(map[K]V, len(m)+1)
	maps.Copy(out, m)
	return out
}

// compile makes the tables of a port, nil when no rule names it. A namespace
// whose clients have rules of their own gets those alone.
func (s *Store) compile(k route.PortKey) *route.Port {
	byClients := map[string][]*Rule{}
	for name := range s.ports[k] {
		r := s.rules[name]
		for i, p := range r.Parents {
			if p.Port == k && !twice(r.Parents[:i], p) {
				byClients[p.Clients] = append(byClients[p.Clients], r)
			}
		}
	}
	if len(byClients) == 0 {
		return nil
	}
	out := &route.Port{}
	for clients, rules := range byClients {
		t, c := Compile(rules)
		if clients == "" {
			out.Table, out.Connections = t, c
			continue
		}
		if t != nil {
			out.Clients = with(out.Clients, clients, t)
		}
		if c != nil {
			out.ClientConnections = with(out.ClientConnections, clients, c)
		}
	}
	return out
}

// with adds a value to a map, which may be nil.
func with[V any](m map[string]V, k string, v V) map[string]V {
	if m == nil {
		m = map[string]V{}
	}
	m[k] = v
	return m
}

// twice reports whether a parent is named already.
func twice(before []Parent, p Parent) bool {
	for _, o := range before {
		if o == p {
			return true
		}
	}
	return false
}
