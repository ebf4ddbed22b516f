package source

import (
	"fmt"
	"sync"
)

// ClusterSink is a Sink of several clusters.
type ClusterSink interface {
	Sink
	// Leave removes all objects of a cluster. What was applied for it before is
	// not applied again.
	Leave(Cluster)
}

// Set joins the sources of several clusters to one sink. Sources may join and
// leave at any time, from any goroutine.
type Set struct {
	sink ClusterSink

	mu      sync.Mutex // held during calls of the sink
	members map[Cluster]*member
	synced  bool // the sink knows
}

// NewSet returns a set without sources.
func NewSet(sink ClusterSink) *Set {
	return &Set{sink: sink, members: map[Cluster]*member{}}
}

// member is the sink of one source.
type member struct {
	set     *Set
	cluster Cluster
	synced  bool
}

// Join returns the sink for the source of a cluster. A cluster that left may
// join again, with another source.
func (s *Set) Join(c Cluster) (Sink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[c] != nil {
		return nil, fmt.Errorf("join the sources of clusters: cluster %q has a source already (remove that one first)", c)
	}
	m := &member{set: s, cluster: c}
	s.members[c] = m
	return m, nil
}

// Leave removes a cluster with its objects. It returns when the sink has
// removed them; nothing that the source still delivers reaches the sink.
func (s *Set) Leave(c Cluster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[c] == nil {
		return
	}
	delete(s.members, c)
	s.sink.Leave(c)
	s.settle()
}

// settle calls Synced of the sink once: when every source that is in the set has
// delivered all that there was when it started. Sources that join later do not
// take that back.
func (s *Set) settle() {
	if s.synced || len(s.members) == 0 {
		return
	}
	for _, m := range s.members {
		if !m.synced {
			return
		}
	}
	s.synced = true
	s.sink.Synced()
}

// Apply implements Sink.
func (m *member) Apply(events []Event) {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	if m.set.members[m.cluster] != m {
		return // has left
	}
	if !m.cluster.Own() {
		for i := range events {
			events[i].Key.Cluster = m.cluster
		}
	}
	m.set.sink.Apply(events)
}

// Synced implements Sink.
func (m *member) Synced() {
	m.set.mu.Lock()
	defer m.set.mu.Unlock()
	if m.set.members[m.cluster] == m {
		m.synced = true
		m.set.settle()
	}
}
