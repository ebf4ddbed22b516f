package node

import (
	"context"
	"errors"
	"maps"
	"time"
)

// leavePoll is how often it is looked whether all pods have left.
const leavePoll = 100 * time.Millisecond

// Leave takes every pod out of the mesh, as if none was wanted there any longer,
// and waits until all are out or the context ends. No pod is enrolled from then
// on, and new ones start outside of the mesh. It needs Run.
func (a *Agent) Leave(ctx context.Context) {
	a.mu.Lock()
	a.ending = true
	a.mu.Unlock()
	select {
	case <-a.recovered:
	default:
		return // nothing runs that could take them out
	}
	a.forgetClean()
	a.all()
	tick := time.NewTicker(leavePoll)
	defer tick.Stop()
	for a.remaining() > 0 {
		select {
		case <-ctx.Done():
			a.cfg.Logger.Warn("not all pods could leave the mesh in time", "remaining", a.remaining())
			return
		case <-tick.C:
		}
	}
}

// remaining counts the pods that are not known to be out of the mesh.
func (a *Agent) remaining() int {
	a.mu.Lock()
	pods := maps.Clone(a.pods)
	a.mu.Unlock()
	n := 0
	for uid, pod := range pods {
		if pod.HostNetwork || pod.Terminal {
			continue
		}
		st := a.state(uid)
		if !st.mu.TryLock() { // it is being worked on
			n++
			continue
		}
		if !st.clean {
			n++
		}
		st.mu.Unlock()
	}
	return n
}

// Abandon takes the rules out of whatever pod still has some, at once: when
// nobody is left to serve them, captured pods would be refused every connection.
// It is for after Run.
func (a *Agent) Abandon() {
	a.mu.Lock()
	pods := maps.Clone(a.pods)
	a.mu.Unlock()
	for uid, pod := range pods {
		if pod.HostNetwork || pod.Terminal {
			continue
		}
		st := a.state(uid)
		st.mu.Lock()
		if err := a.abandon(st, pod); err != nil {
			a.cfg.Logger.Error("a pod stays captured with nobody to serve it: it is refused every connection until it is restarted", "pod", pod.String(), "error", err)
		}
		st.mu.Unlock()
	}
}

func (a *Agent) abandon(st *state, pod Pod) error {
	if st.clean {
		return nil
	}
	ns, err := a.namespace(st, pod)
	if errors.Is(err, ErrNoNamespace) || errors.Is(err, errHost) || errors.Is(err, errNoAddress) {
		return nil
	}
	if err != nil {
		return err
	}
	present, err := a.cfg.Kernel.Present(ns)
	if err != nil || !present {
		return err
	}
	a.cfg.LargePackets.Leave(ns)
	if err := a.cfg.Kernel.Remove(ns); err != nil {
		return err
	}
	a.cfg.Logger.Warn("a pod was taken out of the mesh without waiting for its connections", "pod", pod.String())
	st.enrolled, st.clean = false, true
	st.drop()
	return nil
}
