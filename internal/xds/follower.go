package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/ambit-mesh/ambit/internal/xds/brief"
)

const (
	// maxDemands bounds the names a client follows on demand; a node that
	// talks to more is better off with everything.
	maxDemands = 100_000
	// maxDetail bounds the rejected resources that are named to the server:
	// enough to see a pattern, little enough for a log line.
	maxDetail = 20
)

// follower is the client's knowledge: which types it follows, what it holds
// and what it waits for. It does no IO. It outlives connections.
type follower struct {
	node  *core.Node
	order []*followed
	types map[string]*followed

	mu     sync.Mutex // guards the demands of all types, and synced
	synced chan struct{}
	done   bool // synced is closed
	// wake is signalled when a demand, or the request of an optional type, waits to be sent.
	wake chan struct{}
}

// followed is one type.
type followed struct {
	TypeConfig
	// versions of the resources held, by name.
	versions map[string]string
	// fresh: the connection has not brought a response of this type yet.
	fresh bool
	// later: it is optional, and was not asked for on this connection. due: it is to be.
	later, due bool
	// complete: a response that is not partial was applied.
	complete bool
	// demands by name; unsent are those not asked of this connection yet.
	demands map[string]*demand
	unsent  []string
	// brief are the demands that end when they are of too many that no resource has; ended
	// are those that did, and that are to be unsubscribed.
	brief *brief.Names
	ended []string
}

// demand is a name, or alias, asked for. done is closed with the answer.
type demand struct {
	done     chan struct{}
	answered bool
}

func newFollower(node *core.Node, types []TypeConfig) *follower {
	f := &follower{
		node: node, types: make(map[string]*followed), synced: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	for _, t := range types {
		w := &followed{TypeConfig: t, versions: make(map[string]string), demands: make(map[string]*demand), brief: brief.New(brief.Most)}
		w.complete = t.OnDemand || t.Optional
		f.order = append(f.order, w)
		f.types[t.TypeURL] = w
	}
	f.checkSynced()
	return f
}

// hello returns the first requests of a new connection. They tell what is
// held already, so that only differences come.
func (f *follower) hello() []*discovery.DeltaDiscoveryRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, w := range f.order {
		w.fresh, w.unsent, w.ended = true, nil, nil
		if w.later, w.due = w.Optional, false; w.later {
			continue
		}
		req := f.first(w)
		if w.OnDemand {
			req.ResourceNamesSubscribe = slices.Sorted(maps.Keys(w.demands))
			for name := range w.versions {
				w.demands[name].end() // a server does not send again what has not changed
			}
			if len(w.demands) == 0 {
				// The protocol has no empty subscription; this is one.
				req.ResourceNamesSubscribe = []string{Wildcard}
				req.ResourceNamesUnsubscribe = []string{Wildcard}
			}
		}
		out = append(out, req)
	}
	return out
}

// first returns the first request of a type on a connection.
func (f *follower) first(w *followed) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{Node: f.node, TypeUrl: w.TypeURL, InitialResourceVersions: maps.Clone(w.versions)}
}

// optional has the optional types asked for, of a server that has them.
func (f *follower) optional(resp *discovery.DeltaDiscoveryResponse) {
	if resp.GetControlPlane().GetIdentifier() != ControlPlane {
		return
	}
	for _, w := range f.order {
		if w.later {
			w.later, w.due = false, true
			f.signal()
		}
	}
}

