package session

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// NodeNames returns the names of the nodes of a lab.
func NodeNames(st *lab.Status) []string {
	var out []string
	for _, n := range st.Nodes {
		out = append(out, n.Name)
	}
	return out
}

// PickZtunnel chooses the pod to ask, nil when there is none at all. Of two on
// one node, as while one replaces the other, it is the younger: that serves new
// connections.
func PickZtunnel(pods []corev1.Pod, name, node string) (*corev1.Pod, error) {
	up := Running(pods)
	slices.SortStableFunc(up, func(a, b corev1.Pod) int { return b.CreationTimestamp.Compare(a.CreationTimestamp.Time) })
	if name == "" && node == "" {
		if up = Running(pods); len(up) == 0 {
			return nil, nil
		}
		return &up[0], nil
	}
	var where []string
	for i, p := range up {
		if name != "" && p.Name == name || name == "" && p.Spec.NodeName == node {
			return &up[i], nil
		}
		where = append(where, p.Name+" on "+p.Spec.NodeName)
	}
	slices.Sort(where)
	what := "pod " + name
	if name == "" {
		what = "ztunnel on node " + node
	}
	if len(where) == 0 {
		return nil, fmt.Errorf("no running %s, and no other ztunnel: `kubectl get pods -A -l %s -o wide` says why", what, PartZtunnel.Selector)
	}
	return nil, fmt.Errorf("no running %s: there are %s", what, strings.Join(where, ", "))
}
