package kube

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apisecurity "istio.io/api/security/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/source"
)

// recorder is a sink that keeps the state and counts what it was told.
type recorder struct {
	mu      sync.Mutex
	objects map[source.Key]metav1.Object
	events  int
	batches int
	synced  int
	dup     string
}

func (r *recorder) Apply(events []source.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches++
	seen := map[source.Key]bool{}
	for _, e := range events {
		if seen[e.Key] || e.Origin != Origin {
			r.dup = e.Key.String()
		}
		seen[e.Key] = true
		r.events++
		if e.Object == nil {
			delete(r.objects, e.Key)
			continue
		}
		r.objects[e.Key] = e.Object
	}
}

func (r *recorder) Synced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced++
}

func (r *recorder) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for k := range r.objects {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return out
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events
}

func (r *recorder) get(kind *source.Kind, namespace, name string) metav1.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.objects[source.Key{Kind: kind, Namespace: namespace, Name: name}]
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

var allKinds = source.Kinds()

// start runs a source until the test ends, and waits for the first delivery.
func start(t testing.TB, s *kubetest.Server, o Options) (*Source, *recorder) {
	t.Helper()
	o.Client = s.Client()
	if o.Kinds == nil {
		o.Kinds = allKinds
	}
	src, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range src.feeds {
		f.look = 20 * time.Millisecond
	}
	r := &recorder{objects: map[source.Key]metav1.Object{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, r) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
		if r.dup != "" {
			t.Errorf("a batch names %s twice, or with the wrong origin", r.dup)
		}
		if r.synced != 1 {
			t.Errorf("synced %d times", r.synced)
		}
	})
	eventually(t, "synced", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.synced == 1 })
	return src, r
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
}

func custom(apiVersion, kind, namespace, name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name}, "spec": spec,
	}}
}

func authz(name string, spec map[string]any) *unstructured.Unstructured {
	return custom("security.istio.io/v1", "AuthorizationPolicy", "a", name, spec)
}

func everything() []runtime.Object {
	return []runtime.Object{
		namespace("a", map[string]string{"istio.io/dataplane-mode": "ambient"}),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": "z"}}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa"}},
		pod("a", "p"),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "10.1.0.1", Selector: map[string]string{"app": "p"}}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "kube-root-ca.crt"}}, // every namespace has one: not read
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "cm"}, Data: map[string]string{"deployment": "{}", "x": "not kept"}},
		custom("discovery.k8s.io/v1", "EndpointSlice", "a", "e", nil),
		custom("networking.istio.io/v1", "WorkloadEntry", "a", "we", map[string]any{"address": "1.2.3.4"}),
		custom("networking.istio.io/v1", "DestinationRule", "a", "dr", map[string]any{"host": "x"}),
		custom("ambit.mesh/v1alpha1", "RateLimit", "a", "rl", map[string]any{"connections": []any{map[string]any{"rate": 1}}}),
		custom("networking.istio.io/v1", "ServiceEntry", "a", "se", map[string]any{"hosts": []any{"x.example"}, "resolution": "DNS"}),
		authz("ap", map[string]any{"action": "DENY"}),
		custom("security.istio.io/v1", "PeerAuthentication", "a", "pa", map[string]any{"mtls": map[string]any{"mode": "STRICT"}}),
		custom("security.istio.io/v1", "RequestAuthentication", "a", "ra", map[string]any{"jwtRules": []any{map[string]any{"issuer": "https://a.example"}}}),
		custom("telemetry.istio.io/v1", "Telemetry", "a", "te", map[string]any{"tracing": []any{map[string]any{"randomSamplingPercentage": 1}}}),
		custom("ambit.mesh/v1alpha1", "EgressPolicy", "a", "ep", map[string]any{"to": []any{map[string]any{"hosts": []any{"x.example"}}}}),
		custom("gateway.networking.k8s.io/v1", "Gateway", "a", "gw", map[string]any{"gatewayClassName": "istio-waypoint", "unknown": "field"}),
		custom("gateway.networking.k8s.io/v1", "GatewayClass", "", "gc", map[string]any{"controllerName": "a.example/b"}),
		custom("gateway.networking.k8s.io/v1", "HTTPRoute", "a", "hr", map[string]any{"hostnames": []any{"a.example"}}),
		custom("gateway.networking.k8s.io/v1", "GRPCRoute", "a", "gr", map[string]any{"hostnames": []any{"a.example"}}),
		custom("gateway.networking.k8s.io/v1", "TLSRoute", "a", "tls", map[string]any{"hostnames": []any{"a.example"}}),
		custom("gateway.networking.k8s.io/v1", "TCPRoute", "a", "tcp", map[string]any{"rules": []any{}}),
		custom("gateway.networking.k8s.io/v1", "ReferenceGrant", "a", "rg", map[string]any{"from": []any{}}),
	}
}

