package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/api/admin"
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
func liveStatus(ctx context.Context, k *session.Kube, c *client.Client, namespace string) ([]admin.Object, error) {
	out := []admin.Object{}
	for _, d := range Described() {
		err := EachOfKind(ctx, c, d, namespace, func(u *unstructured.Unstructured) {
			o := objectOf(d, u)
			if len(o.Conditions)+len(o.Entries) == 0 && !d.Builtin && !d.Shared {
				o.Conditions = []admin.Condition{{Type: "-", Status: "Unknown", Reason: "NotSeen", Message: "ambitd has not written a status: `ambit proxy-status` shows whether it runs, `kubectl get leases -n " + k.IstioNamespace + "` who writes"}}
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
func objectOf(kind *source.Kind, u *unstructured.Unstructured) admin.Object {
	o := admin.Object{Kind: kind.Name, Namespace: u.GetNamespace(), Name: u.GetName(), Conditions: []admin.Condition{}}
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	o.Conditions = readConditions(list)
	for _, l := range entryLists {
		entries, _, _ := unstructured.NestedSlice(u.Object, "status", l.list)
		for _, e := range entries {
			fields, _ := e.(map[string]any)
			key, err := json.Marshal(fields[l.key])
			have, _ := fields["conditions"].([]any)
			if conditions := readConditions(have); err == nil && len(conditions) > 0 {
				o.Entries = append(o.Entries, admin.ObjectEntry{List: l.list, Key: key, Conditions: conditions})
			}
		}
	}
	return o
}

func readConditions(list []any) []admin.Condition {
	out := []admin.Condition{}
	if b, err := json.Marshal(list); err == nil && len(list) > 0 {
		_ = json.Unmarshal(b, &out)
	}
	return out
}

// Label returns the list of an entry, and the name that it is found by.
func Label(e *admin.ObjectEntry) string {
	var ref struct{ Namespace, Name string }
	if json.Unmarshal(e.Key, &ref.Name) != nil {
		_ = json.Unmarshal(e.Key, &ref) // a reference; what has no name is shown without
	}
	return e.List + " " + strings.TrimPrefix(ref.Namespace+"/"+ref.Name, "/")
}

// Status asks the cluster's API, or ambitd.
func Status(ctx context.Context, c *session.AdminClient) ([]admin.Object, []admin.Problem, error) {
	if c.Cluster() {
		cl, err := c.Client()
		if err != nil {
			return nil, nil, err
		}
		objects, err := liveStatus(ctx, &c.Kube, cl, c.Namespace)
		return objects, []admin.Problem{}, err
	}
	rawStatus, err := c.Get(ctx, admin.PathStatus)
	if err != nil {
		return nil, nil, err
	}
	rawProblems, err := c.Get(ctx, admin.PathProblems)
	if err != nil {
		return nil, nil, err
	}
	var objects []admin.Object
	var problems []admin.Problem
	if err := errors.Join(json.Unmarshal(rawStatus, &objects), json.Unmarshal(rawProblems, &problems)); err != nil {
		return nil, nil, fmt.Errorf("ambitd's answer: %w", err)
	}
	return objects, problems, nil
}