// signal has what waits to be sent sent.
func (f *follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// respond takes a response in and returns the answer to it: an ACK, or a NACK
// that names what was rejected while the rest is in use.
func (f *follower) respond(resp *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	w := f.types[resp.GetTypeUrl()]
	if w == nil {
		answer.ErrorDetail = rejection([]Rejection{{resp.GetTypeUrl(), errors.New("type was not asked for")}})
		return answer
	}
	delta, rejected := w.open(resp)
	rejected = append(rejected, w.Apply(delta)...)
	w.record(delta, rejected)
	w.fresh = false
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.answer(resp) {
		f.signal()
	}
	f.optional(resp)
	if resp.GetSystemVersionInfo() != partialVersion {
		w.complete = true
		f.checkSynced()
	}
	if len(rejected) > 0 {
		answer.ErrorDetail = rejection(rejected)
	}
	return answer
}

// open takes a response apart. What cannot be is rejected.
func (w *followed) open(resp *discovery.DeltaDiscoveryResponse) (Delta, []Rejection) {
	d := Delta{Removed: resp.GetRemovedResources(), First: w.fresh}
	var rejected []Rejection
	if n := len(resp.GetResources()); n > 0 {
		d.Updated = make([]Resource, 0, n)
	}
	for _, r := range resp.GetResources() {
		body := r.GetResource()
		switch {
		case r.GetName() == "":
			rejected = append(rejected, Rejection{"", errors.New("resource without a name")})
		case body == nil:
			rejected = append(rejected, Rejection{r.GetName(), errors.New("resource without a body")})
		case body.GetTypeUrl() != w.TypeURL:
			rejected = append(rejected, Rejection{r.GetName(), fmt.Errorf("body is a %s", body.GetTypeUrl())})
		default:
			d.Updated = append(d.Updated, Resource{Name: r.GetName(), Version: r.GetVersion(), Body: body.GetValue(), Aliases: r.GetAliases()})
		}
	}
	return d, rejected
}

// record keeps the versions of what is held now. A rejected resource keeps
// its old version, so that the server sends it again on the next connection.
func (w *followed) record(d Delta, rejected []Rejection) {
	var bad map[string]bool
	if len(rejected) > 0 {
		bad = make(map[string]bool, len(rejected))
		for _, r := range rejected {
			bad[r.Name] = true
		}
	}
	for _, r := range d.Updated {
		if !bad[r.Name] {
			w.versions[r.Name] = r.Version
		}
	}
	for _, name := range d.Removed {
		delete(w.versions, name)
	}
}

// answer ends the wait for whatever a response talks of. It reports whether there is
// something to send.
func (w *followed) answer(resp *discovery.DeltaDiscoveryResponse) bool {
	if len(w.demands) == 0 {
		return false
	}
	for _, r := range resp.GetResources() {
		for _, name := range append([]string{r.GetName()}, r.GetAliases()...) {
			w.demands[name].end()
			w.brief.Present(name, r.GetName())
		}
	}
	for _, name := range resp.GetRemovedResources() {
		w.demands[name].end()
		w.brief.Removed(name)
	}
	for _, name := range w.brief.Shed() {
		delete(w.demands, name)
		w.ended = append(w.ended, name)
	}
	return len(w.unsent) > 0 || len(w.ended) > 0
}

func (d *demand) end() {
	if d != nil && !d.answered {
		d.answered = true
		close(d.done)
	}
}

func (f *follower) checkSynced() {
	if f.done {
		return
	}
	for _, w := range f.order {
		if !w.complete {
			return
		}
	}
	f.done = true
	close(f.synced)
}

// demand asks for a name; the channel is closed when it has been answered. A demand that is
// not made briefly stays.
func (f *follower) demand(typeURL, name string, briefly bool) (<-chan struct{}, error) {
	w := f.types[typeURL]
	if w == nil || !w.OnDemand {
		return nil, fmt.Errorf("type %s is not followed on demand", typeURL)
	}
	if name == "" || name == Wildcard {
		return nil, fmt.Errorf("%q is not the name of a resource", name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := w.demands[name]
	if d == nil {
		if len(w.demands) >= maxDemands {
			return nil, fmt.Errorf("more than %d names of type %s asked for", maxDemands, typeURL)
		}
		d = &demand{done: make(chan struct{})}
		w.demands[name] = d
		w.unsent = append(w.unsent, name)
		w.ended = slices.DeleteFunc(w.ended, func(n string) bool { return n == name })
		w.brief.Add(name)
		f.signal()
	}
	if !briefly {
		w.brief.Keep(name)
	}
	return d.done, nil
}

// answered reports whether a name is asked for, and the server has answered.
func (f *follower) answered(typeURL, name string) bool {
	w := f.types[typeURL]
	if w == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := w.demands[name]
	return d != nil && d.answered
}

// demands returns requests for the names, and the optional types, that were not asked for
// yet, and for names that are no longer followed.
func (f *follower) demands() []*discovery.DeltaDiscoveryRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*discovery.DeltaDiscoveryRequest
	for _, w := range f.order {
		if w.due {
			w.due = false
			out = append(out, f.first(w))
		}
		if len(w.unsent) > 0 || len(w.ended) > 0 {
			out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: w.TypeURL, ResourceNamesSubscribe: w.unsent, ResourceNamesUnsubscribe: w.ended})
			w.unsent, w.ended = nil, nil
		}
	}
	return out
}

func rejection(list []Rejection) *rpcstatus.Status {
	parts := make([]string, 0, min(len(list), maxDetail)+1)
	for i, r := range list {
		if i == maxDetail {
			parts = append(parts, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		parts = append(parts, r.Name+": "+r.Err.Error())
	}
	return &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: strings.Join(parts, "; ")}
}
