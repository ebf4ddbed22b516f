package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/zds"
)

var (
	errNoAddress = errors.New("the pod has no address yet")
	errOther     = errors.New("the network namespace is not the one that is known to be the pod's")
	errHost      = errors.New("the network namespace is the host's")
)

// proxyPatience is how long an answer of the proxy is waited for: its deadline
// for this request, and for another that may be under way.
const proxyPatience = 2 * zds.Deadline

// Events, as the metric names them.
const (
	eventEnrol   = "enrol"
	eventUnenrol = "unenrol"
	eventForget  = "forget"
)

// work makes one pod what it should be, or goes a step on that way. It says
// after which time the next step is due.
func (a *Agent) work(ctx context.Context, uid string) (again time.Duration, err error) {
	st := a.state(uid)
	st.mu.Lock()
	defer st.mu.Unlock()
	pod, exists := a.pod(uid)
	event := eventForget
	if !exists || pod.Terminal {
		if !exists {
			pod.UID = uid
		}
		err = a.forget(ctx, st, pod, exists)
	} else if wanted, why := a.wants(pod); wanted {
		event, st.unseen = eventEnrol, false
		err = a.enrol(ctx, st, pod, false)
	} else {
		event = eventUnenrol
		a.unseen(st, pod, why)
		again, err = a.unenrol(ctx, st, pod, why)
	}
	a.report(ctx, st, pod, event, err)
	return again, err
}

// report logs the first of a row of failures: they are tried again every few
// seconds, for as long as it takes.
func (a *Agent) report(ctx context.Context, st *state, pod Pod, event string, err error) {
	a.cfg.Observe(event, err)
	switch {
	case err == nil && st.failing:
		st.failing = false
		if pod.Name != "" && st.enrolled {
			a.cfg.Tell(pod, Notice{Reason: ReasonEnrolled, Message: "the pod is in the mesh now: its traffic is captured and served"})
		}
	case err != nil && ctx.Err() == nil && !st.failing:
		st.failing = true
		a.cfg.Logger.Warn("cannot "+event+" a pod, trying again", "pod", pod.String(), "uid", pod.UID, "error", err)
		if pod.Name != "" {
			a.cfg.Tell(pod, failure(event, err))
		}
	}
}

// enrol makes sure that a pod is captured and served. With closed, the pod has
// not started yet: its rules come first, and announcing it is left to the queue,
// so that the start of a pod does not depend on who is told.
func (a *Agent) enrol(ctx context.Context, st *state, pod Pod, closed bool) error {
	if st.ns == nil && len(pod.IPs) == 0 {
		return nil // it has no network yet; another event comes with its address
	}
	if err := pod.check(); err != nil {
		return err
	}
	ns, err := a.namespace(st, pod)
	if err != nil {
		return err
	}
	// Before the pod is captured, so that none of its probes is.
	if err := a.probe.set(pod); err != nil {
		return err
	}
	cfg := a.redirection(pod)
	differs, err := a.cfg.Kernel.Check(ns, cfg)
	if err != nil {
		return err
	}
	apply := func() error {
		if err := a.cfg.Kernel.Apply(ns, cfg); err != nil {
			return err
		}
		st.applied = &cfg
		return nil
	}
	// To the mesh the pod is enrolled, as after a reboot of the node, or in the
	// middle of leaving: never a moment in plaintext while the proxy is waited
	// for.
	believed := st.enrolled || st.announced(pod)
	if len(differs) > 0 && (believed || closed) {
		switch {
		case !believed || closed || !st.leaving.IsZero(): // nothing of it is there yet, or no longer
		case st.applied != nil && !reflect.DeepEqual(*st.applied, cfg):
			a.cfg.Logger.Info("other rules are wanted for a pod", "pod", pod.String(), "differs", differs)
		default:
			a.cfg.Logger.Warn("an enrolled pod was not captured as it should be; its rules are written anew", "pod", pod.String(), "differs", differs)
		}
		if err := apply(); err != nil {
			return err
		}
		differs = nil
	}
	asking, cancel := context.WithTimeout(ctx, proxyPatience)
	defer cancel()
	if err := a.cfg.Proxies.Add(asking, workload(pod, ns)); err != nil {
		if !believed && !closed {
			err = errors.Join(err, a.annotate(ctx, st, pod, wellknown.RedirectionPending))
		}
		return err
	}
	if len(differs) > 0 {
		if err := apply(); err != nil {
			return err
		}
	}
	st.applied = &cfg
	a.cfg.LargePackets.Join(ns, pod.IPs)
	if !st.enrolled {
		a.cfg.Logger.Info("pod is in the mesh", "pod", pod.String(), "uid", pod.UID)
	}
	st.enrolled, st.clean = true, false
	st.leaving, st.quiesced = time.Time{}, time.Time{}
	if closed {
		return nil
	}
	return a.annotate(ctx, st, pod, wellknown.RedirectionEnabled)
}

