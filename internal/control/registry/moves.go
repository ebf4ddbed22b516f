package registry

import (
	"context"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Acks waits until the clients that may have the members of one of the groups, all
// clients if there are none, have accepted what was published so far.
type Acks interface {
	Accepted(ctx context.Context, groups []xds.Group) error
}

const (
	// moveTimeout bounds how long a stage of a move waits for proxies that do not answer.
	moveTimeout = 5 * time.Second
	// moveGrace is how long connections have that clients decided on before they were
	// sent the new way, until destinations refuse them: these are under way for
	// milliseconds.
	moveGrace = time.Second
)

// moving is a move under way.
type moving struct {
	binding.Move
	gateway xds.Group    // of the new waypoint's proxies; empty for none
	left    []tables.Ref // the waypoints that traffic leaves, sorted
	number  uint64       // of its own
}

// moves are those under way. The registry's mutex guards them.
type moves struct {
	on      bool
	started uint64
	under   map[tables.Moved]moving
	fresh   map[source.Key]struct{} // objects that came in this turn
	wake    chan struct{}
}

// followMoves has changes of targets carried out in stages.
func (r *Registry) followMoves() {
	r.moves = moves{under: map[tables.Moved]moving{}, fresh: map[source.Key]struct{}{}, wake: make(chan struct{}, 1)}
	r.t.Bound.Services.OnChange(func(c []collection.Change[tables.Ref, binding.Target]) { r.retarget(source.Service.Kind, c) })
	r.t.Bound.Entries.OnChange(func(c []collection.Change[tables.Ref, binding.Target]) { r.retarget(source.ServiceEntry.Kind, c) })
	r.t.Bound.Pods.OnChange(func(c []collection.Change[tables.Ref, binding.Target]) { r.retarget(source.Pod.Kind, c) })
	r.t.Bound.Workloads.OnChange(func(c []collection.Change[tables.Ref, binding.Target]) { r.retarget(source.WorkloadEntry.Kind, c) })
}

func (r *Registry) retarget(kind *source.Kind, changes []collection.Change[tables.Ref, binding.Target]) {
	for _, c := range changes {
		k := tables.Moved{Kind: kind, Ref: c.Key}
		under, is := r.moves.under[k]
		key := source.Key{Kind: kind, Cluster: c.Key.Cluster, Namespace: c.Key.Namespace, Name: c.Key.Name}
		_, there := r.origins[key]
		if !r.moves.on || !there {
			r.arrive(k)
			continue
		}
		from, left := binding.Final(c.Old), under.left
		if is {
			from = under.Now()
		}
		if c.Old.Address != nil {
			left = append(slices.Clone(left), c.Key.At(c.Old.Namespace, c.Old.Name))
		}
		to := c.Key.At(c.New.Namespace, c.New.Name)
		left = slices.DeleteFunc(slices.Clone(left), func(g tables.Ref) bool { return g == to && c.New.Bound() })
		slices.SortFunc(left, tables.Ref.Compare)
		left = slices.Compact(left)
		_, fresh := r.moves.fresh[key]
		if fresh && (kind == source.Pod.Kind || kind == source.WorkloadEntry.Kind) {
			r.arrive(k) // it has no clients, and its waypoint looks it up when the first one comes
			continue
		}
		m := moving{Move: binding.NewMove(from, c.New, fresh), left: left}
		if m.Stage == binding.Done {
			r.arrive(k)
			continue
		}
		if c.New.Address != nil {
			m.gateway = access.GatewayGroup(access.Gateway{Cluster: r.clusterID(c.Key.Cluster), Namespace: c.New.Namespace, Name: c.New.Name})
		}
		r.depart(k, m)
	}
}

// depart begins a move, or another stage of it.
func (r *Registry) depart(k tables.Moved, m moving) {
	r.moves.started++
	m.number = r.moves.started
	r.moves.under[k] = m
	r.in.Moving.Set(k, tables.Passage{State: m.Now(), Left: m.left})
	select {
	case r.moves.wake <- struct{}{}:
	default:
	}
}

// arrive ends a move, if there is one: what is in effect is what the target says.
func (r *Registry) arrive(k tables.Moved) {
	delete(r.moves.under, k)
	r.in.Moving.Delete(k)
}

// Move carries out changes of waypoints in stages, until ctx ends: traffic moves to a
// waypoint after that waypoint has accepted the configuration, and destinations close
// after clients go there; away in the reverse order. What is bound before Move is
// called is in effect at once.
func (r *Registry) Move(ctx context.Context, acks Acks) {
	r.mu.Lock()
	r.moves.on = true
	r.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.moves.wake:
		}
		for r.advance(ctx, acks) {
		}
	}
}

// advance has all moves under way wait for their present stage together, and go on.
// It reports whether any are left.
func (r *Registry) advance(ctx context.Context, acks Acks) bool {
	batch, everyone, switched := r.underWay()
	if len(batch) == 0 {
		return false
	}
	wait, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	behind := map[xds.Group]bool{} // gateways that have not accepted
	for _, m := range batch {
		if _, asked := behind[m.gateway]; m.gateway != "" && m.Stage == binding.Announced && !asked {
			behind[m.gateway] = acks.Accepted(wait, []xds.Group{m.gateway}) != nil
		}
	}
	if everyone {
		_ = acks.Accepted(wait, nil) // a proxy that does not answer holds nothing up
	}
	if switched {
		select {
		case <-ctx.Done():
		case <-time.After(moveGrace):
		}
	}
	if ctx.Err() != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, m := range batch {
		if now, is := r.moves.under[k]; !is || now.number != m.number {
			continue // it goes elsewhere meanwhile
		}
		if m.Stage == binding.Announced && behind[m.gateway] {
			m.Move = m.Held()
		} else {
			m.Move = m.Next()
		}
		if m.Stage == binding.Done {
			r.arrive(k)
		} else {
			r.depart(k, m)
		}
	}
	r.settle()
	return len(r.moves.under) > 0
}

// underWay returns the moves that wait, whether one waits for every proxy, and whether
// one has its clients switched.
func (r *Registry) underWay() (batch map[tables.Moved]moving, everyone, switched bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch = make(map[tables.Moved]moving, len(r.moves.under))
	for k, m := range r.moves.under {
		batch[k] = m
		everyone = everyone || m.Everyone()
		switched = switched || m.Stage == binding.Switched
	}
	return batch, everyone, switched
}
