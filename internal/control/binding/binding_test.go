package binding

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

var somewhere = &workloadpb.GatewayAddress{HboneMtlsPort: 15008}

func TestFinal(t *testing.T) {
	who := []string{"td/ns/shop/sa/wp"}
	for _, tc := range []struct {
		name   string
		target Target
		way    string // "", there or refused
		closed bool
	}{
		{"no waypoint", Target{}, "", false},
		{"a waypoint", Target{Namespace: "shop", Name: "wp", Address: somewhere, Admitted: who}, "there", true},
		{"a waypoint and its bypass", Target{Namespace: "shop", Name: "wp", Address: somewhere, Admitted: who, Bypass: true}, "there", false},
		{"none that can be used", Target{Namespace: "shop", Name: "wp", Why: "TargetNotFound"}, "refused", true},
		{"none that can be used and its bypass", Target{Namespace: "shop", Name: "wp", Why: "TargetNotFound", Bypass: true}, "", false},
	} {
		s := Final(tc.target)
		way := ""
		if h := s.Waypoint.GetHostname().GetHostname(); strings.HasSuffix(h, wellknown.UnavailableWaypoint) {
			way = "refused"
			if want := "wp.shop.TargetNotFound" + wellknown.UnavailableWaypoint; h != want {
				t.Errorf("%s: %s, not %s", tc.name, h, want)
			}
		} else if proto.Equal(s.Waypoint, somewhere) {
			way = "there"
		}
		if way != tc.way || s.Closed != tc.closed || s.Closed && !slices.Equal(s.Admitted, tc.target.Admitted) {
			t.Errorf("%s: %+v", tc.name, s)
		}
	}
}

// TestPolicyAdmitsWhatTheDoorsDo: the policy of a workload, as node proxies decide by
// it, admits a peer exactly when nothing is closed there or the peer is named. An
// ALLOW policy beside it opens nothing.
func TestPolicyAdmitsWhatTheDoorsDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		accounts := []string{"wp", "other", "web"}
		principal := func(a string) string { return "td/ns/shop/sa/" + a }
		state := func() State {
			s := State{Closed: rapid.Bool().Draw(t, "closed")}
			for _, a := range accounts {
				if rapid.Bool().Draw(t, a) {
					s.Admitted = append(s.Admitted, principal(a))
				}
			}
			slices.Sort(s.Admitted)
			return s
		}
		own := state()
		type service struct {
			port uint32
			s    State
		}
		var services []service
		for range rapid.IntRange(0, 4).Draw(t, "services") {
			services = append(services, service{rapid.Uint32Range(80, 82).Draw(t, "port"), state()})
		}
		d, again := Doors{}, Doors{}
		d.Workload(own)
		for _, s := range services {
			d.Port(s.port, s.s)
		}
		for _, s := range slices.Backward(services) {
			again.Port(s.port, s.s)
		}
		again.Workload(own)
		p := d.Policy("shop")
		if !proto.Equal(p, again.Policy("shop")) {
			t.Fatalf("the order of services counts: %v and %v", p, again.Policy("shop"))
		}
		store := rbac.NewStore()
		target := rbac.Target{Namespace: "shop"}
		if p != nil {
			name := p.Namespace + "/" + p.Name
			if bad := store.Apply([]rbac.Update{{Name: name, Policy: p}}, nil); len(bad) > 0 {
				t.Fatal(bad)
			}
			target.Policies = []string{name}
		}
		for _, account := range append(accounts, "") {
			for port := uint16(79); port <= 83; port++ {
				closed, named := own.Closed, own.Closed && account != "" && slices.Contains(own.Admitted, principal(account))
				for _, s := range services {
					if s.s.Closed && s.port == uint32(port) {
						closed = true
						named = named || account != "" && slices.Contains(s.s.Admitted, principal(account))
					}
				}
				c := rbac.Conn{Src: netip.MustParseAddrPort("10.0.0.1:4000"), Dst: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port)}
				if account != "" {
					c.Identity = identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: account}
				}
				got := store.Set().Evaluate(target, &c)
				if want := !closed || named; got.Allowed != want {
					t.Fatalf("%q on port %d: %+v, want %v by %v", account, port, got, want, p)
				}
				if !got.Allowed && got.Reason != reason.WaypointRequired {
					t.Fatalf("refused with %v", got.Reason)
				}
			}
		}
	})
}

func TestDescribe(t *testing.T) {
	var d Doors
	d.Port(8080, State{Closed: true, Admitted: []string{"td/ns/shop/sa/wp"}})
	d.Port(8081, State{Closed: true, Admitted: []string{"td/ns/shop/sa/wp"}})
	d.Port(9090, State{Closed: true})
	if got := Describe(d.Policy("shop")); got != "port 8080, 8081 admits only td/ns/shop/sa/wp; port 9090 admits no peer" {
		t.Error(got)
	}
	d.Workload(State{Closed: true, Admitted: []string{"td/ns/shop/sa/own"}})
	if got := Describe(d.Policy("shop")); !strings.HasSuffix(got, "; other ports admits only td/ns/shop/sa/own") {
		t.Error(got)
	}
	d = Doors{}
	d.Workload(State{Closed: true})
	if got := Describe(d.Policy("shop")); got != "every port admits no peer" {
		t.Error(got)
	}
	if d := (Doors{}); d.Policy("shop") != nil {
		t.Error("there is a policy that closes nothing")
	}
}

func ExampleDescribe() {
	var d Doors
	d.Port(8080, State{Closed: true, Admitted: []string{"cluster.local/ns/shop/sa/waypoint"}})
	fmt.Println(Describe(d.Policy("shop")))
	// Output: port 8080 admits only cluster.local/ns/shop/sa/waypoint
}