// unenrol takes a live pod out of the mesh, one step at each call.
func (a *Agent) unenrol(ctx context.Context, st *state, pod Pod, why string) (again time.Duration, err error) {
	if pod.HostNetwork || st.clean {
		return 0, nil
	}
	ns, err := a.namespace(st, pod)
	if errors.Is(err, ErrNoNamespace) || len(pod.IPs) == 0 && st.ns == nil {
		return 0, a.forget(ctx, st, pod, true)
	}
	if errors.Is(err, errHost) { // the agent's own pod: nothing was ever done there
		st.clean = true
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	present, err := a.cfg.Kernel.Present(ns)
	if err != nil {
		return 0, err
	}
	if !present {
		return 0, a.restore(ctx, st, pod, ns)
	}
	if st.leaving.IsZero() {
		if err := a.annotate(ctx, st, pod, ""); err != nil {
			return 0, err
		}
		st.leaving = time.Now()
		a.cfg.Logger.Info("pod leaves the mesh", "pod", pod.String(), "uid", pod.UID, "why", why)
	}
	if wait := a.cfg.Settle - time.Since(st.leaving); wait > 0 {
		return wait, nil
	}
	if st.quiesced.IsZero() {
		cfg := a.redirection(pod)
		cfg.Quiesce = true
		if err := a.cfg.Kernel.Apply(ns, cfg); err != nil {
			return 0, err
		}
		st.quiesced = time.Now()
	}
	if time.Since(st.quiesced) < a.cfg.Drain {
		n, err := a.cfg.Kernel.Connections(ns)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			return drainPoll, nil
		}
	}
	return 0, a.restore(ctx, st, pod, ns)
}

// restore is the last step of leaving. It is right for a pod that was never in.
func (a *Agent) restore(ctx context.Context, st *state, pod Pod, ns *netns.NS) error {
	if err := a.stopServing(ctx, pod.UID); err != nil {
		return err
	}
	a.cfg.LargePackets.Leave(ns)
	if err := a.cfg.Kernel.Remove(ns); err != nil {
		return err
	}
	a.probe.drop(pod.UID)
	if err := a.annotate(ctx, st, pod, ""); err != nil {
		return err
	}
	if st.enrolled || !st.leaving.IsZero() {
		a.cfg.Logger.Info("pod is out of the mesh", "pod", pod.String(), "uid", pod.UID)
	}
	st.enrolled, st.clean = false, true
	st.leaving, st.quiesced = time.Time{}, time.Time{}
	st.drop()
	return nil
}

// forget is for pods that have ended: nothing of them is left to protect.
func (a *Agent) forget(ctx context.Context, st *state, pod Pod, exists bool) error {
	st.drop()
	a.probe.drop(pod.UID)
	if err := a.stopServing(ctx, pod.UID); err != nil {
		return err
	}
	st.enrolled, st.clean = false, true
	st.leaving, st.quiesced = time.Time{}, time.Time{}
	if exists {
		return a.annotate(ctx, st, pod, "")
	}
	if st.annotated != "" {
		// The announcement outlives the pod only in the overlay of file mode.
		pod.Name, pod.Namespace = st.name, st.namespace
		if err := a.cfg.Annotator.Annotate(ctx, pod, ""); err != nil {
			return err
		}
	}
	a.mu.Lock()
	delete(a.states, pod.UID)
	a.mu.Unlock()
	return nil
}

func (a *Agent) stopServing(ctx context.Context, uid string) error {
	ctx, cancel := context.WithTimeout(ctx, proxyPatience)
	defer cancel()
	return a.cfg.Proxies.Del(ctx, uid)
}

// annotate announces value, unless that is what was announced and is to be
// seen on the pod.
func (a *Agent) annotate(ctx context.Context, st *state, pod Pod, value string) error {
	if pod.Annotations[wellknown.AnnotationRedirection] == value && (!st.told || st.annotated == value) {
		return nil
	}
	if err := a.cfg.Annotator.Annotate(ctx, pod, value); err != nil {
		return fmt.Errorf("announcing the redirection of %s: %w", pod, err)
	}
	st.told, st.annotated, st.name, st.namespace = true, value, pod.Name, pod.Namespace
	return nil
}

// namespace finds the pod's network namespace and proves that it is the pod's.
func (a *Agent) namespace(st *state, pod Pod) (*netns.NS, error) {
	if st.ns != nil {
		// What was proven once stays the pod's while a process of it is there,
		// whatever other namespaces its processes make.
		found, err := a.cfg.Resolver.Find(pod.uids(), st.same)
		if err == nil {
			_ = found.Close()
			return st.ns, nil
		}
	}
	found, err := a.cfg.Resolver.Find(pod.uids(), func(ns *netns.NS) error { return a.prove(ns, pod.IPs) })
	if err != nil {
		// It is open, and cannot have become another's. It stays the pod's without
		// a process in it, while no other is found and it carries the address.
		if st.ns != nil && (errors.Is(err, ErrNoNamespace) || a.prove(st.ns, pod.IPs) == nil) {
			return st.ns, nil
		}
		return nil, err
	}
	st.drop()
	st.ns = found
	return found, nil
}

// same accepts the namespace that is known.
func (st *state) same(ns *netns.NS) error {
	if ns.ID() != st.ns.ID() {
		return errOther
	}
	return nil
}

// prove makes sure that a namespace is the one of the pod with these addresses:
// a path or a process may belong to something else meanwhile.
func (a *Agent) prove(ns *netns.NS, ips []netip.Addr) error {
	if slices.Contains(a.hosts, ns.ID()) {
		return errHost
	}
	if len(ips) == 0 {
		return errNoAddress
	}
	have, err := ns.Addrs()
	if err != nil {
		return err
	}
	for _, ip := range ips {
		if slices.Contains(have, ip.Unmap()) {
			return nil
		}
	}
	return fmt.Errorf("the network namespace carries %v and none of the pod's addresses %v: it is another pod's", have, ips)
}

// announced reports whether the mesh has been told that the pod is enrolled. What
// this process announced is newer than what it has heard of the pod.
func (st *state) announced(pod Pod) bool {
	if st.told {
		return st.annotated == wellknown.RedirectionEnabled
	}
	return pod.announced()
}

func (st *state) drop() {
	if st.ns != nil {
		_ = st.ns.Close()
		st.ns, st.applied = nil, nil
	}
}
