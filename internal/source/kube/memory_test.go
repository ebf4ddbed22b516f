package kube

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/source"
)

// realPod is a pod as a Deployment and the kubelet make it.
func realPod(i int) *corev1.Pod {
	yes := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("web-7d4b9c6f5d-%05d", i), GenerateName: "web-7d4b9c6f5d-", Namespace: fmt.Sprintf("team-%02d", i%50),
			UID: types.UID(fmt.Sprintf("8f6d2c1a-0000-4000-8000-%012d", i)), ResourceVersion: fmt.Sprint(1000 + i),
			Labels:          map[string]string{"app": "web", "pod-template-hash": "7d4b9c6f5d", "app.kubernetes.io/name": "web", "app.kubernetes.io/version": "1.2.3"},
			Annotations:     map[string]string{"ambient.istio.io/redirection": "enabled", "prometheus.io/scrape": "true", "example.org/long": "a long text that nobody reads here, of some eighty characters in length or so"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-7d4b9c6f5d", UID: "u", Controller: &yes, BlockOwnerDeletion: &yes}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 3000))}},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%03d", i%200), ServiceAccountName: "web",
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example.org/web:1.2.3", Env: make([]corev1.EnvVar, 10),
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}}},
			}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.1.%d.%d", i/250, i%250), HostIP: "10.0.0.1",
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	return p
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestInternerShares: what is equal is kept once, what is not stays apart.
func TestInternerShares(t *testing.T) {
	r := reader{kind: source.Pod.Kind, strings: new(source.Interner)}
	read := func(edit func(*corev1.Pod)) *corev1.Pod {
		p := realPod(1)
		edit(p)
		it, err := r.item(p)
		if err != nil {
			t.Fatal(err)
		}
		return it.obj.(*corev1.Pod)
	}
	a, b := read(func(*corev1.Pod) {}), read(func(p *corev1.Pod) { p.Name = "other" })
	if &a.Spec.Containers[0] != &b.Spec.Containers[0] || &a.OwnerReferences[0] != &b.OwnerReferences[0] || &a.Status.Conditions[0] != &b.Status.Conditions[0] {
		t.Error("parts that are equal are there twice")
	}
	whole := realPod(1)
	for name, edit := range map[string]func(*corev1.Pod){
		"a label less":  func(p *corev1.Pod) { delete(p.Labels, "app") },
		"another value": func(p *corev1.Pod) { p.Labels["app"] = "db" },
		"one more":      func(p *corev1.Pod) { p.Labels["more"] = "" },
		"no labels":     func(p *corev1.Pod) { p.Labels = nil },
		"another port":  func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort++ },
		"another probe": func(p *corev1.Pod) { p.Spec.Containers[0].ReadinessProbe.HTTPGet.Port = intstr.FromInt32(9) },
		"not ready":     func(p *corev1.Pod) { p.Status.Conditions[1].Status = corev1.ConditionFalse },
		"another owner": func(p *corev1.Pod) { p.OwnerReferences[0].Name = "db" },
		"no owner":      func(p *corev1.Pod) { p.OwnerReferences = nil },
		"an annotation": func(p *corev1.Pod) { p.Annotations["ambient.istio.io/redirection"] = "disabled" },
	} {
		changed := realPod(1)
		edit(changed)
		if got, want := read(edit), Trim(changed); !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		if got, want := read(func(*corev1.Pod) {}), Trim(whole); !equality.Semantic.DeepEqual(got, want) {
			t.Errorf("after %s: %+v, want %+v", name, got, want)
		}
	}
}

// TestMemoryOfPods holds the source to what it may keep: the objects are the
// sink's, and beside them it has little more than a pointer.
func TestMemoryOfPods(t *testing.T) {
	const pods = 20_000
	r := reader{kind: source.Pod.Kind, strings: new(source.Interner)}
	objects := make([]metav1.Object, pods) // as a sink keeps them
	items := make([]item, pods)
	before := heap()
	for i := range pods {
		it, err := r.item(realPod(i))
		if err != nil {
			t.Fatal(err)
		}
		items[i], objects[i] = it, it.obj
	}
	kept := heap()
	s := newState([]*source.Kind{source.Pod.Kind}, nil)
	s.apply(op{kind: source.Pod.Kind, what: replaceAll, items: items})
	if got := len(s.flush()); got != pods {
		t.Fatalf("%d events", got)
	}
	clear(items)
	own := heap()
	perPod, beside := (kept-before)/pods, (int64(own)-int64(kept))/pods+int64(unsafe.Sizeof(item{}))
	t.Logf("a pod is %d bytes, shared with the sink; the source's own are %d", perPod, beside)
	if perPod > 1600 || beside > 200 {
		t.Errorf("more than 1600 and 200 bytes a pod")
	}
	runtime.KeepAlive(objects)
	runtime.KeepAlive(s)
}

// BenchmarkReadPod is what a pod costs when it is listed or changes.
func BenchmarkReadPod(b *testing.B) {
	r := reader{kind: source.Pod.Kind, strings: new(source.Interner)}
	pods := make([]*corev1.Pod, 1000)
	for i := range pods {
		pods[i] = realPod(i)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if _, err := r.item(pods[n%len(pods)]); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