func TestEveryKindIsDeliveredOnceAndThenItsChanges(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%v", stream), func(t *testing.T) {
			s := kubetest.Start(t, everything()...)
			if !stream {
				s.NoWatchList()
			}
			_, r := start(t, s, Options{})
			if got := r.count(); got != len(allKinds) || r.batches != 1 {
				t.Fatalf("%d events in %d batches, want %d in one: %v", got, r.batches, len(allKinds), r.keys())
			}
			for _, kind := range allKinds {
				if !slices.ContainsFunc(r.keys(), func(k string) bool { return strings.HasPrefix(k, kind.String()+"/") }) {
					t.Errorf("no %s", kind)
				}
			}
			if p := r.get(source.AuthorizationPolicy.Kind, "a", "ap").(*securityv1.AuthorizationPolicy); p.Spec.Action != apisecurity.AuthorizationPolicy_DENY || p.Namespace != "a" || p.UID == "" {
				t.Errorf("policy: %v", p)
			}
			if g := r.get(source.Gateway.Kind, "a", "gw").(*gatewayv1.Gateway); g.Spec.GatewayClassName != "istio-waypoint" || g.CreationTimestamp.IsZero() {
				t.Errorf("gateway: %v", g)
			}
			if n := r.get(source.Node.Kind, "", "n1"); n.GetLabels()["topology.kubernetes.io/zone"] != "z" {
				t.Errorf("node: %v", n)
			}

			s.Update(authz("ap", map[string]any{"action": "ALLOW"}))
			s.Delete(pod("a", "p"))
			s.Add(pod("a", "q"))
			eventually(t, "the changes", func() bool { return r.count() == len(allKinds)+3 })
			if r.get(source.Pod.Kind, "a", "p") != nil || r.get(source.Pod.Kind, "a", "q") == nil {
				t.Errorf("pods: %v", r.keys())
			}
			if p := r.get(source.AuthorizationPolicy.Kind, "a", "ap").(*securityv1.AuthorizationPolicy); p.Spec.Action != apisecurity.AuthorizationPolicy_ALLOW {
				t.Errorf("policy: %v", p)
			}
		})
	}
}

func TestChangesThatNobodyReadsAreNotDelivered(t *testing.T) {
	s := kubetest.Start(t, everything()...)
	_, r := start(t, s, Options{})
	before := r.count()
	p := pod("a", "p")
	p.Spec.Containers[0].Image = "another"
	p.Annotations = map[string]string{"example.org/x": "y"}
	s.Update(p)
	p.Status.PodIP = "10.0.0.2"
	s.Update(p)
	eventually(t, "the address", func() bool { return r.get(source.Pod.Kind, "a", "p").(*corev1.Pod).Status.PodIP == "10.0.0.2" })
	if got := r.count() - before; got != 1 {
		t.Errorf("%d events, want 1", got)
	}
}

func TestPodsOfOneNode(t *testing.T) {
	other := pod("a", "other")
	other.Spec.NodeName = "n2"
	s := kubetest.Start(t, namespace("a", nil), pod("a", "p"), other)
	_, r := start(t, s, Options{Node: "n1", Kinds: []*source.Kind{source.Pod.Kind, source.Namespace.Kind}})
	if got := r.keys(); !slices.Equal(got, []string{"Namespace/a", "Pod/a/p"}) {
		t.Errorf("%v", got)
	}
}

func TestPagesHoldEverything(t *testing.T) {
	s := kubetest.Start(t)
	s.NoWatchList()
	const many = 2*pageSize + 7
	for i := range many {
		s.Add(pod("a", fmt.Sprintf("p%04d", i)))
	}
	_, r := start(t, s, Options{Kinds: []*source.Kind{source.Pod.Kind}})
	if got := r.count(); got != many {
		t.Errorf("%d pods, want %d", got, many)
	}
	if got := s.Requests()["list pods"]; got != 3 {
		t.Errorf("%d pages, want 3", got)
	}
}

