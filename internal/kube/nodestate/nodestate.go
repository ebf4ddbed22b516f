// Package nodestate is what a node agent says in the Kubernetes API: the state of
// its pods, events for their owners, a condition of its node; and what it asks
// there of itself.
package nodestate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
)

// Condition is the type of the node's condition.
const Condition corev1.NodeConditionType = "AmbitRedirectionReady"

const (
	// patience bounds a request: a pod is worked on while it is made.
	patience = 3 * time.Second
	// Pauses before the condition is written again after a failure.
	firstPause, lastPause = time.Second, 30 * time.Second
)

// State writes for one node.
type State struct {
	client *client.Client
	node   string
	logger *slog.Logger

	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder

	mu        sync.Mutex
	condition *corev1.NodeCondition // to be written
	wake      chan struct{}
}

// New makes a writer for a node. Events are written from now on, so that none
// of the first is lost; the condition is written by Run, which ends both.
func New(c *client.Client, nodeName string, logger *slog.Logger) *State {
	// The broadcaster bounds both what it keeps and what it writes for one
	// object.
	b := record.NewBroadcaster()
	b.StartRecordingToSink(events{c.Kube.CoreV1()})
	return &State{
		client: c, node: nodeName, logger: logger, broadcaster: b, wake: make(chan struct{}, 1),
		recorder: b.NewRecorder(client.Scheme, corev1.EventSource{Component: "ambit-cni", Host: nodeName}),
	}
}

// Run writes the condition until the context ends, and no event after that.
func (s *State) Run(ctx context.Context) error {
	defer s.broadcaster.Shutdown()
	pause := firstPause
	for {
		var retry <-chan time.Time
		if err := s.writeCondition(ctx); err != nil && ctx.Err() == nil {
			s.logger.Warn("cannot write the condition of the node, trying again", "condition", Condition, "error", err)
			retry = time.After(pause)
			pause = min(2*pause, lastPause)
		} else {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-retry:
		}
	}
}

// Annotate is a node.Annotator's.
func (s *State) Annotate(ctx context.Context, pod node.Pod, value string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The UID makes the API server refuse the patch for another pod of that
	// name.
	var annotation any
	if value != "" {
		annotation = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pod.UID, "annotations": map[string]any{wellknown.AnnotationRedirection: annotation},
	}})
	if err != nil {
		return err
	}
	_, err = s.client.Kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// Tell writes an event for the owners of a pod. It does not block.
func (s *State) Tell(pod node.Pod, n node.Notice) {
	kind := corev1.EventTypeNormal
	if n.Warning {
		kind = corev1.EventTypeWarning
	}
	s.recorder.Event(&corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
	}, kind, n.Reason, n.Message)
}

// SetCondition has the node's condition written. It does not block.
func (s *State) SetCondition(ready bool, reason, message string) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	s.mu.Lock()
	s.condition = &corev1.NodeCondition{Type: Condition, Status: status, Reason: reason, Message: message}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// writeCondition writes what is to be written, unless the node has it already.
func (s *State) writeCondition(ctx context.Context) error {
	s.mu.Lock()
	want := s.condition
	s.mu.Unlock()
	if want == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n, err := s.client.Kube.CoreV1().Nodes().Get(ctx, s.node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	next := *want
	next.LastHeartbeatTime, next.LastTransitionTime = now, now
	for _, have := range n.Status.Conditions {
		if have.Type != want.Type {
			continue
		}
		if have.Status == want.Status {
			next.LastTransitionTime = have.LastTransitionTime
			if have.Reason == want.Reason && have.Message == want.Message {
				return s.written(want)
			}
		}
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{next}}})
	if err != nil {
		return err
	}
	if _, err := s.client.Kube.CoreV1().Nodes().Patch(ctx, s.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	return s.written(want)
}

// Forget takes the condition off the node, when Run has ended and nobody will
// keep it true.
func (s *State) Forget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []map[string]any{{"$patch": "delete", "type": Condition}}}})
	if err != nil {
		return err
	}
	_, err = s.client.Kube.CoreV1().Nodes().Patch(ctx, s.node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

func (s *State) written(c *corev1.NodeCondition) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.condition == c {
		s.condition = nil
	}
	return nil
}

var errNoDaemonSet = errors.New("the agent's pod belongs to no DaemonSet")

// describe names an object for a message.
func describe(namespace, name string) string { return fmt.Sprintf("%s/%s", namespace, name) }
