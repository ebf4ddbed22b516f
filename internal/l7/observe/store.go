package observe

import (
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// Store keeps the layers that the control plane has sent. It belongs to one goroutine; a
// Set that it returns may be used by any.
type Store struct {
	language   *Language
	home       string
	env        func(string) (string, bool)
	layers     map[string]*Layer // by the names of their resources
	collectors map[string]*Collector
}

// NewStore returns a Store without layers in a language, for a gateway in a namespace.
func NewStore(g *Language, home string, env func(string) (string, bool)) *Store {
	return &Store{language: g, home: home, env: env, layers: map[string]*Layer{}, collectors: map[string]*Collector{}}
}

// Put takes a resource in. One that is rejected leaves what was there before.
func (s *Store) Put(name string, body []byte) error {
	l, err := s.language.Decode(body, s.env, s.intern)
	if err != nil {
		return err
	}
	s.layers[name] = l
	return nil
}

// Remove removes a resource. It need not be there.
func (s *Store) Remove(name string) { delete(s.layers, name) }

// Set returns the layers of this moment.
func (s *Store) Set() *Set {
	used := map[string]*Collector{}
	for _, l := range s.layers {
		if l.tracing != nil && l.tracing.collector != nil {
			used[l.tracing.collector.name()] = l.tracing.collector
		}
		for _, r := range l.logs {
			for _, p := range r.providers {
				if p.collector != nil {
					used[p.collector.name()] = p.collector
				}
			}
		}
	}
	s.collectors = used
	return newSet(s.home, slices.Collect(maps.Values(s.layers)))
}

// intern returns the collector that stands for equal ones, so that they share a queue.
func (s *Store) intern(c *Collector) *Collector {
	n := c.name()
	if known := s.collectors[n]; known != nil {
		return known
	}
	s.collectors[n] = c
	return c
}

// Collectors returns where spans and lines may go, in order.
func (s *Store) Collectors() []*Collector {
	out := slices.Collect(maps.Values(s.collectors))
	slices.SortFunc(out, func(a, b *Collector) int { return strings.Compare(a.name(), b.name()) })
	return out
}

// Summaries lists the layers, as they are merged.
func (s *Store) Summaries() []admin.Telemetry {
	all := slices.SortedFunc(maps.Values(s.layers), before)
	out := make([]admin.Telemetry, 0, len(all))
	for _, l := range all {
		sum := admin.Telemetry{Scope: l.scope.String()}
		if l.name != "" {
			sum.Object = l.namespace + "/" + l.name
		}
		sum.Workloads = l.workloads
		if l.side != telemetrypb.Side_BOTH {
			sum.Side = l.side.String()
		}
		for _, svc := range l.services {
			sum.Services = append(sum.Services, svc.Namespace+"/"+svc.Hostname)
		}
		if l.tracing != nil && l.tracing.collector != nil {
			sum.Provider = l.tracing.collector.Provider
		}
		out = append(out, sum)
	}
	return out
}
