package authn

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Set is all policies of a gateway at one moment. It is immutable; an empty Set looks at
// no token.
type Set struct {
	everything *group
	services   map[Service]*group
	providers  map[*Provider]struct{}
}

func (s *Set) has(p *Provider) bool {
	_, is := s.providers[p]
	return is
}

// group is the policies for one service, or for everything.
type group struct {
	providers []*Provider
	outputs   []string // names of headers, in lower case
	refusal   *reason.Error
}

// Store keeps the policies that the control plane has sent. It belongs to one
// goroutine; a Set that it returns may be used by any.
type Store struct {
	policies map[string]*Policy // by the names of their resources
	set      *Set
}

// NewStore returns a Store without policies.
func NewStore() *Store { return &Store{policies: map[string]*Policy{}, set: &Set{}} }

// Put takes a resource in. One that is rejected refuses everything from then on: what
// it is for is not known. A provider without keys keeps those that it had from the same
// place.
func (s *Store) Put(name string, body []byte) error {
	p, err := Decode(body)
	if err != nil {
		p = unreadable(name, err)
	}
	if old := s.policies[name]; old != nil {
		for _, one := range p.providers {
			one.inherit(old.providers)
		}
	}
	s.policies[name], s.set = p, nil
	return err
}

// inherit takes over the keys that were known before. The provider is not in use yet.
func (p *Provider) inherit(from []*Provider) {
	if p.rule.Keys != nil || p.source == "" {
		return
	}
	i := slices.IndexFunc(from, func(o *Provider) bool { return o.source == p.source && o.rule.Issuer == p.rule.Issuer })
	if i >= 0 {
		p.rule.Keys = from[i].rule.Keys
	}
}

// unreadable stands for a resource that is rejected. The names of resources end in the
// namespace and the name of the policy.
func unreadable(name string, err error) *Policy {
	parts := strings.Split(name, "/")
	p := &Policy{key: strings.Join(parts[max(0, len(parts)-2):], "/"), everything: true}
	p.refusal = reason.Errorf(reason.PolicyUnsupported, "this version cannot read it: %w", err)
	p.refusal.Detail = p.key
	return p
}

// Remove removes a resource. It need not be there.
func (s *Store) Remove(name string) {
	if s.policies[name] != nil {
		delete(s.policies, name)
		s.set = nil
	}
}

// Set returns the policies that were taken in, the same Set without a change. It never
// returns nil.
func (s *Store) Set() *Set {
	if s.set != nil {
		return s.set
	}
	next := &Set{services: map[Service]*group{}, providers: map[*Provider]struct{}{}}
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		p := s.policies[name]
		if p.everything {
			if next.everything == nil {
				next.everything = &group{}
			}
			next.everything.add(p)
		}
		for _, svc := range p.services {
			if next.services[svc] == nil {
				next.services[svc] = &group{}
			}
			next.services[svc].add(p)
		}
		for _, one := range p.providers {
			next.providers[one] = struct{}{}
		}
	}
	s.set = next
	return next
}

func (g *group) add(p *Policy) {
	g.providers = append(g.providers, p.providers...)
	if g.refusal == nil {
		g.refusal = p.refusal
	}
	for _, one := range p.providers {
		if name := one.payload.String(); name != "" && !slices.Contains(g.outputs, name) {
			g.outputs = append(g.outputs, name)
		}
		for _, o := range one.outputs {
			if name := o.key.String(); !slices.Contains(g.outputs, name) {
				g.outputs = append(g.outputs, name)
			}
		}
	}
}

// Summaries lists the policies by the names of their resources.
func (s *Store) Summaries() []admin.Authentication {
	out := make([]admin.Authentication, 0, len(s.policies))
	for _, name := range slices.Sorted(maps.Keys(s.policies)) {
		p := s.policies[name]
		d := admin.Authentication{Resource: name, Policy: p.key, For: []string{}, Providers: []admin.TokenProvider{}}
		if p.everything {
			d.For = append(d.For, "*")
		}
		for _, svc := range p.services {
			d.For = append(d.For, fmt.Sprintf("%s/%s", svc.Namespace, svc.Hostname))
		}
		for _, one := range p.providers {
			ps := admin.TokenProvider{Issuer: one.rule.Issuer, Audiences: one.rule.Audiences, Source: one.source}
			if one.rule.Keys != nil {
				ps.Keys = one.rule.Keys.Len()
			}
			d.Providers = append(d.Providers, ps)
		}
		if p.refusal != nil {
			d.Error = p.refusal.Err.Error()
		}
		out = append(out, d)
	}
	return out
}
