// Package election lets one of several replicas do what only one should: it
// holds a Lease while it does.
package election

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Times of a lease: those of Kubernetes' own controllers. A leader that cannot
// renew for renewDeadline stops its work; another may begin leaseDuration after
// the last renewal it saw.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Options name the lease and who wants it.
type Options struct {
	Kube      kubernetes.Interface
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
	for ctx.Err() == nil {
		if err := o.term(ctx, work); err != nil {
			return fmt.Errorf("lease %s/%s: %w", o.Namespace, o.Lease, err)
		}
	}
	return nil
}

// term is one candidacy: it ends with the loss of the lease, or with ctx.
func (o Options) term(ctx context.Context, work func(context.Context)) error {
	log := o.Logger.With("lease", o.Namespace+"/"+o.Lease)
	held, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	working, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.Mutex // held while work runs
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Lease},
			Client:     o.Kube.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
		},
		Name:            o.Lease,
		LeaseDuration:   leaseDuration / max(o.scale, 1),
		RenewDeadline:   renewDeadline / max(o.scale, 1),
		RetryPeriod:     retryPeriod / max(o.scale, 1),
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				running.Lock()
				defer running.Unlock()
				defer context.AfterFunc(leading, stop)()
				if leading.Err() == nil && working.Err() == nil {
					log.Info("leading")
					work(working)
				}
			},
			OnStoppedLeading: func() { log.Info("not leading any more") },
		},
	})
	if err != nil {
		return err
	}
	// At the end: first work stops, then the lease goes to the next.
	defer context.AfterFunc(ctx, func() {
		running.Lock()
		defer running.Unlock()
		release()
	})()
	elector.Run(held)
	stop()
	running.Lock() // the next term begins after the work of this one
	defer running.Unlock()
	return nil
}
