package authz

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Set is all policies of a gateway at one moment. It is immutable; an empty Set allows
// everything.
type Set struct {
	everything *list
	services   map[Service]*list
}

// Store keeps the policies that the control plane has sent. It belongs to one
// goroutine; a Set that it returns may be used by any.
type Store struct {
	policies map[string]*Policy // by the names of their resources
	of       map[Service]map[string]struct{}
	all      map[string]struct{} // names of those for everything
	// What the next Set has to look at.
	dirty    map[Service]struct{}
	dirtyAll bool
	set      *Set
}

// NewStore returns a Store without policies.
func NewStore() *Store {
	return &Store{
		policies: map[string]*Policy{}, of: map[Service]map[string]struct{}{}, all: map[string]struct{}{}, dirty: map[Service]struct{}{}, set: &Set{},
	}
}

// Put takes a resource in. One that is rejected denies everything from then on: what
// it is for is not known.
func (s *Store) Put(name string, body []byte) error {
	p, err := Decode(body)
	if err != nil {
		p = unreadable(name, err)
	}
	s.replace(name, p)
	return err
}

// unreadable stands for a resource that is rejected. The names of resources end in the
// namespace and the name of the policy.
func unreadable(name string, err error) *Policy {
	parts := strings.Split(name, "/")
	p := &Policy{key: strings.Join(parts[max(0, len(parts)-2):], "/"), action: deny, everything: true}
	refusal := reason.Errorf(reason.PolicyUnsupported, "this version cannot read it: %w", err)
	refusal.Detail = p.key
	p.rules = []rule{{refusal: refusal}}
	return p
}

// Remove removes a resource. It need not be there.
func (s *Store) Remove(name string) { s.replace(name, nil) }

func (s *Store) replace(name string, p *Policy) {
	if old := s.policies[name]; old != nil {
		if old.everything {
			delete(s.all, name)
			s.dirtyAll = true
		}
		for _, svc := range old.services {
			s.dirty[svc] = struct{}{}
			if delete(s.of[svc], name); len(s.of[svc]) == 0 {
				delete(s.of, svc)
			}
		}
		delete(s.policies, name)
	}
	if p == nil {
		return
	}
	s.policies[name] = p
	if p.everything {
		s.all[name] = struct{}{}
		s.dirtyAll = true
	}
	for _, svc := range p.services {
		s.dirty[svc] = struct{}{}
		if s.of[svc] == nil {
			s.of[svc] = map[string]struct{}{}
		}
		s.of[svc][name] = struct{}{}
	}
}

// Set returns the policies that were taken in. It shares with the Set before what has
// not changed, and is the same Set without a change. It never returns nil.
func (s *Store) Set() *Set {
	if len(s.dirty) == 0 && !s.dirtyAll {
		return s.set
	}
	next := &Set{everything: s.set.everything, services: maps.Clone(s.set.services)}
	if next.services == nil {
		next.services = map[Service]*list{}
	}
	if s.dirtyAll {
		next.everything = s.list(s.all)
	}
	for svc := range s.dirty {
		if l := s.list(s.of[svc]); l != nil {
			next.services[svc] = l
		} else {
			delete(next.services, svc)
		}
	}
	clear(s.dirty)
	s.dirtyAll = false
	s.set = next
	return next
}

// list sorts policies by what they do; nil without any.
func (s *Store) list(names map[string]struct{}) *list {
	if len(names) == 0 {
		return nil
	}
	sorted := slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		return cmp.Or(strings.Compare(s.policies[a].key, s.policies[b].key), strings.Compare(a, b))
	})
	l := &list{}
	for _, name := range sorted {
		switch p := s.policies[name]; p.action {
		case allow:
			l.allow = append(l.allow, p)
		case deny:
			l.deny = append(l.deny, p)
		case audit:
			l.audit = append(l.audit, p)
		case custom:
			l.custom = append(l.custom, p)
		}
	}
	return l
}

// Has reports whether there is a policy of this name, namespace/name, or any, for "".
func (s *Store) Has(key string) bool {
	for _, p := range s.policies {
		if p.key == key || key == "" {
			return true
		}
	}
	return false
}

// Asks reports whether a policy has the external authorizer of this name asked.
func (s *Store) Asks(name string) bool {
	for _, p := range s.policies {
		if p.provider != nil && p.provider.Name == name {
			return true
		}
	}
	return false
}

// Summaries lists the policies by the names of their resources.
func (s *Store) Summaries() []admin.RequestPolicy {
	out := make([]admin.RequestPolicy, 0, len(s.policies))
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		p := s.policies[name]
		d := admin.RequestPolicy{Resource: name, Policy: p.key, Action: [...]string{"ALLOW", "DENY", "AUDIT", "CUSTOM"}[p.action], DryRun: p.dryRun, For: []string{}, Rules: len(p.rules)}
		if p.everything {
			d.For = append(d.For, "*")
		}
		for _, svc := range p.services {
			d.For = append(d.For, fmt.Sprintf("%s/%s", svc.Namespace, svc.Hostname))
		}
		if x := p.provider; x != nil {
			d.Provider = x.String()
		} else if len(p.rules) > 0 && p.rules[0].refusal.Reason == reason.PolicyUnsupported {
			d.Error = p.rules[0].refusal.Err.Error()
		}
		out = append(out, d)
	}
	return out
}
