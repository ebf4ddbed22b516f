package node

import (
	"iter"
	"maps"

	"github.com/ambit-mesh/ambit/internal/node/datagrams"
)

// Datagrams returns the UDP datagrams of the pods that are enrolled. A pod that is being
// worked on, or ends meanwhile, is left out.
func (a *Agent) Datagrams() iter.Seq[datagrams.Pod] {
	return func(yield func(datagrams.Pod) bool) {
		a.mu.Lock()
		pods := maps.Clone(a.pods)
		a.mu.Unlock()
		for uid, pod := range pods {
			if c, ok := a.state(uid).datagrams(); ok && !yield(datagrams.Pod{Namespace: pod.Namespace, Name: pod.Name, Counts: c}) {
				return
			}
		}
	}
}

// datagrams does not wait for the state: work on a pod can take seconds.
func (st *state) datagrams() (c datagrams.Counts, ok bool) {
	if !st.mu.TryLock() {
		return c, false
	}
	defer st.mu.Unlock()
	if !st.enrolled || st.ns == nil {
		return c, false
	}
	c, err := datagrams.In(st.ns)
	return c, err == nil
}
