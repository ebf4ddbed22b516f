package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/api/ambit"
	egresspb "github.com/ambit-mesh/ambit/api/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
)

type recorder struct {
	events []string
	udp    func(node.Pod) bool
}

func (r *recorder) Set(p node.Pod)               { r.events = append(r.events, "set "+p.UID+" "+p.String()) }
func (r *recorder) Delete(uid string)            { r.events = append(r.events, "delete "+uid) }
func (r *recorder) SetUDP(f func(node.Pod) bool) { r.events, r.udp = append(r.events, "udp"), f }
func (r *recorder) Synced()                      { r.events = append(r.events, "synced") }
func (r *recorder) SetNamespace(name string, labels map[string]string) {
	r.events = append(r.events, fmt.Sprintf("namespace %s %v", name, labels != nil))
}

func podEvent(name, uid, nodeName string) source.Event {
	e := source.Event{Key: source.Key{Kind: source.Pod.Kind, Namespace: "default", Name: name}}
	if uid != "gone" {
		e.Object = &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(uid)},
			Spec:       corev1.PodSpec{NodeName: nodeName},
		}
	}
	return e
}

func TestOnlyPodsOfThisNode(t *testing.T) {
	r := &recorder{}
	p := newPods(r, "node1", "istio-system")
	p.Apply([]source.Event{
		podEvent("a", "1", "node1"), podEvent("b", "2", "node2"), podEvent("c", "", "node1"),
		{Key: source.Key{Kind: source.Namespace.Kind, Name: "default"}, Object: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}},
		{Key: source.Key{Kind: source.Service.Kind, Namespace: "default", Name: "s"}},
	})
	p.Synced()
	p.Apply([]source.Event{podEvent("a", "3", "node1")}) // the name is another pod's now
	p.Apply([]source.Event{podEvent("a", "gone", ""), podEvent("b", "gone", "")})
	p.Apply([]source.Event{{Key: source.Key{Kind: source.Namespace.Kind, Name: "default"}}})
	want := []string{"namespace default true", "set 1 default/a", "synced", "delete 1", "set 3 default/a", "delete 3", "namespace default false"}
	if diff := cmp.Diff(want, r.events); diff != "" {
		t.Error(diff)
	}
}

func TestPodOf(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default", UID: "1", Labels: map[string]string{"x": "y"}},
		Spec: corev1.PodSpec{ServiceAccountName: "web", HostNetwork: true, Containers: []corev1.Container{{
			Ports:          []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("web")}}},
			LivenessProbe:  &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9090)}}},
			StartupProbe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodFailed, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}, {IP: "rubbish"}}},
	}
	want := node.Pod{
		UID: "1", Name: "a", Namespace: "default", ServiceAccount: "web", Labels: map[string]string{"x": "y"},
		HostNetwork: true, Terminal: true, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		ProbePorts: []uint16{8080, 9090},
	}
	if diff := cmp.Diff(want, podOf(pod), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// TestPodWithoutAnAccount checks that a static pod is not handed over as one of
// the account "default".
func TestPodWithoutAnAccount(t *testing.T) {
	for name, pod := range map[string]*corev1.Pod{
		"no account": {},
		"mirror pod": {ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{source.AnnotationMirror: "x"}}, Spec: corev1.PodSpec{ServiceAccountName: "web"}},
	} {
		if got := podOf(pod).ServiceAccount; got != wellknown.NoServiceAccount {
			t.Errorf("%s: account %q", name, got)
		}
	}
}

// TestPodInItsGracePeriodHasNotEnded checks that the phase alone does not take a
// pod out of the mesh.
func TestPodInItsGracePeriodHasNotEnded(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed}}
	if !podOf(pod).Terminal || !podOf(kube.Trim(pod).(*corev1.Pod)).Terminal {
		t.Error("a failed pod without containers that run has not ended")
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	if podOf(pod).Terminal || podOf(kube.Trim(pod).(*corev1.Pod)).Terminal {
		t.Error("a failed pod whose containers run has ended")
	}
}

