package binding

import (
	"slices"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// Stage is how far a move is.
type Stage uint8

// The stages. Each waits until the proxies that it is about have accepted it.
const (
	// Announced: the new waypoint accepts the traffic, and destinations admit the peers
	// of both states. Clients go where they went.
	Announced Stage = iota + 1
	// Switched: clients go to the new waypoint. The former one still accepts.
	Switched
	// Done: the former waypoint accepts nothing, and destinations admit the peers of
	// the new state alone.
	Done
)

// Move brings one object from one state to another without a moment at which what
// clients do is refused by a waypoint or a destination.
type Move struct {
	From, To State
	Stage    Stage

	namespace, name string // of the new waypoint
}

// NewMove returns the move to what a target comes to. fresh objects have no clients
// yet: theirs are refused until the waypoint has accepted its configuration. What has
// to be refused from now on is not put off.
func NewMove(from State, to Target, fresh bool) Move {
	m := Move{From: from, To: Final(to), Stage: Announced, namespace: to.Namespace, name: to.Name}
	if fresh {
		m = m.Held()
	}
	if to.Bound() && to.Address == nil || m.From.Equal(m.To) || proto.Equal(m.From.Waypoint, m.To.Waypoint) && m.opens() && !m.parts() {
		m.Stage = Done
	}
	return m
}

// Pending is why a waypoint cannot be used that has not accepted the configuration of
// a new object yet.
const Pending = "Pending"

// opens reports whether destinations admit at least the peers that they admitted.
func (m Move) opens() bool {
	if !m.To.Closed {
		return true
	}
	if !m.From.Closed {
		return false
	}
	return len(union(m.From.Admitted, m.To.Admitted)) == len(m.To.Admitted)
}

// parts reports whether some clients that went through the waypoint go beside it.
func (m Move) parts() bool {
	return m.From.Endpoints && (!m.To.Endpoints || len(union(m.From.Beside, m.To.Beside)) > len(m.From.Beside))
}

// Now returns what is in effect.
func (m Move) Now() State {
	if m.Stage == Done {
		return m.To
	}
	s := State{Closed: m.From.Closed && m.To.Closed}
	if s.Closed {
		s.Admitted = union(m.From.Admitted, m.To.Admitted)
	}
	clients := m.From
	if m.Stage == Switched {
		clients = m.To
	}
	s.Waypoint, s.Endpoints, s.Beside = clients.Waypoint, clients.Endpoints, clients.Beside
	s.Taken = m.From.Taken || m.To.Taken
	// What accepted before goes on: this move may have begun in the midst of another.
	for _, other := range append([]*workloadpb.GatewayAddress{m.From.Waypoint, m.To.Waypoint}, m.From.Accepts...) {
		same := func(g *workloadpb.GatewayAddress) bool { return proto.Equal(g, other) }
		if other != nil && !same(s.Waypoint) && !slices.ContainsFunc(s.Accepts, same) {
			s.Accepts = append(s.Accepts, other)
		}
	}
	return s
}

// Next returns the move one stage on.
func (m Move) Next() Move {
	m.Stage++
	return m
}

// Held returns a move whose waypoint does not accept its configuration in time. What
// has no waypoint yet is refused until it does.
func (m Move) Held() Move {
	if !m.From.Closed && m.To.Closed {
		m.From = closed(refusal(m.namespace, m.name, Pending), m.To.Admitted)
	}
	return m
}

// Everyone reports whether the present stage waits for every proxy: for clients, or
// for the destinations that admit more than before. Otherwise it waits for the proxies
// of the new waypoint alone.
func (m Move) Everyone() bool {
	return m.Stage == Switched || m.From.Closed && (!m.To.Closed || len(union(m.From.Admitted, m.To.Admitted)) > len(m.From.Admitted))
}
