// Package live reads the objects of a mesh as they are now, from a cluster or a lab.
package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/source"
)

// ObjectName is Kind namespace/name, empty for none.
func ObjectName(k source.Key) string {
	switch {
	case k == (source.Key{}):
		return ""
	case k.Namespace == "":
		return k.Kind.String() + " " + k.Name
	}
	return k.Kind.String() + " " + k.Namespace + "/" + k.Name
}

// Typed lists the objects of a kind as what they are; none, if the cluster does
// not know the kind.
func Typed[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, c *client.Client, kind source.Of[P], namespace string) ([]P, error) {
	var out []P
	var broken error
	err := EachOfKind(ctx, c, kind.Kind, namespace, func(u *unstructured.Unstructured) {
		v := P(new(T))
		b, err := json.Marshal(u.Object)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			broken = errors.Join(broken, fmt.Errorf("%s %s/%s: %w", kind.Kind, u.GetNamespace(), u.GetName(), err))
			return
		}
		out = append(out, v)
	})
	return out, errors.Join(err, broken)
}

// Objects are those of a kind, of one namespace or of all.
func Objects[P metav1.Object](events []source.Event, kind source.Of[P], namespace string) []P {
	var out []P
	for _, e := range events {
		if o, ok := e.Object.(P); ok && e.Key.Kind == kind.Kind && (namespace == "" || e.Key.Namespace == namespace) {
			out = append(out, o)
		}
	}
	return out
}

// One is the object of a name, nil if there is none.
func One[P metav1.Object](events []source.Event, kind source.Of[P], namespace, name string) (none P) {
	for _, e := range events {
		if o, ok := e.Object.(P); ok && e.Key == kind.Key(namespace, name) {
			return o
		}
	}
	return none
}

// Values returns what a list points to.
func Values[T any](list []*T) []T {
	out := make([]T, 0, len(list))
	for _, p := range list {
		out = append(out, *p)
	}
	return out
}

// NamesOf returns the names of objects, in order.
func NamesOf[T metav1.Object](list []T) []string {
	out := make([]string, 0, len(list))
	for _, o := range list {
		out = append(out, o.GetName())
	}
	return out
}