func TestOutageDeliversOnlyTheDifference(t *testing.T) {
	for name, away := range map[string]func(*kubetest.Server){
		"restart":          func(s *kubetest.Server) {},
		"long, compacted":  func(s *kubetest.Server) { s.Compact() },
		"without a stream": func(s *kubetest.Server) { s.Compact(); s.NoWatchList() },
	} {
		t.Run(name, func(t *testing.T) {
			s := kubetest.Start(t, everything()...)
			for i := range 50 {
				s.Add(pod("a", fmt.Sprintf("p%d", i)))
			}
			var log syncBuffer
			_, r := start(t, s, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			before := r.count()
			s.Stop()
			eventually(t, "the outage is noticed", func() bool { return strings.Contains(log.String(), "does not answer") })
			s.Delete(pod("a", "p7"))
			s.Add(pod("a", "new"))
			changed := pod("a", "p8")
			changed.Status.PodIP = "10.0.0.8"
			s.Update(changed)
			away(s)
			time.Sleep(400 * time.Millisecond) // several attempts
			if r.count() != before {
				t.Fatal("an outage changed what was seen")
			}
			s.Restart()
			eventually(t, "the difference", func() bool { return r.count() == before+3 })
			eventually(t, "back", func() bool { return strings.Contains(log.String(), "answers again") })
			s.Add(pod("a", "last"))
			eventually(t, "a change", func() bool { return r.get(source.Pod.Kind, "a", "last") != nil })
			if got := r.count() - before; got != 4 || r.get(source.Pod.Kind, "a", "p7") != nil || r.get(source.Pod.Kind, "a", "new") == nil {
				t.Errorf("%d events, want 4", got)
			}
			if lines := strings.Count(log.String(), "\n"); lines != 2 {
				t.Errorf("%d lines of log for one outage:\n%s", lines, log.String())
			}
		})
	}
}

// syncBuffer is a buffer for many goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestForbiddenKindHoldsTheFirstDelivery(t *testing.T) {
	s := kubetest.Start(t, pod("a", "p"))
	var mu sync.Mutex
	code := 403
	s.OnRequest(func(_, resource string) int {
		mu.Lock()
		defer mu.Unlock()
		if resource == "pods" {
			return code
		}
		return 0
	})
	var log syncBuffer
	time.AfterFunc(time.Second, func() {
		if !strings.Contains(log.String(), "refuses") {
			t.Errorf("not told: %s", log.String())
		}
		mu.Lock()
		defer mu.Unlock()
		code = 0
	})
	begin := time.Now()
	_, r := start(t, s, Options{Kinds: []*source.Kind{source.Pod.Kind}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if time.Since(begin) < time.Second || r.get(source.Pod.Kind, "a", "p") == nil {
		t.Errorf("synced after %v with %v", time.Since(begin), r.keys())
	}
	if got := strings.Count(log.String(), "refuses"); got != 1 {
		t.Errorf("told %d times: %s", got, log.String())
	}
}

func TestKindsThatAreNotInstalled(t *testing.T) {
	s := kubetest.Start(t, namespace("a", nil))
	for group, plurals := range map[string][]string{
		"security.istio.io":         {"authorizationpolicies", "peerauthentications", "requestauthentications"},
		"gateway.networking.k8s.io": {"gateways", "gatewayclasses", "httproutes", "grpcroutes"},
	} {
		for _, p := range plurals {
			s.Undefine(group, p)
		}
	}
	_, r := start(t, s, Options{})
	s.Define("gateway.networking.k8s.io", "Gateway", "gateways", true, "v1beta1") // an old version only
	s.Define("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", true, "v1", "v1beta1")
	s.Add(custom("gateway.networking.k8s.io/v1beta1", "Gateway", "a", "gw", map[string]any{"gatewayClassName": "x"}))
	s.Add(authz("ap", map[string]any{}))
	eventually(t, "the new kinds", func() bool {
		return r.get(source.Gateway.Kind, "a", "gw") != nil && r.get(source.AuthorizationPolicy.Kind, "a", "ap") != nil
	})
	s.Undefine("gateway.networking.k8s.io", "gateways")
	eventually(t, "the kind goes", func() bool { return r.get(source.Gateway.Kind, "a", "gw") == nil })
	if r.get(source.AuthorizationPolicy.Kind, "a", "ap") == nil {
		t.Error("another kind went along")
	}
}

// An API server that starts does not know kinds that it is about to know: what
// was seen of them stays, and what nobody has seen yet is waited for.
func TestKindsThatAStartingServerDoesNotKnow(t *testing.T) {
	s := kubetest.Start(t, namespace("a", nil), authz("before", map[string]any{}))
	var starting atomic.Bool
	var asked atomic.Int32
	s.Handle("/readyz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if starting.Load() {
			asked.Add(1)
			http.Error(w, "[-]poststarthook/start-apiextensions-controllers failed", http.StatusInternalServerError)
		}
	}))
	_, r := start(t, s, Options{})
	starting.Store(true)
	s.Handle("/apis/security.istio.io/v1", http.NotFoundHandler()) // v1beta1 as well
	s.BreakWatches()
	eventually(t, "it is asked for again", func() bool { return asked.Load() > 2 })
	time.Sleep(200 * time.Millisecond) // several looks
	if r.get(source.AuthorizationPolicy.Kind, "a", "before") == nil {
		t.Fatal("a server that starts made the mesh forget a policy")
	}
	s.Handle("/apis/security.istio.io/v1", nil)
	if starting.Store(false); r.get(source.AuthorizationPolicy.Kind, "a", "before") == nil {
		t.Fatal("the policy is gone")
	}
	s.Undefine("security.istio.io", "authorizationpolicies")
	starting.Store(true)
	late := &recorder{objects: map[source.Key]metav1.Object{}}
	src, err := New(Options{Client: s.Client(), Kinds: allKinds})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, late) }()
	defer func() { cancel(); <-done }()
	time.Sleep(200 * time.Millisecond)
	synced := func() bool { late.mu.Lock(); defer late.mu.Unlock(); return late.synced > 0 }
	if synced() {
		t.Fatal("a mesh without policies was taken for the whole")
	}
	s.Define("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", true, "v1", "v1beta1")
	s.Add(authz("after", map[string]any{}))
	starting.Store(false)
	eventually(t, "it is synced, with the policy", func() bool { return synced() && late.get(source.AuthorizationPolicy.Kind, "a", "after") != nil })
	eventually(t, "the other one follows", func() bool { return r.get(source.AuthorizationPolicy.Kind, "a", "after") != nil })
}

