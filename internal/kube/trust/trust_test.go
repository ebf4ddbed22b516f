package trust_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
)

// roots is a bundle that changes.
type roots struct {
	mu      sync.Mutex
	text    string
	changed chan struct{}
}

func (r *roots) get() ([]byte, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return []byte(r.text), r.changed
}

func (r *roots) set(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.changed)
	r.text, r.changed = text, make(chan struct{})
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func start(t *testing.T, s *kubetest.Server, o trust.Options) {
	t.Helper()
	o.Client, o.Logger = s.Client(), slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := trust.Run(ctx, o); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func read(s *kubetest.Server, ns string) string {
	cm, err := s.Client().Kube.CoreV1().ConfigMaps(ns).Get(context.Background(), trust.Roots.ConfigMap, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	return cm.Data[trust.Roots.Key]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestConfigMaps(t *testing.T) {
	s := kubetest.Start(t, namespace("shop", nil), namespace("bank", nil), namespace("kube-system", nil),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: trust.Roots.ConfigMap, Labels: map[string]string{"mine": "yes"}},
			Data: map[string]string{trust.Roots.Key: "stale", "other": "stays"}})
	r := &roots{text: "one", changed: make(chan struct{})}
	start(t, s, trust.Options{Texts: map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: r.get}})
	eventually(t, "both namespaces have it", func() bool { return read(s, "shop") == "one" && read(s, "bank") == "one" })
	cm, err := s.Client().Kube.CoreV1().ConfigMaps("bank").Get(t.Context(), trust.Roots.ConfigMap, metav1.GetOptions{})
	if err != nil || cm.Data["other"] != "stays" || cm.Labels["mine"] != "yes" {
		t.Errorf("what is not ours was changed: %v %+v", err, cm)
	}
	s.Add(namespace("late", nil))
	eventually(t, "a new namespace has it", func() bool { return read(s, "late") == "one" })
	api := s.Client().Kube.CoreV1().ConfigMaps("shop")
	if err := api.Delete(t.Context(), trust.Roots.ConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was deleted is back", func() bool { return read(s, "shop") == "one" })
	cm, err = api.Get(t.Context(), trust.Roots.ConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cm.Data[trust.Roots.Key] = "evil"
	if _, err := api.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was changed is repaired", func() bool { return read(s, "shop") == "one" })
	r.set("two")
	eventually(t, "all have the new roots", func() bool {
		return read(s, "shop") == "two" && read(s, "bank") == "two" && read(s, "late") == "two"
	})
	if got := read(s, "kube-system"); got != "" {
		t.Errorf("kube-system has %q", got)
	}
}

func TestSelected(t *testing.T) {
	s := kubetest.Start(t, namespace("in", map[string]string{"mesh": "yes"}), namespace("out", nil))
	r := &roots{text: "one", changed: make(chan struct{})}
	var mu sync.Mutex
	all := false
	reselect := make(chan struct{}, 1)
	start(t, s, trust.Options{Texts: map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: r.get}, Reselect: reselect, Selected: func(ns *corev1.Namespace) bool {
		mu.Lock()
		defer mu.Unlock()
		return all || ns.Labels["mesh"] == "yes"
	}})
	eventually(t, "the selected one has it", func() bool { return read(s, "in") == "one" })
	if read(s, "out") != "" {
		t.Error("the other one has it too")
	}
	mu.Lock()
	all = true
	mu.Unlock()
	reselect <- struct{}{}
	eventually(t, "now both have it", func() bool { return read(s, "out") == "one" })
}

func TestClusterTrustBundle(t *testing.T) {
	s := kubetest.Start(t)
	r := &roots{text: "one", changed: make(chan struct{})}
	start(t, s, trust.Options{Texts: map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: r.get}})
	get := func() (text, signer string) {
		for _, version := range []string{"v1", "v1beta1", "v1alpha1"} {
			gvr := schema.GroupVersionResource{Group: "certificates.k8s.io", Version: version, Resource: "clustertrustbundles"}
			o, err := s.Client().Dynamic.Resource(gvr).Get(context.Background(), trust.BundleName, metav1.GetOptions{})
			if err == nil {
				text, _, _ = unstructured.NestedString(o.Object, "spec", "trustBundle")
				signer, _, _ = unstructured.NestedString(o.Object, "spec", "signerName")
				return text, signer
			}
		}
		return "", ""
	}
	eventually(t, "it is there", func() bool {
		text, signer := get()
		return text == "one" && signer == trust.SignerName
	})
	r.set("two")
	eventually(t, "it has the new roots", func() bool { text, _ := get(); return text == "two" })
}

// Lists of revoked certificates come beside the roots, as soon as there are any.
func TestRevocations(t *testing.T) {
	s := kubetest.Start(t, namespace("shop", nil))
	r, lists := &roots{text: "one", changed: make(chan struct{})}, &roots{changed: make(chan struct{})}
	start(t, s, trust.Options{Texts: map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: r.get, trust.Revocations: lists.get}})
	revoked := func() string {
		cm, err := s.Client().Kube.CoreV1().ConfigMaps("shop").Get(context.Background(), "istio-ca-crl", metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return cm.Data["ca-crl.pem"]
	}
	eventually(t, "the roots are there", func() bool { return read(s, "shop") == "one" })
	if got := revoked(); got != "" {
		t.Errorf("lists from nowhere: %q", got)
	}
	lists.set("somebody")
	eventually(t, "the lists are there", func() bool { return revoked() == "somebody" })
	lists.set("somebody, and another")
	eventually(t, "the lists are new", func() bool { return revoked() == "somebody, and another" && read(s, "shop") == "one" })
}
