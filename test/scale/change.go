package main

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// ackWait bounds how long a change may take to every node.
const ackWait = time.Minute

// change is one object that is changed, and what the nodes are told of it.
type change struct {
	what  string
	write func(ctx context.Context, ready bool) error
	// resource is the name of what changes for the nodes.
	resource string
}

// Kinds of changes.
const (
	podChange   = "pod readiness"
	sliceChange = "EndpointSlice"
)

// change is the i-th of a run: pods and slices in turn, far from each other.
func (w *world) change(i int) change {
	if i%2 == 0 {
		n := i / 2 * 7919 % w.pods // a prime number: all over the services
		namespace, name := home(w.serviceOf(n)), podName(n)
		return change{what: podChange, resource: podResource(namespace, name),
			write: func(ctx context.Context, ready bool) error {
				status := map[bool]string{true: "True", false: "False"}[ready]
				patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q}]}}`, status)
				_, err := w.kube.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
				return err
			}}
	}
	n, endpoint := i/2%w.slices()*selectorless, i/2/w.slices()
	return change{what: sliceChange,
		resource: sliceResource(n, endpoint),
		write: func(ctx context.Context, ready bool) error {
			patch := fmt.Sprintf(`[{"op":"replace","path":"/endpoints/%d/conditions/ready","value":%v}]`, endpoint, ready)
			_, err := w.kube.DiscoveryV1().EndpointSlices(home(n)).Patch(ctx, serviceName(n), types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
			return err
		}}
}

// mostChanges is how many there are that are all different.
func (s shape) mostChanges() int { return 2 * min(s.pods, s.slices()*endpointsOfSlice) }

// sample is what one change took.
type sample struct {
	write time.Duration   // until the API server had answered
	acks  []time.Duration // until each node had acknowledged, the first to the last
}

func (s sample) last() time.Duration { return s.acks[len(s.acks)-1] }

// measure makes a change and waits until every node has acknowledged it.
// Time runs from before the change is sent to the API server.
func (f *fleet) measure(ctx context.Context, c change, ready bool, nodes int) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	e := &expectation{resource: c.resource, healthy: ready, acks: make(chan time.Time, nodes)}
	f.awaited.Store(e)
	began := time.Now()
	if err := c.write(ctx, ready); err != nil {
		return sample{}, fmt.Errorf("%s of %s: %w", c.what, c.resource, err)
	}
	s := sample{write: time.Since(began)}
	for len(s.acks) < nodes {
		select {
		case at := <-e.acks:
			s.acks = append(s.acks, at.Sub(began))
		case <-ctx.Done():
			return s, fmt.Errorf("%s of %s: %d of %d nodes have it after %s", c.what, c.resource, len(s.acks), nodes, time.Since(began).Round(time.Second))
		}
	}
	return s, nil
}