// An API server that gets to know a kind between two questions is not taken for
// one that does not have it.
func TestKindsThatAServerLearnsWhileItIsAsked(t *testing.T) {
	s := kubetest.Start(t, namespace("a", nil))
	s.Undefine("security.istio.io", "authorizationpolicies")
	var once sync.Once
	s.Handle("/readyz", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		once.Do(func() {
			s.Define("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", true, "v1", "v1beta1")
			s.Add(authz("there", map[string]any{}))
		})
	}))
	r := &recorder{objects: map[source.Key]metav1.Object{}}
	src, err := New(Options{Client: s.Client(), Kinds: []*source.Kind{source.Namespace.Kind, source.AuthorizationPolicy.Kind}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, r) }()
	defer func() { cancel(); <-done }()
	eventually(t, "synced", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.synced > 0 })
	if r.get(source.AuthorizationPolicy.Kind, "a", "there") == nil {
		t.Error("a mesh without policies was taken for the whole")
	}
}

func TestDiscoverySelectors(t *testing.T) {
	in := map[string]string{"mesh": "yes"}
	selector := func(value string) []metav1.LabelSelector {
		return []metav1.LabelSelector{{MatchLabels: map[string]string{"mesh": value}}}
	}
	s := kubetest.Start(t, namespace("a", in), namespace("b", nil), pod("a", "p"), pod("b", "p"), pod("c", "p"),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	src, r := start(t, s, Options{Kinds: []*source.Kind{source.Pod.Kind, source.Namespace.Kind, source.Node.Kind}, DiscoverySelectors: selector("yes")})
	want := func(keys ...string) {
		t.Helper()
		keys = append(keys, "Namespace/a", "Namespace/b", "Node/n")
		slices.Sort(keys)
		eventually(t, fmt.Sprint(keys), func() bool { return slices.Equal(r.keys(), keys) })
	}
	want("Pod/a/p")
	s.Update(namespace("b", in))
	want("Pod/a/p", "Pod/b/p")
	s.Update(namespace("a", nil))
	want("Pod/b/p")
	s.Add(pod("a", "hidden"))
	s.Delete(pod("a", "p"))
	s.Update(namespace("a", in))
	want("Pod/a/hidden", "Pod/b/p")
	if err := src.SetDiscoverySelectors(selector("no")); err != nil {
		t.Fatal(err)
	}
	want()
	if err := src.SetDiscoverySelectors(nil); err != nil {
		t.Fatal(err)
	}
	want("Pod/a/hidden", "Pod/b/p", "Pod/c/p")
	if err := src.SetDiscoverySelectors([]metav1.LabelSelector{{MatchLabels: map[string]string{"/": ""}}}); err == nil {
		t.Error("a wrong selector was accepted")
	}
}

func TestObjectsThatCannotBeRead(t *testing.T) {
	good := map[string]any{"action": "DENY", "rules": []any{map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": []any{"x"}}}}}}}
	bad := map[string]any{"action": "DENY", "rules": []any{map[string]any{"unless": "new"}}}
	s := kubetest.Start(t, authz("kept", good), authz("closed", bad), authz("strange", map[string]any{"selektor": 1}),
		authz("allow", map[string]any{"rules": []any{map[string]any{"unless": "new"}}}),
		custom("security.istio.io/v1", "PeerAuthentication", "a", "pa", map[string]any{"mtls": map[string]any{"mode": "QUANTUM"}}),
		custom("ambit.mesh/v1alpha1", "RateLimit", "a", "rl", map[string]any{"connections": []any{map[string]any{"rate": 1}}}),
		custom("networking.istio.io/v1", "ServiceEntry", "a", "se", map[string]any{"hosts": "x"}))
	src, r := start(t, s, Options{})
	problems := func() string {
		var keys []string
		for _, p := range src.Problems() {
			keys = append(keys, p.Key.Name)
		}
		return strings.Join(keys, " ")
	}
	if got := problems(); got != "allow closed strange pa se" {
		t.Fatalf("problems: %v", src.Problems())
	}
	policy := func(name string) *securityv1.AuthorizationPolicy {
		p, _ := r.get(source.AuthorizationPolicy.Kind, "a", name).(*securityv1.AuthorizationPolicy)
		return p
	}
	if p := policy("closed"); p == nil || len(p.Spec.Rules) != 1 || p.Spec.Rules[0].From != nil {
		t.Errorf("a policy that denies and cannot be read must deny everything: %v", p)
	}
	if p := policy("allow"); p == nil || len(p.Spec.Rules) != 0 {
		t.Errorf("a policy that allows and cannot be read must allow nothing: %v", p)
	}
	if p := policy("strange"); p != nil {
		t.Errorf("a policy of unknown scope: %v", p)
	}
	if p, _ := r.get(source.PeerAuthentication.Kind, "a", "pa").(*securityv1.PeerAuthentication); p.Spec.Mtls.Mode != apisecurity.PeerAuthentication_MutualTLS_STRICT {
		t.Errorf("peer authentication: %v", p)
	}

	before := r.count()
	s.Update(authz("kept", bad))
	eventually(t, "the problem", func() bool { return problems() == "allow closed kept strange pa se" })
	s.Compact()
	s.BreakWatches() // listed again
	s.Update(authz("closed", good))
	eventually(t, "the mended policy", func() bool { p := policy("closed"); return p != nil && p.Spec.Rules[0].From != nil })
	if got := r.count() - before; got != 1 || policy("kept").Spec.Rules[0].From == nil {
		t.Errorf("%d events; the last good state: %v", got, policy("kept"))
	}
	if got := problems(); got != "allow kept strange pa se" {
		t.Errorf("problems: %v", got)
	}
	s.Delete(authz("kept", nil))
	eventually(t, "the deletion", func() bool { return policy("kept") == nil && problems() == "allow strange pa se" })
}
