package rbac

import (
	"net/netip"
	"testing"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// TestConditions: a Condition decides as a policy of its Match does, and one that looks
// at nothing is none.
func TestConditions(t *testing.T) {
	c := &Conn{
		Identity: identity.Identity{TrustDomain: "td", Namespace: "ns", ServiceAccount: "sa"},
		Src:      netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:80"),
	}
	v := NewView(c)
	straddling := []*securitypb.Address{{Address: netip.MustParseAddr("::ffff:0:0").AsSlice(), Length: 95}}
	for name, tt := range map[string]struct {
		match            *securitypb.Match
		refuses, allows  bool // whether it holds, for what it is for
		destination, bad bool
	}{
		"namespace":               {match: &securitypb.Match{Namespaces: []*securitypb.StringMatch{is("ns")}}, refuses: true, allows: true},
		"another":                 {match: &securitypb.Match{Namespaces: []*securitypb.StringMatch{is("n")}}},
		"port":                    {match: &securitypb.Match{DestinationPorts: []uint32{80}}, refuses: true, allows: true},
		"a block with IPv4 in it": {match: &securitypb.Match{SourceIps: straddling}, refuses: true},
		"an exception with it":    {match: &securitypb.Match{NotSourceIps: straddling}, refuses: true},
		"a destination":           {match: &securitypb.Match{NotDestinationIps: straddling}, refuses: true, destination: true},
		"nothing":                 {match: &securitypb.Match{}, bad: true},
		"no text":                 {match: &securitypb.Match{Principals: []*securitypb.StringMatch{{}}}, bad: true},
	} {
		for _, refuses := range []bool{true, false} {
			want := tt.allows
			if refuses {
				want = tt.refuses
			}
			got, err := CompileCondition(tt.match, refuses)
			if (err != nil) != tt.bad {
				t.Errorf("%s: %v", name, err)
			} else if err == nil && (got.Holds(&v) != want || got.LooksAtDestination() != tt.destination) {
				t.Errorf("%s, refuses %v: holds %v, destination %v", name, refuses, got.Holds(&v), got.LooksAtDestination())
			}
		}
	}
}
