package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// Described returns the kinds whose status shows what the mesh made of them.
func Described() (out []*source.Kind) {
	for _, k := range source.Kinds() {
		if k.StatusWritten || k == source.Gateway.Kind {
			out = append(out, k)
		}
	}
	return out
}

// pageSize bounds one answer of the API server, in objects.
const pageSize = 500

// liveStatus reads the conditions of objects from the API server.
func liveStatus(ctx context.Context, k *session.Kube, c *client.Client, namespace string) ([]Object, error) {
	out := []Object{}
	for _, d := range Described() {
		err := EachOfKind(ctx, c, d, namespace, func(u *unstructured.Unstructured) {
			o := objectOf(d, u)
			if len(o.Conditions)+len(o.Entries) == 0 && !d.Builtin && !d.Shared {
				o.Conditions = []Condition{{"-", "Unknown", "NotSeen", "ambitd has not written a status: `ambit proxy-status` shows whether it runs, `kubectl get leases -n " + k.IstioNamespace + "` who writes"}}
			}
			if len(o.Conditions)+len(o.Entries) > 0 {
				out = append(out, o)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// objectOf takes an object's conditions; of what does not look like conditions
// there are none.
func objectOf(kind *source.Kind, u *unstructured.Unstructured) Object {
	o := Object{Kind: kind.Name, Namespace: u.GetNamespace(), Name: u.GetName(), Conditions: []Condition{}}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	o.Conditions = readConditions(list)
	for _, l := range entryLists {
		entries, _, _ := unstructured.NestedSlice(u.Object, "status", l.list)
		for _, e := range entries {
			fields, _ := e.(map[string]any)
			key, err := json.Marshal(fields[l.key])
			have, _ := fields["conditions"].([]any)
			if conditions := readConditions(have); err == nil && len(conditions) > 0 {
				o.Entries = append(o.Entries, entryRow{List: l.list, Key: key, Conditions: conditions})
			}
		}
	}
	return o
}

func readConditions(list []any) []Condition {
	out := []Condition{}
	if b, err := json.Marshal(list); err == nil && len(list) > 0 {
		_ = json.Unmarshal(b, &out)
	}
	return out
}

// Object is one of /debug/status.
type Object struct {
	Kind       string      `json:"kind"`
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	File       string      `json:"file,omitempty"`
	Line       int         `json:"line,omitempty"`
	Conditions []Condition `json:"conditions"`
	Entries    []entryRow  `json:"entries,omitempty"`
}

// entryRow is an entry of a list of a status, such as a parent of a route.
type entryRow struct {
	List       string          `json:"list"`
	Key        json.RawMessage `json:"key"`
	Conditions []Condition     `json:"conditions"`
}

// Label returns the list and the name that an entry is found by.
func (e entryRow) Label() string {
	var ref struct{ Namespace, Name string }
	if json.Unmarshal(e.Key, &ref.Name) != nil {
		_ = json.Unmarshal(e.Key, &ref) // a reference; what has no name is shown without
	}
	return e.List + " " + strings.TrimPrefix(ref.Namespace+"/"+ref.Name, "/")
}

// Condition is one condition of a status.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Problem is one of /debug/problems.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Field   string `json:"field"`
	Message string `json:"message"`
	Ignored bool   `json:"ignored"`
}

// Status asks the cluster's API, or ambitd.
func Status(ctx context.Context, c *session.AdminClient) ([]Object, []Problem, error) {
	if c.Cluster() {
		cl, err := c.Client()
		if err != nil {
			return nil, nil, err
		}
		objects, err := liveStatus(ctx, &c.Kube, cl, c.Namespace)
		return objects, []Problem{}, err
	}
	rawStatus, err := c.Get(ctx, "/debug/status")
	if err != nil {
		return nil, nil, err
	}
	rawProblems, err := c.Get(ctx, "/debug/problems")
	if err != nil {
		return nil, nil, err
	}
	var objects []Object
	var problems []Problem
	if err := errors.Join(json.Unmarshal(rawStatus, &objects), json.Unmarshal(rawProblems, &problems)); err != nil {
		return nil, nil, fmt.Errorf("ambitd's answer: %w", err)
	}
	return objects, problems, nil
}
