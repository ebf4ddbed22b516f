package workload

import (
	"context"
	"sync"
	"sync/atomic"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// Options configures a Directory.
type Options struct {
	// TrustDomain is that of workloads that name none; empty means the
	// default trust domain.
	TrustDomain string
	// PreferredNamespace wins among services of one host name when neither
	// the client's namespace nor a canonical service decides.
	PreferredNamespace string
}

// Change is one workload or service before and after an Apply: Old is nil for
// a new one, New for one that is gone. Exactly one pair is set.
type Change struct {
	OldWorkload, NewWorkload *Workload
	OldService, NewService   *Service
}

// Changes is what one Apply did. It is shared by all subscribers and not to
// be changed.
type Changes struct {
	// Snapshot is the state after the changes.
	Snapshot *Snapshot
	List     []Change
}

// RemovedUIDs lists the workloads that left the directory.
func (c Changes) RemovedUIDs() []string {
	var out []string
	for _, ch := range c.List {
		if ch.OldWorkload != nil && ch.NewWorkload == nil {
			out = append(out, ch.OldWorkload.UID)
		}
	}
	return out
}

// Rejection is a resource that could not be understood. What was known under
// its name before stays.
type Rejection struct {
	Name string // of the resource
	Err  error
}

// Directory is the writer's side: it applies deltas and publishes Snapshots.
// All methods may be called from any goroutine.
type Directory struct {
	opts    Options
	current atomic.Pointer[Snapshot]
	mu      sync.Mutex // serializes Apply and subscriptions
}

// NewDirectory returns an empty Directory.
func NewDirectory(opts Options) *Directory {
	d := &Directory{opts: opts}
	d.current.Store(&Snapshot{})
	return d
}

// Snapshot returns the present state.
func (d *Directory) Snapshot() *Snapshot { return d.current.Load() }

// Apply sets and removes resources. The names in removed are those of
// resources: the UID of a workload or namespace/hostname of a service.
// Resources that cannot be understood are returned; the rest is applied.
func (d *Directory) Apply(set []*workloadpb.Address, removed []string) (Changes, []Rejection) {
	return Changes{Snapshot: d.Snapshot()}, nil
}

// Subscribe calls fn after every Apply that changed something, in order, on
// the goroutine of Apply, after the new Snapshot is visible. fn must be quick
// and must not call Apply or Subscribe. The result ends the subscription.
func (d *Directory) Subscribe(fn func(Changes)) (cancel func()) { return func() {} }

// Wait returns the first value that find reports on the present or a later
// Snapshot, or the context's error.
func Wait[T any](ctx context.Context, d *Directory, find func(*Snapshot) (T, bool)) (T, error) {
	var zero T
	return zero, ctx.Err()
}
