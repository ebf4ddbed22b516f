package registry

import (
	"slices"
	"sync"

	metav1alpha1 "istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// ConditionTypes are the types of conditions that are written, by kind of
// object. Others are somebody else's and stay as they are.
var ConditionTypes = map[string][]string{
	source.KindService:             {status.WaypointBound},
	source.KindServiceEntry:        {status.Accepted, status.WaypointBound, status.WaypointMissing, status.VisibilityApplied, status.ClaimsAccepted},
	source.KindWorkloadEntry:       {status.Accepted, status.WaypointBound},
	source.KindAuthorizationPolicy: {status.Accepted, status.ZtunnelAccepted, status.WaypointAccepted},
	source.KindPeerAuthentication:  {status.Accepted},
}

// Verdict is what there is to say about one generation of an object.
type Verdict struct {
	// UID is that of the object: another of the same name knows nothing of
	// what was written to the one before, and may have its generation.
	UID        types.UID
	Generation int64
	// Conditions are in order; of several of one type the last counts.
	Conditions []status.Condition
	// Written tells that the object says so itself, as it was seen last.
	Written bool

	named bool // the object is labelled for this revision
}

// says tells whether another verdict says the same of the same object.
func (v Verdict) says(o Verdict) bool {
	return v.UID == o.UID && v.Generation == o.Generation && slices.Equal(v.Conditions, o.Conditions)
}

func (v Verdict) equal(o Verdict) bool {
	return v.Written == o.Written && v.named == o.named && v.says(o)
}

// observed is a condition as an object has it.
type observed struct {
	status.Condition
	generation int64
}

// written tells whether an object has the conditions of a verdict, and none
// beside them that would have to go.
func (v Verdict) written(kind string, have []observed) bool {
	types := ConditionTypes[kind]
	missing := 0
	for _, typ := range types {
		if _, wanted := v.condition(typ); wanted {
			missing++
		}
	}
	for _, h := range have {
		if !slices.Contains(types, h.Type) {
			continue
		}
		if c, wanted := v.condition(h.Type); !wanted || c != h.Condition || v.Generation != 0 && v.Generation != h.generation {
			return false
		}
		missing--
	}
	return missing == 0
}

func (v Verdict) condition(typ string) (status.Condition, bool) {
	for _, c := range slices.Backward(v.Conditions) {
		if c.Type == typ {
			return c, true
		}
	}
	return status.Condition{}, false
}

func ofService(s *corev1.Service) (have []observed) {
	for _, c := range s.Status.Conditions {
		have = append(have, observed{status.Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message}, c.ObservedGeneration})
	}
	return have
}

func ofIstio(list []*metav1alpha1.IstioCondition) (have []observed) {
	for _, c := range list {
		have = append(have, observed{status.Condition{Type: c.GetType(), Status: c.GetStatus(), Reason: c.GetReason(), Message: c.GetMessage()}, c.GetObservedGeneration()})
	}
	return have
}

// Verdicts follows what there is to say about the objects whose status is
// written back to them. They are derived like everything else: a change costs
// the verdicts that depend on it. It has one reader, in any goroutine.
type Verdicts struct {
	named bool // of objects that are labelled for this revision, or of the others

	mu      sync.Mutex
	now     map[source.Key]Verdict
	changed map[source.Key]struct{}
	signal  chan struct{}
}

// Unwritten returns the objects that do not say their verdict themselves.
func (v *Verdicts) Unwritten() []source.Key {
	v.mu.Lock()
	defer v.mu.Unlock()
	var keys []source.Key
	for k, verdict := range v.now {
		if !verdict.Written {
			keys = append(keys, k)
		}
	}
	return keys
}

// Changed has a value when there is something to Take.
func (v *Verdicts) Changed() <-chan struct{} { return v.signal }

// Take returns the objects whose verdict changed since the last Take. Those
// that are gone are not among them.
func (v *Verdicts) Take() []source.Key {
	v.mu.Lock()
	defer v.mu.Unlock()
	keys := make([]source.Key, 0, len(v.changed))
	for k := range v.changed {
		keys = append(keys, k)
	}
	v.changed = map[source.Key]struct{}{}
	return keys
}

// Of returns the verdict about an object.
func (v *Verdicts) Of(k source.Key) (Verdict, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	verdict, ok := v.now[k]
	return verdict, ok
}

func (v *Verdicts) apply(kind string, changes []collection.Change[Name, Verdict]) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range changes {
		had, has := c.Had && c.Old.named == v.named, c.Has && c.New.named == v.named
		if !had && !has {
			continue
		}
		k := source.Key{Kind: kind, Namespace: c.Key.Namespace, Name: c.Key.Name}
		if !has {
			delete(v.now, k)
			delete(v.changed, k)
			continue
		}
		v.now[k] = c.New
		// What somebody else makes of the status is not undone at once, but when
		// the writer asks for the unwritten: two who did that would never end.
		if !had && !c.New.Written || had && !c.New.says(c.Old) {
			v.changed[k] = struct{}{}
		}
	}
	if len(v.changed) == 0 {
		return
	}
	select {
	case v.signal <- struct{}{}:
	default:
	}
}

func newVerdicts(named bool) *Verdicts {
	return &Verdicts{named: named, now: map[source.Key]Verdict{}, changed: map[source.Key]struct{}{}, signal: make(chan struct{}, 1)}
}

// deriveVerdicts adds the verdicts to the graph. It comes after everything
// that they read.
func (r *Registry) deriveVerdicts() {
	r.Verdicts, r.NamedVerdicts = newVerdicts(false), newVerdicts(true)
	verdicts(r, source.KindService, r.in.services, ofService, func(d describer, n Name, s *corev1.Service) []status.Condition {
		// Most services of a cluster do not concern the mesh: theirs is only
		// said when they ask for a waypoint.
		return d.serviceWaypoint(nil, n, s)
	})
	verdicts(r, source.KindServiceEntry, r.in.entries,
		func(e *networkingv1.ServiceEntry) []observed { return ofIstio(e.Status.GetConditions()) }, describer.entry)
	verdicts(r, source.KindWorkloadEntry, r.in.workloads,
		func(e *networkingv1.WorkloadEntry) []observed { return ofIstio(e.Status.GetConditions()) }, describer.workloadEntry)
	verdicts(r, source.KindAuthorizationPolicy, r.in.policies,
		func(p *securityv1.AuthorizationPolicy) []observed { return ofIstio(p.Status.GetConditions()) }, describer.policy)
	verdicts(r, source.KindPeerAuthentication, r.in.peers,
		func(p *securityv1.PeerAuthentication) []observed { return ofIstio(p.Status.GetConditions()) }, describer.peer)
}

func verdicts[V any, P interface {
	*V
	metav1.Object
}](r *Registry, kind string, in collection.Input[Name, P], has func(P) []observed, describe func(describer, Name, P) []status.Condition) {
	c := collection.Map(in.Collection, "verdicts on "+kind, Verdict.equal, func(rd *collection.Reader, n Name, obj P) (Verdict, bool) {
		v := Verdict{UID: obj.GetUID(), Generation: obj.GetGeneration(), Conditions: describe(describer{r.t, &r.in, rd}, n, obj), named: r.named(kind, obj)}
		v.Written = v.written(kind, has(obj))
		return v, true
	})
	c.OnChange(func(changes []collection.Change[Name, Verdict]) {
		r.Verdicts.apply(kind, changes)
		r.NamedVerdicts.apply(kind, changes)
	})
}
