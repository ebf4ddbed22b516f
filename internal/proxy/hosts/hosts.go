// Package hosts finds the ServiceEntry that a connection is to by the name of its
// destination: the entry has a wildcard, or a host whose addresses only a look-up has. The
// decision is pure: names that look-ups of the pod have led from in, a service out.
package hosts

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/admin"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Table has the services that are found by names. Its zero value and nil have none. Its
// methods may be called from any goroutine.
type Table struct {
	now atomic.Pointer[index]
	mu  sync.Mutex // of Apply
}

// index is a table at one moment.
type index struct {
	byName map[string]*workload.Service // by the name of the resource
	byHost map[string][]*workload.Service
}

// Apply takes services in. One that cannot be read leaves the one of before.
func (t *Table) Apply(d xds.Delta) (out []xds.Rejection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := &index{byName: map[string]*workload.Service{}, byHost: map[string][]*workload.Service{}}
	if old := t.now.Load(); old != nil {
		next.byName = maps.Clone(old.byName)
	}
	for _, res := range d.Updated {
		svc, err := read(res.Body)
		if err == nil && svc.Key().String() != res.Name {
			err = errors.New("its name is not that of its resource")
		}
		if err != nil {
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
			continue
		}
		next.byName[res.Name] = svc
	}
	for _, name := range d.Removed {
		delete(next.byName, name)
	}
	for _, svc := range next.byName {
		host := strings.ToLower(svc.Hostname)
		if !svc.ByName && host[0] != '*' && len(svc.VIPs)+len(svc.CIDRs) > 0 {
			continue // it is what has these addresses
		}
		next.byHost[host] = append(next.byHost[host], svc)
	}
	t.now.Store(next)
	return out
}

func read(body []byte) (*workload.Service, error) {
	pb := &workloadpb.Service{}
	if err := proto.Unmarshal(body, pb); err != nil {
		return nil, err
	}
	svc, err := workload.ParseService(pb)
	switch {
	case err != nil:
		return nil, err
	case svc.Mode != workload.Passthrough:
		return nil, fmt.Errorf("service %s has a choice of endpoints", svc.Key())
	}
	return svc, nil
}

func (t *Table) load() *index {
	if t == nil {
		return nil
	}
	return t.now.Load()
}

// Empty reports whether there is no service.
func (t *Table) Empty() bool {
	i := t.load()
	return i == nil || len(i.byName) == 0
}

// Has reports whether a name is a host of a service that a namespace sees.
func (t *Table) Has(name, namespace string) bool {
	i := t.load()
	return i != nil && i.find(name, func(s *workload.Service) bool { return s.VisibleTo(namespace) }, namespace) != nil
}

// maxLabels bounds the labels of a name for which wildcards are looked for.
const maxLabels = 16

// find returns the service that a client of a namespace means by a name, among those that
// fit: the host itself comes before wildcards, and the longest of these first.
func (i *index) find(name string, fits func(*workload.Service) bool, namespace string) *workload.Service {
	if svc := best(i.byHost[name], fits, namespace); svc != nil {
		return svc
	}
	for range maxLabels {
		dot := strings.IndexByte(name, '.')
		if dot < 0 {
			return nil
		}
		if svc := best(i.byHost["*"+name[dot:]], fits, namespace); svc != nil {
			return svc
		}
		name = name[dot+1:]
	}
	return nil
}

func best(all []*workload.Service, fits func(*workload.Service) bool, namespace string) (out *workload.Service) {
	for _, svc := range all {
		if fits(svc) && (out == nil || better(svc, out, namespace)) {
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
	return a.Namespace < b.Namespace
}

// Match is the service that a connection is to by its destination's name. The zero value is
// none.
type Match struct {
	Service *workload.Service
	// Name is what the client has looked up.
	Name string
	// Reads: the name in the first message of TLS decides as well, and was not read.
	Reads bool
}

// First is what the first bytes of a connection have shown.
type First struct {
	Seen   bool // they were read
	TLS    bool
	Name   string // in the first message of TLS
	Broken bool   // it begins like TLS, and cannot be read
}

// Named returns the service of a name with a port that clients of a namespace mean; nil for
// none.
func (t *Table) Named(name, namespace string, port uint16) *workload.Service {
	i := t.load()
	if i == nil {
		return nil
	}
	return i.find(strings.ToLower(name), fits(namespace, port), namespace)
}

// Around returns the service with a range around an address, of those with a port that clients
// of a namespace see; nil for none. It is for directories that are filled on demand, which have
// no ranges.
func (t *Table) Around(a netip.Addr, network, namespace string, port uint16) (found *workload.Service) {
	i := t.load()
	if i == nil {
		return nil
	}
	bits, fit := -1, fits(namespace, port)
	for _, svc := range i.byName {
		for _, r := range svc.CIDRs {
			if r.Network != network || !r.Prefix.Contains(a.Unmap()) || !fit(svc) || r.Prefix.Bits() < bits {
				continue
			}
			if found == nil || r.Prefix.Bits() > bits || better(svc, found, namespace) {
				found, bits = svc, r.Prefix.Bits()
			}
		}
	}
	return found
}

func fits(namespace string, port uint16) func(*workload.Service) bool {
	return func(s *workload.Service) bool {
		_, has := s.TargetPort(port)
		return has && s.VisibleTo(namespace)
	}
}

// Covers reports whether a host of a service, which may have a wildcard, stands for a name.
func Covers(host, name string) bool {
	host, name = strings.ToLower(host), strings.ToLower(name)
	if rest, wild := strings.CutPrefix(host, "*."); wild {
		before, is := strings.CutSuffix(name, "."+rest)
		return is && before != ""
	}
	return host == name
}

// Find returns the service that a connection of a namespace's pod is to. The names are those
// for which its address was an answer; only answers of servers that no pod can choose count.
// A connection of TLS must name one of them.
func (t *Table) Find(names []egress.Name, namespace string, port uint16, first First) (m Match) {
	i := t.load()
	if i == nil || len(i.byName) == 0 {
		return m
	}
	fit := fits(namespace, port)
	for _, n := range names {
		if n.Origin != (egress.Origin{}) || first.Broken || first.TLS && n.Host != strings.ToLower(strings.TrimSuffix(first.Name, ".")) {
			continue
		}
		svc := i.find(n.Host, fit, namespace)
		if svc == nil {
			continue
		}
		if m.Service == nil {
			m.Service, m.Name = svc, n.Host
		}
		m.Reads = m.Reads || !first.Seen && svc.App(port) == workload.AppTLS
	}
	return m
}

// At returns what stands at an address for clients of a namespace. What the directory has at
// the address comes before a name, but for hosts outside that another namespace lists.
func (m *Match) At(s *workload.Snapshot, network string, a netip.Addr, namespace string) workload.Destination {
	found := s.Find(network, a, namespace)
	if m.Service == nil || found.Service != nil {
		return found
	}
	if w := found.Workload; w != nil && (w.IsPod() || w.Protocol == workload.HBONE || w.Namespace == namespace) {
		return found
	}
	return workload.Destination{Service: m.Service}
}

// Dump returns the services that a directory does not have itself.
func (t *Table) Dump(s *workload.Snapshot) (out []admin.Service) {
	i := t.load()
	if i == nil {
		return nil
	}
	for _, svc := range i.byName {
		if s.ServiceByName(svc.Namespace, svc.Hostname) == nil {
			out = append(out, s.DumpService(svc))
		}
	}
	slices.SortFunc(out, func(a, b admin.Service) int {
		return cmp.Or(strings.Compare(a.Hostname, b.Hostname), strings.Compare(a.Namespace, b.Namespace))
	})
	return out
}
