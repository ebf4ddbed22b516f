package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// pollEvery is how often what is waited for is looked at.
const pollEvery = time.Second

// lastLook bounds finding out why something is not ready when all time is
// gone.
const lastLook = 5 * time.Second

// waited reports whether an object becomes ready some time after it is applied.
func waited(obj *unstructured.Unstructured) bool {
	switch obj.GetKind() {
	case "Deployment", "DaemonSet", "CustomResourceDefinition":
		return true
	}
	return false
}

// readiness reports whether an object is what was asked for, and how far it is.
func readiness(obj *unstructured.Unstructured) (ready bool, progress string) {
	num := func(path ...string) int64 {
		n, _, _ := unstructured.NestedInt64(obj.Object, path...)
		return n
	}
	seen := num("status", "observedGeneration") >= obj.GetGeneration()
	switch obj.GetKind() {
	case "Deployment":
		want := num("spec", "replicas")
		if _, found, _ := unstructured.NestedInt64(obj.Object, "spec", "replicas"); !found {
			want = 1
		}
		have := min(num("status", "updatedReplicas"), num("status", "availableReplicas"))
		return seen && have >= want && num("status", "replicas") <= max(want, num("status", "updatedReplicas")), fmt.Sprintf("%d of %d ready", have, want)
	case "DaemonSet":
		want := num("status", "desiredNumberScheduled")
		have := min(num("status", "updatedNumberScheduled"), num("status", "numberAvailable"))
		if !seen {
			return false, "not seen by the controller yet"
		}
		return have >= want, fmt.Sprintf("%d of %d ready", have, want)
	case "CustomResourceDefinition":
		conditions, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions")
		for _, c := range conditions {
			if m, ok := c.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return true, ""
			}
		}
		return false, "not established yet"
	}
	return true, ""
}

// await waits until all objects are ready. While it waits it says for what,
// and in the end why not.
func (c cluster) await(ctx context.Context, objects []*unstructured.Unstructured, say func(string)) error {
	open := slices.DeleteFunc(slices.Clone(objects), func(o *unstructured.Unstructured) bool { return !waited(o) })
	var last string
	for {
		rest, text, err := c.look(ctx, open)
		switch {
		case ctx.Err() != nil:
			return c.timedOut(ctx, open, last)
		case err != nil || len(rest) == 0:
			return err
		}
		open = rest
		if text != last {
			last = text
			say(text)
		}
		select {
		case <-ctx.Done():
			return c.timedOut(ctx, open, last)
		case <-time.After(pollEvery):
		}
	}
}

// look returns which of the objects are not ready, and what keeps them.
func (c cluster) look(ctx context.Context, objects []*unstructured.Unstructured) (rest []*unstructured.Unstructured, text string, err error) {
	var waiting []string
	for _, obj := range objects {
		live, err := c.get(ctx, obj)
		switch {
		case err != nil:
			waiting = append(waiting, fmt.Sprintf("%s: %v", title(obj), err))
		case live == nil:
			return nil, "", fmt.Errorf("%s was deleted while it was waited for", title(obj))
		default:
			ready, progress := readiness(live)
			if ready {
				continue
			}
			waiting = append(waiting, strings.Join(append([]string{title(obj) + ": " + progress}, c.troubles(ctx, live)...), "; "))
		}
		rest = append(rest, obj)
	}
	return rest, strings.Join(waiting, "\n"), nil
}

func (c cluster) timedOut(ctx context.Context, open []*unstructured.Unstructured, last string) error {
	if last == "" { // the time went by waiting for others
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLook)
		defer cancel()
		rest, text, err := c.look(ctx, open)
		if err == nil && len(rest) == 0 {
			return nil
		}
		last = cmp.Or(text, title(open[0]))
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return fmt.Errorf("interrupted while waiting for:\n%s", indent(last))
	}
	return fmt.Errorf("not ready in time:\n%s\nwhat was applied stays and goes on trying; `ambit check` looks again", indent(last))
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

// maxTroubles bounds how many pods are talked about; on many nodes it is
// mostly the same trouble.
const maxTroubles = 3

// troubles says why a workload is not ready: what its pods wait for.
func (c cluster) troubles(ctx context.Context, workload *unstructured.Unstructured) []string {
	selector, _, _ := unstructured.NestedStringMap(workload.Object, "spec", "selector", "matchLabels")
	if len(selector) == 0 {
		return nil
	}
	ns := workload.GetNamespace()
	pods, err := c.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: selector})})
	if err != nil {
		return nil
	}
	events, err := c.Kube.CoreV1().Events(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		events = &corev1.EventList{}
	}
	var out []string
	add := func(s string) {
		if s != "" && !slices.Contains(out, s) && len(out) < maxTroubles {
			out = append(out, s)
		}
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		if why := podTrouble(p, events.Items); why != "" {
			add(fmt.Sprintf("pod %s%s: %s%s", p.Name, onNode(p), why, c.lastWords(ctx, p)))
		}
	}
	if len(pods.Items) == 0 {
		add(newest(events.Items, workload.GetKind(), workload.GetName()))
	}
	return out
}

func onNode(p *corev1.Pod) string {
	if p.Spec.NodeName == "" {
		return ""
	}
	return " on " + p.Spec.NodeName
}

// podTrouble says what keeps a pod from being ready, "" for nothing that is
// worth a word yet.
func podTrouble(p *corev1.Pod, events []corev1.Event) string {
	if p.DeletionTimestamp != nil {
		return ""
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return "is not scheduled: " + cond.Message
		}
		if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
			return ""
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			text := w.Reason
			if w.Message != "" {
				text += ": " + firstLine(w.Message)
			}
			if t := s.LastTerminationState.Terminated; t != nil {
				text += fmt.Sprintf(" (ended with %d, %s)", t.ExitCode, t.Reason)
			}
			return text
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("ended with %d, %s", t.ExitCode, t.Reason)
		}
	}
	return newest(events, "Pod", p.Name)
}

// newest is what the last warning about an object says.
func newest(events []corev1.Event, kind, name string) string {
	var last *corev1.Event
	for i := range events {
		e := &events[i]
		if e.Type != corev1.EventTypeWarning || e.InvolvedObject.Kind != kind || e.InvolvedObject.Name != name {
			continue
		}
		if last == nil || when(e).After(when(last)) {
			last = e
		}
	}
	if last == nil {
		return ""
	}
	return last.Reason + ": " + firstLine(last.Message)
}

func when(e *corev1.Event) time.Time {
	if !e.LastTimestamp.IsZero() {
		return e.LastTimestamp.Time
	}
	return e.EventTime.Time
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// lastWords is the end of the log of a container that keeps ending.
func (c cluster) lastWords(ctx context.Context, p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" {
			continue
		}
		lines, limit := int64(1), int64(1024)
		raw, err := c.Kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
			Container: s.Name, Previous: true, TailLines: &lines, LimitBytes: &limit,
		}).DoRaw(ctx)
		if text := firstLine(string(raw)); err == nil && text != "" {
			return "; its last words: " + text
		}
	}
	return ""
}
