package registry

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// nodePod is a pod of node n1 as the API server shows it.
func nodePod(namespace, name, account string, more func(*corev1.Pod)) source.Event {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "uid-of-pod", Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: "n1", ServiceAccountName: account, Containers: []corev1.Container{{Name: "x", Image: "x"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.9"},
	}
	if more != nil {
		more(p)
	}
	return source.Event{Key: source.Key{Kind: source.Pod.Kind, Namespace: namespace, Name: name}, Object: p}
}

// TestOnlyPodsWithAnAccountGiveIdentities checks that nothing that a node can
// make with its own credentials gives its proxy an identity: such pods are
// mirror pods, which have no account.
func TestOnlyPodsWithAnAccountGiveIdentities(t *testing.T) {
	proxy := nodePod("istio-system", "ztunnel-1", "ztunnel", nil)
	caller := auth.Caller{Cluster: "Kubernetes", Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "uid-of-pod", Node: "n1"}
	mirror := func(p *corev1.Pod) {
		p.Annotations[source.AnnotationMirror], p.Annotations[source.AnnotationConfigHash] = "x", "x"
	}
	phase := func(phase corev1.PodPhase, running bool) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Status.Phase = phase
			if running {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			}
		}
	}
	for _, tc := range []struct {
		name    string
		pod     source.Event
		account string // whose certificate is asked for
		want    bool
	}{
		{"a pod of that account", nodePod("payments", "p", "api", nil), "api", true},
		{"a pod of the account default", nodePod("payments", "p", "default", nil), "default", true},
		{"a mirror pod", nodePod("payments", "p", "", mirror), "default", false},
		{"a mirror pod that names an account", nodePod("payments", "p", "api", mirror), "api", false},
		{"a mirror pod, without an account", nodePod("payments", "p", "", mirror), wellknown.NoServiceAccount, false},
		{"a pod without an account", nodePod("payments", "p", "", nil), "default", false},
		{"a pod that has ended", nodePod("payments", "p", "api", phase(corev1.PodFailed, false)), "api", false},
		{"a pod in its grace period", nodePod("payments", "p", "api", phase(corev1.PodFailed, true)), "api", true},
	} {
		r := New(tables.Options{BoundCallers: true}, newRecorder())
		r.Apply([]source.Event{proxy, tc.pod})
		err := r.Nodes.MayImpersonate(caller, identity.Identity{TrustDomain: "cluster.local", Namespace: "payments", ServiceAccount: tc.account})
		if (err == nil) != tc.want {
			t.Errorf("%s: payments/%s: %v", tc.name, tc.account, err)
		}
	}
}

// TestWorkloadWithoutAnAccount checks what proxies hear of a static pod: it has
// no account, not even the account "default" that an empty name stands for, and
// is reached in plaintext whatever its annotations say.
func TestWorkloadWithoutAnAccount(t *testing.T) {
	const name = "Kubernetes//Pod/payments/p"
	redirected := func(p *corev1.Pod) { p.Annotations[wellknown.AnnotationRedirection] = wellknown.RedirectionEnabled }
	for _, tc := range []struct {
		name, account string
		more          func(*corev1.Pod)
		want          string
		protocol      workloadpb.TunnelProtocol
	}{
		{"with an account", "api", redirected, "api", workloadpb.TunnelProtocol_HBONE},
		{"without", "", redirected, wellknown.NoServiceAccount, workloadpb.TunnelProtocol_NONE},
		{"mirror", "", func(p *corev1.Pod) { redirected(p); p.Annotations[source.AnnotationMirror] = "x" }, wellknown.NoServiceAccount, workloadpb.TunnelProtocol_NONE},
	} {
		rec := newRecorder()
		r := New(tables.Options{}, rec)
		list := []source.Event{nodePod("payments", "p", tc.account, tc.more)}
		r.Apply(list)
		sameFromTrimmed(t, list, r, rec)
		if w := rec.workload(t, name); w.ServiceAccount != tc.want || w.TunnelProtocol != tc.protocol {
			t.Errorf("%s: account %q by %v", tc.name, w.ServiceAccount, w.TunnelProtocol)
		}
	}
}

// TestPodInItsGracePeriodStays checks that proxies still hear of a pod whose
// phase is final while its containers run: its connections go on.
// New connections to its services go elsewhere.
func TestPodInItsGracePeriodStays(t *testing.T) {
	const name = "Kubernetes//Pod/payments/p"
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	apply := func(more func(*corev1.Pod)) {
		list := []source.Event{nodePod("payments", "p", "api", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			if more != nil {
				more(p)
			}
		})}
		r.Apply(list)
		sameFromTrimmed(t, list, r, rec)
	}
	apply(nil)
	if w := rec.workload(t, name); w.Status != workloadpb.WorkloadStatus_HEALTHY {
		t.Fatalf("a pod that runs is %v", w.Status)
	}
	running := []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	apply(func(p *corev1.Pod) { p.Status.Phase, p.Status.ContainerStatuses = corev1.PodFailed, running })
	if w := rec.workload(t, name); w.Status != workloadpb.WorkloadStatus_UNHEALTHY {
		t.Errorf("a pod in its grace period is %v", w.Status)
	}
	apply(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	if _, there := rec.addresses[name]; there {
		t.Error("a pod that has ended is still a workload")
	}
}
