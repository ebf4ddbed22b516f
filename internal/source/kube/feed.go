package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/ambit-mesh/ambit/internal/source"
)

// feed follows one kind: a list, then a watch from there, and again from
// where it was when that ends.
type feed struct {
	kind   *source.Kind
	open   func(context.Context) (*api, error)
	read   reader
	out    chan<- op
	health *health

	api      *api   // nil: not known yet how the kind is served
	rv       string // how far we are; empty: a list is needed
	noStream bool   // the server does not stream lists
	tries    int    // in a row that came to nothing

	look time.Duration // how often a kind that is not installed is looked for
}

const (
	pageSize = 500
	// watchFor is how long the server keeps a watch; a random half more.
	watchFor = 5 * time.Minute
	// lost is how much longer we wait for it to end.
	lost = 30 * time.Second
	// stalled is how long a list may stop in the middle of its stream.
	stalled = 30 * time.Second
	// lived is how long a watch must have lasted to count for something.
	lived = time.Second
)

func newFeed(kind *source.Kind, o opener, out chan<- op, h *health) *feed {
	return &feed{
		kind: kind, open: func(ctx context.Context) (*api, error) { return o.open(ctx, kind) },
		read: reader{kind: kind, strings: new(source.Interner)}, out: out, health: h, look: 5 * time.Second,
	}
}

func (f *feed) run(ctx context.Context) {
	for ctx.Err() == nil {
		progress, err := f.round(ctx)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return
		case apierrors.IsNotFound(err) && f.api != nil && f.api.custom():
			f.health.fail(f.kind.String(), err)
			f.api, f.rv = nil, "" // asked for once more, by its name
		case isAbsent(err) && f.api.custom():
			f.absent(ctx)
			wait = time.Duration(float64(f.look) * (0.5 + rand.Float64()))
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
			f.rv = "" // too long away: what changed is found by listing
		case err != nil:
			f.health.fail(f.kind.String(), err)
		}
		if progress {
			f.tries = 0
			continue
		}
		if wait == 0 {
			wait = backoff(f.tries, rand.Float64())
			f.tries++
		}
		f.pause(ctx, wait)
	}
}

func (f *feed) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.health.again():
	case <-ctx.Done():
	}
}

// errAbsent says that the kind is not installed.
var errAbsent = errors.New("the kind is not installed")

func isAbsent(err error) bool { return errors.Is(err, errAbsent) || apierrors.IsNotFound(err) }

// absent says that there are no objects, and begins anew.
func (f *feed) absent(ctx context.Context) {
	f.health.ok(f.kind.String())
	f.api, f.rv, f.tries = nil, "", 0
	_ = f.send(ctx, replaceAll) // fails when everything ends
}

// send passes an op on; what it could not pass on has not been seen.
func (f *feed) send(ctx context.Context, what opKind, items ...item) error {
	select {
	case f.out <- op{kind: f.kind, what: what, items: items}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// round lists, if need be, and watches until the watch ends. progress tells
// that it was worth it.
func (f *feed) round(ctx context.Context) (progress bool, err error) {
	if f.api == nil {
		if f.api, err = f.open(ctx); err != nil {
			return false, err
		}
	}
	duration := watchFor + rand.N(watchFor/2)
	ctx, cancel := context.WithTimeout(ctx, duration+lost)
	defer cancel()
	opts := metav1.ListOptions{AllowWatchBookmarks: true, TimeoutSeconds: new(int64(duration.Seconds()))}
	var w watch.Interface
	if f.rv == "" {
		if w, err = f.list(ctx, opts); err != nil {
			return false, err
		}
	}
	if w == nil {
		opts.ResourceVersion = f.rv
		if w, err = f.api.watch(ctx, opts); err != nil {
			return false, err
		}
	}
	defer w.Stop()
	f.health.ok(f.kind.String())
	return f.follow(ctx, w)
}

// follow passes on what a watch says, until it ends.
func (f *feed) follow(ctx context.Context, w watch.Interface) (progress bool, err error) {
	begin := time.Now()
	for {
		var e watch.Event
		var ok bool
		select {
		case e, ok = <-w.ResultChan():
		case <-ctx.Done():
			return true, nil
		}
		worth := progress || time.Since(begin) > lived
		if !ok {
			return worth, nil
		}
		if e.Type == watch.Error {
			return worth, apierrors.FromObject(e.Object)
		}
		rv, err := f.take(ctx, e)
		if err != nil {
			return worth, err
		}
		f.rv = rv
		progress = progress || e.Type != watch.Bookmark
	}
}

// take passes on one event and returns how far it takes us.
func (f *feed) take(ctx context.Context, e watch.Event) (rv string, err error) {
	if e.Type == watch.Bookmark {
		m, err := meta.Accessor(e.Object)
		if err != nil {
			return "", fmt.Errorf("a bookmark of %s: %w", f.kind, err)
		}
		return m.GetResourceVersion(), nil
	}
	it, err := f.read.item(e.Object)
	if err != nil {
		return "", err
	}
	what := put
	if e.Type == watch.Deleted {
		what = remove
	}
	return it.rv, f.send(ctx, what, it)
}

// list passes on all objects, and returns the watch that goes on from there
// when the server streams lists.
func (f *feed) list(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	if !f.noStream {
		w, err := f.stream(ctx, opts)
		if err == nil || !answered(err) || isAbsent(err) || apierrors.IsResourceExpired(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			return w, err
		}
		f.noStream = true // an older server, which does not know the question
	}
	return nil, f.pages(ctx)
}

// stream lists by a watch that begins with everything.
func (f *feed) stream(ctx context.Context, opts metav1.ListOptions) (_ watch.Interface, err error) {
	opts.SendInitialEvents = new(true)
	opts.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	w, err := f.api.watch(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.Stop()
		}
	}()
	seen := map[name]item{}
	quiet := time.NewTimer(stalled)
	defer quiet.Stop()
	for {
		var e watch.Event
		var ok bool
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-quiet.C:
			f.noStream = true
			return nil, fmt.Errorf("the list of %s stopped in the middle", f.kind)
		case e, ok = <-w.ResultChan():
		}
		quiet.Reset(stalled)
		switch {
		case !ok:
			return nil, fmt.Errorf("the list of %s ended in the middle", f.kind)
		case e.Type == watch.Error:
			return nil, apierrors.FromObject(e.Object)
		case e.Type == watch.Bookmark:
			var m metav1.Object
			if m, err = meta.Accessor(e.Object); err != nil {
				return nil, err
			}
			if m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				err = f.listed(ctx, slices.Collect(maps.Values(seen)), m.GetResourceVersion())
				return w, err
			}
			continue
		}
		it, err := f.read.item(e.Object)
		if err != nil {
			return nil, err
		}
		if seen[it.name] = it; e.Type == watch.Deleted {
			delete(seen, it.name)
		}
	}
}

func (f *feed) listed(ctx context.Context, items []item, rv string) error {
	if err := f.send(ctx, replaceAll, items...); err != nil {
		return err
	}
	f.rv = rv
	return nil
}

// pages lists page by page, keeping only what was cut out of each.
func (f *feed) pages(ctx context.Context) error {
	var items []item
	for next := ""; ; {
		list, err := f.api.list(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
		if err != nil {
			return err
		}
		if err := meta.EachListItem(list, func(o runtime.Object) error {
			it, err := f.read.item(o)
			items = append(items, it)
			return err
		}); err != nil {
			return err
		}
		m, err := meta.ListAccessor(list)
		if err != nil {
			return err
		}
		if next = m.GetContinue(); next == "" {
			return f.listed(ctx, items, m.GetResourceVersion())
		}
	}
}
