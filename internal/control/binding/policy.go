package binding

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Doors collect which peers one workload admits. The zero value admits everybody.
type Doors struct {
	closed   bool
	admitted []string
	ports    map[uint32][]string // closed ones
}

// Workload takes in what is in effect for the workload itself, on all of its ports.
func (d *Doors) Workload(s State) {
	if s.Closed {
		d.closed, d.admitted = true, s.Admitted
	}
}

// Port takes in what is in effect for a service, on a port of the workload that the
// service leads to. A port of several services is closed when it is for one of them,
// and admits what any of these admits: a connection does not say which service it was for.
func (d *Doors) Port(port uint32, s State) {
	if !s.Closed {
		return
	}
	if d.ports == nil {
		d.ports = map[uint32][]string{}
	}
	d.ports[port] = union(d.ports[port], s.Admitted)
}

// union returns the members of two sorted lists, sorted.
func union(a, b []string) []string {
	return slices.Compact(slices.Sorted(func(yield func(string) bool) {
		for _, list := range [...][]string{a, b} {
			for _, s := range list {
				if !yield(s) {
					return
				}
			}
		}
	}))
}

// Policy returns the policy that holds for the workload, nil for none. It denies, so
// that no other policy permits what it does not. Its name is derived from its content:
// workloads with equal doors share one, and none ever changes.
func (d *Doors) Policy(namespace string) *securitypb.Authorization {
	if !d.closed && len(d.ports) == 0 {
		return nil
	}
	p := &securitypb.Authorization{Namespace: namespace, Action: securitypb.Action_DENY, Scope: securitypb.Scope_WORKLOAD_SELECTOR}
	ports := slices.Sorted(maps.Keys(d.ports))
	alike := map[string][]uint32{} // ports by what they admit
	var order []string
	for _, port := range ports {
		admitted := d.ports[port]
		if d.closed {
			admitted = union(admitted, d.admitted)
		}
		k := strings.Join(admitted, "\x00")
		if alike[k] == nil {
			order = append(order, k)
			d.ports[port] = admitted
		}
		alike[k] = append(alike[k], port)
	}
	for _, k := range order {
		admitted := d.ports[alike[k][0]]
		p.Groups = append(p.Groups, denies(&securitypb.Match{DestinationPorts: alike[k], NotPrincipals: exactly(admitted)}))
	}
	if d.closed {
		if len(ports) == 0 {
			ports = []uint32{0} // no connection has it: a match without a condition is skipped
		}
		p.Groups = append(p.Groups, denies(&securitypb.Match{NotDestinationPorts: ports, NotPrincipals: exactly(d.admitted)}))
	}
	// Made here, it marshals.
	body, _ := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	sum := sha256.Sum256(body)
	p.Name = wellknown.DerivedWaypointPolicy + hex.EncodeToString(sum[:8])
	return p
}

func denies(m *securitypb.Match) *securitypb.Group {
	return &securitypb.Group{Rules: []*securitypb.Rules{{Matches: []*securitypb.Match{m}}}}
}

// exactly matches principals. A connection without an identity has none of them.
func exactly(principals []string) (out []*securitypb.StringMatch) {
	for _, p := range principals {
		out = append(out, &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: p}})
	}
	return out
}

// Describe returns the peers that a policy of Doors admits, port by port, as one line of text.
func Describe(p *securitypb.Authorization) string {
	var parts []string
	for _, g := range p.GetGroups() {
		m := g.GetRules()[0].GetMatches()[0]
		peers := "no peer"
		if len(m.GetNotPrincipals()) > 0 {
			names := make([]string, 0, len(m.GetNotPrincipals()))
			for _, p := range m.GetNotPrincipals() {
				names = append(names, p.GetExact())
			}
			peers = "only " + strings.Join(names, ", ")
		}
		where := "other ports"
		if n := len(m.GetDestinationPorts()); n > 0 {
			ports := make([]string, 0, n)
			for _, p := range m.GetDestinationPorts() {
				ports = append(ports, strconv.Itoa(int(p)))
			}
			where = "port " + strings.Join(ports, ", ")
		} else if len(p.GetGroups()) == 1 {
			where = "every port"
		}
		parts = append(parts, where+" admits "+peers)
	}
	return strings.Join(parts, "; ")
}
