package statuswriter

import (
	"context"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// discard drops what is published.
type discard struct{}

func (discard) Publish(registry.Update) {}
func (discard) Synced()                 {}

// TestOverwritten: a condition that another writer has removed comes back.
func TestOverwritten(t *testing.T) {
	s := kubetest.Start(t)
	r := registry.New(tables.Options{WriteBack: true}, discard{})
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{wellknown.LabelUseWaypoint: "wp"}}}
	s.Add(svc)
	seen := func(o *corev1.Service) {
		r.Apply([]source.Event{{Key: source.Key{Kind: source.Service.Kind, Namespace: "shop", Name: "web"}, Object: o}})
	}
	seen(svc.DeepCopy())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Run(ctx, Options{Dynamic: s.Client().Dynamic, Reports: r.Reports.Follow(status.Unnamed), Logger: slog.New(slog.DiscardHandler), resync: 50 * time.Millisecond})
	}()
	defer func() { cancel(); <-done }()
	said := func() int {
		now := svc.DeepCopy()
		s.Get(now)
		now.Generation = 0 // a Service has none
		seen(now)          // as the watch would tell
		return len(now.Status.Conditions)
	}
	eventually := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); said() != 1; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	eventually("the condition is written")
	s.Update(svc.DeepCopy())
	eventually("it is written again")
}
