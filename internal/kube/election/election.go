// Package election lets one of several replicas do what only one should: it
// holds a Lease while it does. Leases are written as Kubernetes' own controllers
// write theirs.
package election

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Times of a lease: those of Kubernetes' own controllers. A leader that cannot
// renew for renewDeadline stops its work; another may begin leaseDuration after
// the last renewal it saw. What lies between is for the work to end, and for
// clocks that run differently.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Options name the lease and who wants it.
type Options struct {
	Kube      *client.Typed
	Namespace string
	Lease     string
	Identity  string // of this replica: the name of its pod
	Logger    *slog.Logger

	// scale divides the times above, for tests.
	scale time.Duration
}

// Run takes part until ctx ends, and runs work while this replica holds the
// lease. The context of work ends at once when the lease is lost or ctx ends;
// the lease is given back only after work has returned, so that two never
// work at a time as far as their clocks agree. When work returns by itself the
// lease stays held.
func Run(ctx context.Context, o Options, work func(context.Context)) error {
	c := &campaign{Options: o, log: o.Logger.With("lease", o.Namespace+"/"+o.Lease)}
	c.scale = max(c.scale, 1)
	for c.acquire(ctx) {
		c.lead(ctx, work)
	}
	return nil
}

// Observer looks at a lease without wanting it. It is not safe for concurrent use.
type Observer struct {
	Options
	seen sight
}

// Taken reports whether another replica holds the lease, as far as is known: it
// has run out when it was not seen to change for as long as it holds, and one
// that cannot be read is held.
func (o *Observer) Taken(ctx context.Context) bool {
	lease, err := o.Kube.CoordinationV1().Leases(o.Namespace).Get(ctx, o.Lease, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false
	case err != nil:
		return true
	}
	now := time.Now()
	o.seen = o.seen.saw(lease, now)
	return !o.seen.free(o.Identity, now)
}

// campaign is one replica's part in an election.
type campaign struct {
	Options
	log  *slog.Logger
	seen sight
	lost error // why the lease could not be had the last time
}

// acquire waits until the lease is held; false when ctx ended before.
func (c *campaign) acquire(ctx context.Context) bool {
	for !c.try(ctx) {
		// Replicas that began together do not stay together.
		pause := retryPeriod / c.scale
		if !sleep(ctx, pause+rand.N(pause/5)) {
			return false
		}
	}
	return true
}

// lead runs work until the lease is lost or ctx ends, and returns after work
// has.
func (c *campaign) lead(ctx context.Context, work func(context.Context)) {
	c.log.Info("leading")
	working, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		work(working)
	}()
	held := c.renew(ctx)
	stop()
	if held {
		// Others wait for as long as work needs to end; the lease is renewed
		// meanwhile.
		ending, ended := context.WithCancel(context.WithoutCancel(ctx))
		go func() { <-done; ended() }()
		held = c.renew(ending)
		ended()
	}
	<-done
	if !held {
		c.log.Warn("lost the lease, and stopped what it is for", "error", c.lost)
		return
	}
	c.log.Info("not leading any more")
	c.release()
}

// renew keeps the lease until ctx ends; false when it was lost before.
func (c *campaign) renew(ctx context.Context) bool {
	renewed := time.Now()
	for sleep(ctx, retryPeriod/c.scale) {
		deadline := renewed.Add(renewDeadline / c.scale)
		attempt, cancel := context.WithDeadline(ctx, deadline)
		now := time.Now()
		ok := c.try(attempt)
		cancel()
		switch {
		case ok:
			renewed = now
		case ctx.Err() != nil:
			return true
		case !time.Now().Before(deadline), c.seen.holder() != c.Identity:
			return false
		}
	}
	return true
}

// try takes or renews the lease. It takes no longer than half of the time that a
// renewal has, so that there is a second one.
func (c *campaign) try(ctx context.Context) bool {
	attempt, cancel := context.WithTimeout(ctx, renewDeadline/2/c.scale)
	defer cancel()
	held, err := c.attempt(attempt)
	if err != nil && ctx.Err() == nil && (c.lost == nil || c.lost.Error() != err.Error()) {
		c.log.Warn("cannot take part in the election, trying again", "error", err)
	}
	c.lost = err
	return held
}

// attempt is try without its report. A leader writes without reading first:
// the version tells the API server when somebody else has written.
func (c *campaign) attempt(ctx context.Context) (bool, error) {
	api := c.Kube.CoordinationV1().Leases(c.Namespace)
	now := time.Now()
	if c.seen.version == "" || c.seen.holder() != c.Identity {
		lease, err := api.Get(ctx, c.Lease, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			c.seen = sight{}
		case err != nil:
			return false, err
		default:
			c.seen = c.seen.saw(lease, now)
		}
		if !c.seen.free(c.Identity, now) {
			return false, nil
		}
	}
	return c.write(ctx, c.seen.held(c.Identity, leaseDuration/c.scale, now))
}

// write replaces the lease that was seen. Somebody who was faster is no error.
func (c *campaign) write(ctx context.Context, spec coordinationv1.LeaseSpec) (bool, error) {
	api := c.Kube.CoordinationV1().Leases(c.Namespace)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Lease, ResourceVersion: c.seen.version}, Spec: spec}
	var err error
	if c.seen.version == "" {
		lease, err = api.Create(ctx, lease, metav1.CreateOptions{})
	} else {
		lease, err = api.Update(ctx, lease, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err):
		// Not known any more: it is read the next time.
		c.seen.version = ""
		return false, nil
	case err != nil:
		return false, err
	}
	c.seen = sight{version: lease.ResourceVersion, spec: lease.Spec, at: time.Now()}
	return true, nil
}

// release gives the lease back, so that another replica need not wait for its
// end. It is a courtesy: on failure the others wait.
func (c *campaign) release() {
	if c.seen.version == "" {
		return // it is not known what would be overwritten
	}
	ctx, cancel := context.WithTimeout(context.Background(), retryPeriod)
	defer cancel()
	if _, err := c.write(ctx, c.seen.released(time.Now())); err != nil {
		c.log.Warn("cannot give the lease back; the next leader waits for its end", "error", err)
	}
	c.seen = sight{}
}

// sleep waits; false when ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
