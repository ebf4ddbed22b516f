package push

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// cache counts calls, each of which is one atomic change.
type cache struct {
	published [][]xds.Changes
	synced    []string
}

func (c *cache) Publish(u ...xds.Changes)  { c.published = append(c.published, u) }
func (c *cache) MarkSynced(typeURL string) { c.synced = append(c.synced, typeURL) }

func TestAnUpdateIsOneChange(t *testing.T) {
	var c cache
	var counted []string
	p := &Pusher{Cache: &c, Updated: func(url string, set, removed int) { counted = append(counted, fmt.Sprint(url, set, removed)) }}
	r := registry.New(tables.Options{}, p)
	if len(c.published) != 1 || len(c.published[0]) != 1 {
		t.Fatalf("from the start: %v", c.published)
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Spec: corev1.ServiceSpec{ClusterIPs: []string{"10.0.0.1"}}}
	r.Apply([]source.Event{{Key: source.Service.Key("ns", "s"), Object: s}})
	r.Apply([]source.Event{{Key: source.Service.Key("ns", "s")}})
	if len(c.published) != 3 || len(c.published[1]) != 1 || len(c.published[1][0].Set) != 1 || len(c.published[2][0].Removed) != 1 {
		t.Errorf("%v", c.published)
	}
	if len(counted) != 3 {
		t.Errorf("counted %q", counted)
	}
	r.Synced()
	if !slices.Equal(c.synced, registry.Types()) {
		t.Errorf("synced %q of %q", c.synced, registry.Types())
	}
}
