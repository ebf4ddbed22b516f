package registry

import (
	"slices"
	"sync"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Verdict is what there is to say about one generation of an object.
type Verdict struct {
	Generation int64
	Conditions []status.Condition
}

func (v Verdict) equal(o Verdict) bool {
	return v.Generation == o.Generation && slices.Equal(v.Conditions, o.Conditions)
}

// Verdicts follows what there is to say about the objects whose status is
// written back to them. They are derived like everything else: a change costs
// the verdicts that depend on it. It has one reader, in any goroutine.
type Verdicts struct {
	mu      sync.Mutex
	now     map[source.Key]Verdict
	changed map[source.Key]struct{}
	signal  chan struct{}
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
		k := source.Key{Kind: kind, Namespace: c.Key.Namespace, Name: c.Key.Name}
		if c.Has {
			v.now[k] = c.New
			v.changed[k] = struct{}{}
		} else {
			delete(v.now, k)
			delete(v.changed, k)
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

// deriveVerdicts adds the verdicts to the graph. It comes after everything
// that they read.
func (r *Registry) deriveVerdicts() {
	r.Verdicts = &Verdicts{now: map[source.Key]Verdict{}, changed: map[source.Key]struct{}{}, signal: make(chan struct{}, 1)}
	verdicts(r, source.KindService, r.in.services, func(d describer, n Name, s *corev1.Service) []status.Condition {
		// Most services of a cluster do not concern the mesh: theirs is only
		// said when they ask for a waypoint.
		return d.withWaypoint(nil, n.Namespace, s.Labels, trafficService)
	})
	verdicts(r, source.KindServiceEntry, r.in.entries, func(d describer, n Name, e *networkingv1.ServiceEntry) []status.Condition { return d.entry(n, e) })
	verdicts(r, source.KindWorkloadEntry, r.in.workloads, func(d describer, n Name, e *networkingv1.WorkloadEntry) []status.Condition {
		return d.workloadEntry(n, e)
	})
	verdicts(r, source.KindAuthorizationPolicy, r.in.policies, func(d describer, n Name, p *securityv1.AuthorizationPolicy) []status.Condition {
		return d.policy(n, p)
	})
	verdicts(r, source.KindPeerAuthentication, r.in.peers, func(d describer, n Name, p *securityv1.PeerAuthentication) []status.Condition {
		return d.peer(n, p)
	})
}

func verdicts[V any, P interface {
	*V
	metav1.Object
}](r *Registry, kind string, in collection.Input[Name, P], describe func(describer, Name, P) []status.Condition) {
	c := collection.Map(in.Collection, "verdicts on "+kind, Verdict.equal, func(rd *collection.Reader, n Name, obj P) (Verdict, bool) {
		return Verdict{obj.GetGeneration(), describe(describer{r.t, &r.in, rd}, n, obj)}, true
	})
	c.OnChange(func(changes []collection.Change[Name, Verdict]) { r.Verdicts.apply(kind, changes) })
}
