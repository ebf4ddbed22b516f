// Package statuswriter writes what the control plane has to say about an
// object into the object's status. Only what differs is written, at a bounded
// rate: a change costs one read and one write per object whose conditions
// changed, and the start costs one read per object that does not say yet what
// it should.
package statuswriter

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

const (
	// settle is how long changes are collected: an object that is edited
	// twice, or whose waypoint starts, is written once.
	settle = 200 * time.Millisecond
	// workers write at a time.
	workers = 4
	// writesPerSecond bounds the load on the API server; a burst of edits by a
	// user is let through at once.
	writesPerSecond = 20
	burst           = 50
	// resync is how often what somebody else has made of a status is looked
	// for. Two who want different things of an object write it as often.
	resync = 5 * time.Minute
)

// Reports have what to write; *status.Follower is one.
type Reports interface {
	Unwritten() []source.Key
	Changed() <-chan struct{}
	Take() []source.Key
	Of(source.Key) (status.Report, bool)
}

// Options of Run.
type Options struct {
	Dynamic dynamic.Interface
	Reports Reports
	Logger  *slog.Logger

	resync time.Duration // for tests
}

type writer struct {
	Options
	queue workqueue.TypedRateLimitingInterface[source.Key]
	pace  *rate.Limiter
}

// Run writes until ctx ends. One replica should.
func Run(ctx context.Context, o Options) error {
	w := &writer{
		Options: o,
		pace:    rate.NewLimiter(writesPerSecond, burst),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[source.Key](100*time.Millisecond, time.Minute)),
	}
	defer context.AfterFunc(ctx, w.queue.ShutDown)()
	w.Reports.Take() // who changed before is among the unwritten, or was written by another leader
	w.catchUp()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { w.work(ctx) })
	}
	wg.Go(func() { w.follow(ctx) })
	wg.Wait()
	return nil
}

// catchUp queues what does not say what it should.
func (w *writer) catchUp() {
	for _, k := range w.Reports.Unwritten() {
		w.queue.Add(k)
	}
}

// follow queues what changes.
func (w *writer) follow(ctx context.Context) {
	again := time.NewTicker(cmp.Or(w.resync, resync))
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			w.catchUp()
			continue
		case <-w.Reports.Changed():
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(settle):
		}
		for _, k := range w.Reports.Take() {
			w.queue.Add(k)
		}
	}
}

func resource(k *source.Kind) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Versions[0], Resource: k.Plural}
}

// next returns the fields of an object's status that have to change.
func (w *writer) next(k source.Key, o *unstructured.Unstructured) (fields map[string]any, changed bool) {
	report, ok := w.Reports.Of(k)
	if !ok || report.Generation > o.GetGeneration() {
		// Nothing to say, or about a later version than this one: it is read
		// again when that is seen.
		return nil, false
	}
	have, _, _ := unstructured.NestedMap(o.Object, "status")
	return status.Merge(have, report, time.Now())
}

func (w *writer) work(ctx context.Context) {
	for {
		k, shutdown := w.queue.Get()
		if shutdown {
			return
		}
		err := w.write(ctx, k)
		switch {
		case err == nil || ctx.Err() != nil:
			w.queue.Forget(k)
		default:
			if n := w.queue.NumRequeues(k); n == 3 || !apierrors.IsConflict(err) && n == 0 {
				w.Logger.Warn("cannot write the status of an object; trying again", "object", k.String(), "error", err)
			}
			w.queue.AddRateLimited(k)
		}
		w.queue.Done(k)
	}
}

// write brings the status of one object up to date. The resource version goes
// along: what somebody else writes meanwhile is not undone.
func (w *writer) write(ctx context.Context, k source.Key) error {
	if err := w.pace.Wait(ctx); err != nil {
		return err
	}
	api := w.Dynamic.Resource(resource(k.Kind)).Namespace(k.Namespace)
	o, err := api.Get(ctx, k.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	fields, changed := w.next(k, o)
	if !changed {
		return nil
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": o.GetResourceVersion()},
		"status":   fields,
	})
	if err != nil {
		return err
	}
	if _, err = api.Patch(ctx, k.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status"); apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("patch: %w", err)
	}
	return nil
}
