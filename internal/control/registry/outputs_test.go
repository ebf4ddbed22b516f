package registry

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const demo = `
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u1, labels: {app: web}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, uid: u2, labels: {app: web}}
spec: {nodeName: n1}
status: {phase: Running, podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}
`

// A dump of a type needs its message.
func TestMessagesOfAllTypesAreLinked(t *testing.T) {
	for _, url := range Types() {
		if _, err := protoregistry.GlobalTypes.FindMessageByURL(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// TestDumpsAreWhatWasPublished: what all updates together say is what there is,
// of every type.
func TestDumpsAreWhatWasPublished(t *testing.T) {
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	r.Apply(events(t, demo+"---\n"+fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}", "", "")+
		"apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {ports: [{port: 80}]}\n---\n"+
		routeYAML(`{group: "", kind: Service, name: api}`)+
		"---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: targeted, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: api}], rules: [{}]}\n"+
		"---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: tokens, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: api}], jwtRules: [{issuer: a, jwksUri: 'https://a/keys'}]}\n"+
		"---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: api, namespace: shop}\nspec: {host: api, trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}}\n"+
		"---\napiVersion: ambit.mesh/v1alpha1\nkind: RateLimit\nmetadata: {name: web, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: web}], connections: [{rate: 1}]}\n"+
		"---\napiVersion: ambit.mesh/v1alpha1\nkind: EgressPolicy\nmetadata: {name: none, namespace: shop}\nspec: {}\n"+
		"---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: shop}\nspec: {hosts: ['*.wild.test'], resolution: NONE, ports: [{number: 80, name: http}]}\n"))
	r.Apply([]source.Event{{Key: source.Pod.Key("shop", "web-1")}})
	published := map[string]map[string][]byte{wellknown.TypeAddress: rec.addresses, wellknown.TypeAuthorization: rec.policies, wellknown.TypePolicy: rec.requests, wellknown.TypeAuthentication: rec.tokens, wellknown.TypeRoute: rec.rules, wellknown.TypeTelemetry: rec.layers, wellknown.TypeTraffic: rec.traffic, wellknown.TypeRateLimit: rec.limits, wellknown.TypeEgress: rec.egress, wellknown.TypeHost: rec.hosts}
	all := r.Resources()
	if len(all) != len(Types()) {
		t.Fatalf("%d types of %d", len(all), len(Types()))
	}
	for i, of := range all {
		var names []string
		for _, res := range of.Set {
			names = append(names, res.Name)
		}
		if of.TypeURL != Types()[i] || len(names) == 0 || !slices.IsSorted(names) {
			t.Errorf("%s: %q", of.TypeURL, names)
		}
		if want := slices.Sorted(maps.Keys(published[of.TypeURL])); !slices.Equal(names, want) {
			t.Errorf("%s: a dump has %q, published were %q", of.TypeURL, names, want)
		}
	}
}

// TestFurtherTypeOfOutput adds a type as a second xDS family would.
func TestFurtherTypeOfOutput(t *testing.T) {
	const url = "type.example/Route"
	before := outputs
	t.Cleanup(func() { outputs = before })
	var routes *tables.Resources
	outputs = append(slices.Clone(before), output{
		typeURL: url,
		collections: func(t *tables.Tables) []*tables.Resources {
			if routes == nil {
				routes = collection.Map(t.Services, "routes", tables.SameResource, func(_ *collection.Reader, name string, s *xds.Resource) (*xds.Resource, bool) {
					return xds.NewResource(url, "route "+name, nil, s.Body), true
				})
			}
			return []*tables.Resources{routes}
		},
		fixed: func(tables.Options) []*xds.Resource {
			return []*xds.Resource{xds.NewResource(url, "default", nil, nil)}
		},
	})
	rec := newRecorder()
	r := New(tables.Options{}, rec)
	if len(rec.last) != 2 || rec.last[1].TypeURL != url || rec.last[1].Set[0].Name != "default" {
		t.Errorf("from the start: %+v", rec.last)
	}
	r.Apply(events(t, demo))
	if last := rec.last[len(rec.last)-1]; last.TypeURL != url || len(last.Set) == 0 {
		t.Errorf("update: %+v", rec.last)
	}
	if last := r.Resources()[len(before)]; last.TypeURL != url || len(last.Set) < 2 {
		t.Errorf("dump: %+v", last)
	}
}
