package binding

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func at(name string) *workloadpb.GatewayAddress {
	return &workloadpb.GatewayAddress{
		Destination:   &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "shop", Hostname: name}},
		HboneMtlsPort: 15008,
	}
}

// world is a service and its proxies: what the waypoints, the clients and the
// destinations were sent last. They get a state in any order, and a move goes on when
// all have it.
type world struct {
	waypoints, clients, destinations State
}

// fails returns why a connection of a client fails, if one does that began with what
// clients were sent.
func (w world) fails() string {
	to := w.clients.Waypoint.GetHostname().GetHostname()
	peer := "client"
	if strings.HasSuffix(to, wellknown.UnavailableWaypoint) {
		return "refused"
	}
	if to != "" {
		peer = to
		takes := proto.Equal(w.waypoints.Waypoint, w.clients.Waypoint) ||
			slices.ContainsFunc(w.waypoints.Accepts, func(a *workloadpb.GatewayAddress) bool { return proto.Equal(a, w.clients.Waypoint) })
		if !takes {
			return "the waypoint " + to + " does not take it"
		}
	}
	if w.destinations.Closed && !slices.Contains(w.destinations.Admitted, peer) {
		return fmt.Sprintf("the destination does not admit %s", peer)
	}
	for _, c := range []string{"client", "exempt"} {
		beside := !w.clients.Endpoints || slices.Contains(w.clients.Beside, c)
		if peer = c; to != "" && !beside {
			if peer = to; !w.waypoints.Taken {
				return "the waypoint does not take connections to endpoints"
			}
		}
		if w.destinations.Closed && !slices.Contains(w.destinations.Admitted, peer) {
			return fmt.Sprintf("%s calls the destination at its own address, which does not admit %s", c, peer)
		}
	}
	return ""
}

// TestMovesFailNothing: from every state to every other, no connection of a client
// fails, in whatever order the proxies get what is published, unless the target is
// to refuse. In the end only the new waypoint is admitted.
func TestMovesFailNothing(t *testing.T) {
	target := func(name string) Target {
		return Target{Namespace: "shop", Name: name, Address: at(name), Admitted: []string{name}}
	}
	bypass := target("a")
	bypass.Bypass = true
	exempt := target("a")
	exempt.Admitted = []string{"a", "exempt"}
	targets := map[string]Target{"none": {}, "a": target("a"), "b": target("b"), "a, and bypass": bypass, "a, and exempt": exempt}
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"none", "a", "b", "a, and bypass", "a, and exempt"}
		from := Final(targets[rapid.SampledFrom(names).Draw(t, "from")])
		to := targets[rapid.SampledFrom(names).Draw(t, "to")]
		w := world{from, from, from}
		check := func(when string) {
			if why := w.fails(); why != "" {
				t.Fatalf("%s: %s\n%+v", when, why, w)
			}
		}
		m := NewMove(from, to, false)
		for stage := 0; ; stage++ {
			if stage > 3 {
				t.Fatal("the move does not end")
			}
			now := m.Now()
			receive := []*State{&w.waypoints, &w.clients, &w.destinations}
			for _, p := range rapid.Permutation([]int{0, 1, 2}).Draw(t, "order") {
				*receive[p] = now
				check(fmt.Sprint("stage ", m.Stage, ", proxies ", p))
			}
			if m.Stage == Done {
				break
			}
			m = m.Next()
		}
		if !w.clients.Equal(Final(to)) {
			t.Fatalf("it ends in %+v", w.clients)
		}
	})
}

// What cannot be used is refused at once, and a new object before its waypoint has
// accepted it.
func TestMovesThatRefuse(t *testing.T) {
	a := Target{Namespace: "shop", Name: "a", Address: at("a"), Admitted: []string{"a"}}
	gone := Target{Namespace: "shop", Name: "a", Why: "TargetNotFound"}
	if m := NewMove(Final(a), gone, false); m.Stage != Done || !m.Now().Equal(Final(gone)) {
		t.Errorf("a waypoint that is gone: %+v", m)
	}
	if m := NewMove(State{}, gone, true); m.Stage != Done || !m.Now().Equal(Final(gone)) {
		t.Errorf("a new object without a waypoint: %+v", m)
	}
	for name, m := range map[string]Move{"a new object": NewMove(State{}, a, true), "a waypoint that does not answer": NewMove(State{}, a, false).Held()} {
		s := m.Now()
		if m.Stage != Announced || !s.Closed || !strings.HasSuffix(s.Waypoint.GetHostname().GetHostname(), "a.shop."+Pending+wellknown.UnavailableWaypoint) ||
			len(s.Accepts) != 1 || !proto.Equal(s.Accepts[0], at("a")) {
			t.Errorf("%s: %+v", name, s)
		}
		if m := m.Next().Next(); !m.Now().Equal(Final(a)) {
			t.Errorf("%s ends in %+v", name, m.Now())
		}
	}
	b := Target{Namespace: "shop", Name: "b", Address: at("b"), Admitted: []string{"b"}}
	if m := NewMove(Final(a), b, false).Held(); !proto.Equal(m.Now().Waypoint, at("a")) {
		t.Errorf("the former waypoint is left: %+v", m.Now())
	}
	if m := NewMove(State{}, Target{}, true); m.Stage != Done {
		t.Errorf("no move: %+v", m)
	}
}
