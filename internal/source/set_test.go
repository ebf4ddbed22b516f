package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// tally is a sink that keeps keys and counts calls of Synced.
type tally struct {
	mu     sync.Mutex
	keys   map[string]Cluster
	synced int
}

func (r *tally) Apply(events []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		if e.Object == nil {
			delete(r.keys, e.Key.String())
		} else {
			r.keys[e.Key.String()] = e.Key.Cluster
		}
	}
}

func (r *tally) Synced() { r.synced++ }

func (r *tally) Leave(c Cluster) {
	maps.DeleteFunc(r.keys, func(_ string, k Cluster) bool { return k == c })
}

func (r *tally) has() string { return strings.Join(slices.Sorted(maps.Keys(r.keys)), " ") }

func podEvent(name string) []Event {
	return []Event{{Key: Pod.Key("ns", name), Object: Pod.New()}}
}

func TestSourcesComeAndGo(t *testing.T) {
	r := &tally{keys: map[string]Cluster{}}
	s := NewSet(r)
	join := func(c Cluster) Sink {
		t.Helper()
		sink, err := s.Join(c)
		if err != nil {
			t.Fatal(err)
		}
		return sink
	}
	own, east, west := join(Cluster{}), join(ClusterOf("east")), join(ClusterOf("west"))
	if _, err := s.Join(ClusterOf("east")); err == nil || !strings.Contains(err.Error(), `"east"`) {
		t.Errorf("a second source of a cluster: %v", err)
	}
	own.Apply(podEvent("a"))
	east.Apply(podEvent("a")) // of the same name in another cluster
	if want := "Pod/ns/a east:Pod/ns/a"; r.has() != want {
		t.Errorf("%s, want %s", r.has(), want)
	}
	own.Synced()
	east.Synced()
	if r.synced != 0 {
		t.Error("synced before the last of the set")
	}
	// One that leaves is not waited for.
	s.Leave(ClusterOf("west"))
	west.Synced()
	if r.synced != 1 {
		t.Errorf("synced %d times", r.synced)
	}
	// What the source of a cluster that left still delivers is not applied.
	west.Apply(podEvent("late"))
	s.Leave(ClusterOf("east"))
	east.Apply(podEvent("late"))
	if want := "Pod/ns/a"; r.has() != want {
		t.Errorf("%s, want %s", r.has(), want)
	}
	// A cluster joins again, and later ones do not make the set synced twice.
	east2 := join(ClusterOf("east"))
	east.Apply(podEvent("old"))
	east2.Apply(podEvent("new"))
	east2.Synced()
	if want := "Pod/ns/a east:Pod/ns/new"; r.has() != want || r.synced != 1 {
		t.Errorf("%s, want %s; synced %d times", r.has(), want, r.synced)
	}
	s.Leave(ClusterOf("unknown"))
}

// Leave and Apply may meet; after Leave nothing of the cluster is left.
func TestLeaveDuringApply(t *testing.T) {
	for i := range 50 {
		r := &tally{keys: map[string]Cluster{}}
		s := NewSet(r)
		c := ClusterOf(fmt.Sprint("c", i))
		sink, err := s.Join(c)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := range 20 {
				sink.Apply(podEvent(fmt.Sprint(n)))
			}
		})
		s.Leave(c)
		wg.Wait()
		if len(r.keys) > 0 {
			t.Fatalf("left: %s", r.has())
		}
	}
}

func TestKeysOfClusters(t *testing.T) {
	again := ClusterOf(strings.Clone("a"))
	if !ClusterOf("").Own() || ClusterOf("a") != again || ClusterOf("a") == ClusterOf("b") || ClusterOf("a").String() != "a" || (Cluster{}).String() != "" {
		t.Error("identity of clusters")
	}
	own, a, b := Pod.Key("ns", "n"), Pod.Key("ns", "n"), Pod.Key("ns", "n")
	a.Cluster, b.Cluster = ClusterOf("a"), ClusterOf("b")
	twin := a
	if own.Compare(a) >= 0 || a.Compare(b) >= 0 || b.Compare(a) <= 0 || a.Compare(twin) != 0 {
		t.Error("the order of clusters")
	}
	node := Node.Key("", "n1")
	node.Cluster = ClusterOf("a")
	if got := fmt.Sprint(a, own, node, a.Ref(), node.Ref(), own.Ref(), a.Ref().Home().At("x")); got != "a:Pod/ns/n Pod/ns/n a:Node/n1 a:ns/n a:n1 ns/n a:ns/x" {
		t.Error(got)
	}
}
