package status

import (
	"maps"
	"sync"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Reports holds what to write into the status of objects. They are derived like
// everything else: a change costs the reports that depend on it.
type Reports struct {
	mu        sync.Mutex
	now       map[source.Key]Report
	followers []*Follower
}

// NewReports returns Reports without any.
func NewReports() *Reports { return &Reports{now: map[source.Key]Report{}} }

// All returns the reports. The map is the caller's.
func (v *Reports) All() map[source.Key]Report {
	v.mu.Lock()
	defer v.mu.Unlock()
	return maps.Clone(v.now)
}

// Follower has the reports for one writer. It has one reader, in any goroutine.
type Follower struct {
	reports *Reports
	match   func(Report) bool
	changed map[source.Key]struct{} // guarded by Reports.mu
	signal  chan struct{}
}

// Unnamed matches what is labelled for no revision. All of several control
// planes report on it, and one of them should write.
func Unnamed(r Report) bool { return !r.Named }

// Named matches what is labelled for this control plane's revision.
func Named(r Report) bool { return r.Named }

// Follow returns a follower of the reports that match. What exists already
// counts as not changed.
func (v *Reports) Follow(match func(Report) bool) *Follower {
	f := &Follower{reports: v, match: match, changed: map[source.Key]struct{}{}, signal: make(chan struct{}, 1)}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.followers = append(v.followers, f)
	return f
}

// Unwritten returns the objects whose status lacks something of their report.
func (f *Follower) Unwritten() []source.Key {
	f.reports.mu.Lock()
	defer f.reports.mu.Unlock()
	var keys []source.Key
	for k, report := range f.reports.now {
		if f.match(report) && !report.Written {
			keys = append(keys, k)
		}
	}
	return keys
}

// Changed has a value when there is something to Take.
func (f *Follower) Changed() <-chan struct{} { return f.signal }

// Take returns the objects whose report changed since the last Take. Those that
// are gone are not among them.
func (f *Follower) Take() []source.Key {
	f.reports.mu.Lock()
	defer f.reports.mu.Unlock()
	keys := make([]source.Key, 0, len(f.changed))
	for k := range f.changed {
		keys = append(keys, k)
	}
	f.changed = map[source.Key]struct{}{}
	return keys
}

// Of returns the report on an object, if it matches.
func (f *Follower) Of(k source.Key) (Report, bool) {
	f.reports.mu.Lock()
	defer f.reports.mu.Unlock()
	report, ok := f.reports.now[k]
	return report, ok && f.match(report)
}

// Apply takes changes of the reports on objects of a kind in.
func (v *Reports) Apply(kind *source.Kind, changes []collection.Change[source.Ref, Report]) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range changes {
		k := source.Key{Kind: kind, Cluster: c.Key.Cluster, Namespace: c.Key.Namespace, Name: c.Key.Name}
		if c.Has {
			v.now[k] = c.New
		} else {
			delete(v.now, k)
		}
		for _, f := range v.followers {
			f.note(k, c)
		}
	}
	for _, f := range v.followers {
		if len(f.changed) == 0 {
			continue
		}
		select {
		case f.signal <- struct{}{}:
		default:
		}
	}
}

// note records that a report changed, when the follower has to write it.
func (f *Follower) note(k source.Key, c collection.Change[source.Ref, Report]) {
	had, has := c.Had && f.match(c.Old), c.Has && f.match(c.New)
	switch {
	case had && !has:
		delete(f.changed, k)
	// What other controllers make of the status is not undone at once, but when
	// the writer asks for the unwritten: two that did so would never end.
	case has && !had && !c.New.Written, has && had && !c.New.SaysAs(c.Old):
		f.changed[k] = struct{}{}
	}
}
