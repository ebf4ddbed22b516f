package election

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

// candidate counts how many work at a time.
type candidate struct {
	stop    context.CancelFunc
	done    chan struct{}
	working atomic.Bool
	terms   atomic.Int32
}

func (c *candidate) start(t *testing.T, s *kubetest.Server, name string, all *atomic.Int32) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c.stop, c.done = cancel, make(chan struct{})
	o := Options{Kube: s.Client().Kube, Namespace: "istio-system", Lease: "l", Identity: name, Logger: slog.New(slog.DiscardHandler), scale: 10}
	go func() {
		defer close(c.done)
		err := Run(ctx, o, func(ctx context.Context) {
			if n := all.Add(1); n > 1 {
				t.Errorf("%d work at a time", n)
			}
			c.working.Store(true)
			c.terms.Add(1)
			<-ctx.Done()
			time.Sleep(50 * time.Millisecond) // what work takes to end
			c.working.Store(false)
			all.Add(-1)
		})
		if err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-c.done })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestHandOver(t *testing.T) {
	s := kubetest.Start(t)
	var all atomic.Int32
	var a, b candidate
	a.start(t, s, "a", &all)
	eventually(t, "a works", a.working.Load)
	b.start(t, s, "b", &all)
	a.stop()
	<-a.done
	lease, err := s.Client().Kube.CoordinationV1().Leases("istio-system").Get(t.Context(), "l", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if h := lease.Spec.HolderIdentity; h != nil && *h == "a" {
		t.Error("the lease was not given back")
	}
	eventually(t, "b works", b.working.Load)
}

// TestLost: without the API server the work stops, and begins again after.
func TestLost(t *testing.T) {
	s := kubetest.Start(t)
	var all atomic.Int32
	var a candidate
	a.start(t, s, "a", &all)
	eventually(t, "a works", a.working.Load)
	s.OnRequest(func(verb, resource string) int {
		if resource == "leases" && verb != "get" {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	eventually(t, "the work stops", func() bool { return !a.working.Load() })
	s.OnRequest(nil)
	eventually(t, "the work begins again", func() bool { return a.working.Load() && a.terms.Load() == 2 })
}

func TestObserver(t *testing.T) {
	s := kubetest.Start(t)
	o := Observer{Options: Options{Kube: s.Client().Kube, Namespace: "istio-system", Lease: "l", Identity: "me"}}
	if o.Taken(t.Context()) {
		t.Error("a lease that nobody has ever held")
	}
	var all atomic.Int32
	var other candidate
	other.start(t, s, "other", &all)
	eventually(t, "it is another's", func() bool { return o.Taken(t.Context()) })
	mine := o
	mine.Identity = "other"
	if mine.Taken(t.Context()) {
		t.Error("one's own lease counts as another's")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if !o.Taken(gone) {
		t.Error("a lease that cannot be read counts as free")
	}
	other.stop()
	eventually(t, "it is free", func() bool { return !o.Taken(t.Context()) })
}