func TestAnnouncementsGoByPodAndNotByName(t *testing.T) {
	dir := t.TempDir()
	a := newAnnotator(dir)
	files := func() string {
		var all []string
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				text, _ := os.ReadFile(path)
				all = append(all, string(text))
			}
			return err
		})
		return strings.Join(all, "\n")
	}
	first := node.Pod{UID: "1", Name: "a", Namespace: "default"}
	second := node.Pod{UID: "2", Name: "a", Namespace: "default"}
	for _, step := range []struct {
		pod         node.Pod
		value, want string
	}{
		{first, "pending", "pending"}, {first, "enabled", "enabled"}, {second, "enabled", "enabled"},
		{first, "", "enabled"}, // a late good-bye of the pod that had the name before
		{second, "", ""},
	} {
		if err := a.Annotate(t.Context(), step.pod, step.value); err != nil {
			t.Fatal(err)
		}
		text := files()
		if step.want == "" && text != "" || !strings.Contains(text, step.want) {
			t.Errorf("after %q for %s: %q", step.value, step.pod.UID, text)
		}
	}
}

func TestFlags(t *testing.T) {
	good := []string{"--node", "n", "--config-dir", "/a", "--config-dir", "/b", "--status-dir", "/s"}
	o, err := parse(append(good, "--exclude-namespaces", "x, y", "--probe-source", "169.254.7.127,fd00::/64"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/a", "/b"}, o.configDirs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"x", "y"}, o.excludeNamespaces); diff != "" {
		t.Error(diff)
	}
	if len(o.probeSources) != 2 || o.probeSources[0].Bits() != 32 || o.probeSources[1].Bits() != 64 {
		t.Errorf("probe sources %v", o.probeSources)
	}
	for _, bad := range [][]string{
		{"--config-dir", "/a", "--status-dir", "/s"}, {"--node", "n", "--status-dir", "/s"}, {"--node", "n", "--config-dir", "/a"},
		append(good, "extra"), append(good, "--log-format", "xml"), append(good, "--enablement-selector", "[]"), append(good, "--probe-source", "here"),
	} {
		if _, err := parse(bad, io.Discard); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// TestUDPOfPods: UDP is refused to the pods that an enforced EgressPolicy selects, of the own
// namespace or of the root namespace, until it is gone.
func TestUDPOfPods(t *testing.T) {
	r := &recorder{}
	p := newPods(r, "node1", "istio-system")
	event := func(namespace, name string, udp egresspb.EgressPolicySpec_UDP, mode egresspb.EgressPolicySpec_Mode, labels map[string]string) source.Event {
		o := &ambit.EgressPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		o.Spec.Udp, o.Spec.Mode = udp, mode
		if labels != nil {
			o.Spec.Selector = &egresspb.Selector{MatchLabels: labels}
		}
		return source.Event{Key: source.EgressPolicy.Key(namespace, name), Object: o}
	}
	refused := func() (out string) {
		for _, pod := range []node.Pod{{Namespace: "shop", Labels: map[string]string{"app": "web"}}, {Namespace: "shop"}, {Namespace: "yard"}} {
			if r.udp != nil && r.udp(pod) {
				out += pod.Namespace + pod.Labels["app"] + " "
			}
		}
		return out
	}
	const allow, refuse = egresspb.EgressPolicySpec_Allow, egresspb.EgressPolicySpec_Refuse
	for _, step := range []struct {
		event source.Event
		want  string
	}{
		{event("shop", "a", allow, 0, nil), ""},
		{event("shop", "a", refuse, egresspb.EgressPolicySpec_DryRun, nil), ""},
		{event("shop", "a", refuse, 0, map[string]string{"app": "web"}), "shopweb "},
		{event("shop", "b", refuse, 0, nil), "shopweb shop "},
		{event("istio-system", "c", refuse, 0, nil), "shopweb shop yard "},
		{source.Event{Key: source.EgressPolicy.Key("shop", "b")}, "shopweb shop yard "},
		{source.Event{Key: source.EgressPolicy.Key("istio-system", "c")}, "shopweb "},
		{event("shop", "a", allow, 0, nil), ""},
	} {
		p.Apply([]source.Event{step.event})
		if got := refused(); got != step.want {
			t.Errorf("after %s: %q, want %q", step.event.Key, got, step.want)
		}
	}
	if n := len(r.events); n != 6 {
		t.Errorf("%d changes are passed on: %q", n, r.events)
	}
}
