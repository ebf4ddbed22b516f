// Package hosts finds the ServiceEntry that a connection is to by the name of its
// destination: the entry has a wildcard, or a host whose addresses only a look-up has. The
// decision is pure: names that look-ups of the pod have led from in, a service out.
package hosts

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/gaissmai/bart"

	"github.com/ambit-mesh/ambit/api/admin"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/trie"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Table has the services that are found by names. Its zero value and nil have none. Its
// methods may be called from any goroutine.
type Table struct {
	now atomic.Pointer[index]

	mu    sync.Mutex // of Apply; guards what follows
	epoch uint64
}

// index is a table at one moment. A look-up costs what the name, or the address, is long; a
// change costs what changed.
type index struct {
	byName trie.Map[*workload.Service]    // by the name of the resource
	byHost trie.Map[named]                // by host, in lower case
	wild   trie.Map[named]                // by what follows the * of a wildcard
	ranges map[string]*bart.Table[*group] // by network
}

// named is the services of a host. No two hosts of a map have one name.
type named struct {
	host string
	all  *group
}

// Apply takes services in. One that cannot be read leaves the one of before.
func (t *Table) Apply(d xds.Delta) (out []xds.Rejection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch++
	e := edit{epoch: t.epoch}
	if old := t.now.Load(); old != nil {
		e.index = *old
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
		e.drop(res.Name)
		e.put(res.Name, svc)
	}
	for _, name := range d.Removed {
		e.drop(name)
	}
	t.now.Store(&e.index)
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
	return i == nil || i.byName.Len() == 0
}

// Has reports whether a name is a host of a service that a namespace sees.
func (t *Table) Has(name, namespace string) bool {
	i := t.load()
	return i != nil && i.find(name, namespace, anyPort) != nil
}

// maxLabels bounds the labels of a name for which wildcards are looked for.
const maxLabels = 16

// find returns the service that a client of a namespace means by a name, among those with a
// port: the host itself comes before wildcards, and the longest of these first.
func (i *index) find(name, namespace string, port int) *workload.Service {
	if svc := at(i.byHost, name).find(namespace, port); svc != nil {
		return svc
	}
	for range maxLabels {
		dot := strings.IndexByte(name, '.')
		if dot < 0 {
			return nil
		}
		if svc := at(i.wild, name[dot:]).find(namespace, port); svc != nil {
			return svc
		}
		name = name[dot+1:]
	}
	return nil
}

// at returns the services of a host; nil for none.
func at(hosts trie.Map[named], host string) *group {
	for _, l := range hosts.Get(trie.String(host)) {
		if l.Value.host == host {
			return l.Value.all
		}
	}
	return nil
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
	return i.find(strings.ToLower(name), namespace, int(port))
}

// Around returns the service with a range around an address, of those with a port that clients
// of a namespace see; nil for none. It is for directories that are filled on demand, which have
// no ranges.
func (t *Table) Around(a netip.Addr, network, namespace string, port uint16) (found *workload.Service) {
	i := t.load()
	if i == nil {
		return nil
	}
	a = a.Unmap()
	table := i.ranges[network]
	if table == nil || !a.IsValid() || a.Zone() != "" {
		return nil
	}
	for _, all := range table.Supernets(netip.PrefixFrom(a, a.BitLen())) {
		svc := all.find(namespace, int(port))
		if svc != nil && svc.Namespace == namespace {
			return svc
		}
		if found == nil {
			found = svc
		}
	}
	return found
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
	if i == nil || i.byName.Len() == 0 {
		return m
	}
	for _, n := range names {
		if n.Origin != (egress.Origin{}) || first.Broken || first.TLS && n.Host != strings.ToLower(strings.TrimSuffix(first.Name, ".")) {
			continue
		}
		svc := i.find(n.Host, namespace, int(port))
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
	if w := found.Workload; w != nil && (found.InMesh() || w.Namespace == namespace) {
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
	for svc := range i.byName.All() {
		if s.ServiceByName(svc.Namespace, svc.Hostname) == nil {
			out = append(out, s.DumpService(svc))
		}
	}
	slices.SortFunc(out, func(a, b admin.Service) int {
		return cmp.Or(strings.Compare(a.Hostname, b.Hostname), strings.Compare(a.Namespace, b.Namespace))
	})
	return out
}
