package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const boundService = "apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop%s}\nspec: {selector: {app: p}, ports: [{port: 80, targetPort: %s}]}\n---\n"

const atAddress = "{type: IPAddress, value: 10.0.0.77}"

// doors returns the peers that the pod p admits, by the policy that it names.
func doors(t *testing.T, rec *recorder, uid string) string {
	t.Helper()
	var names []string
	for _, n := range rec.workload(t, uid).AuthorizationPolicies {
		if derived(n) {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return ""
	}
	body, there := rec.policies[names[0]]
	if !there || len(names) > 1 {
		t.Fatalf("it names %v, and there is %v", names, slices.Collect(maps.Keys(rec.policies)))
	}
	var p securitypb.Authorization
	if err := proto.Unmarshal(body, &p); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(binding.Describe(&p), "cluster.local/ns/shop/sa/", "")
}

func TestClosedPods(t *testing.T) {
	const use = ", labels: {istio.io/use-waypoint: wp}"
	gw := fmt.Sprintf(gateway, "", "", atAddress)
	other := strings.ReplaceAll(gw, "name: wp", "name: other")
	all := fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}", "", atAddress)
	note := func(s string) string { return ", labels: {istio.io/use-waypoint: wp}, annotations: {" + s + "}" }
	space := func(s string) string {
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, " + s + "}\n---\n"
	}
	for name, tt := range map[string]struct {
		yaml string
		pod  string // what else is in its metadata
		want string
	}{
		"no waypoint":                      {gw + fmt.Sprintf(boundService, "s", "", "8080"), "", ""},
		"a service":                        {gw + fmt.Sprintf(boundService, "s", use, "8080"), "", "port 8080 admits only wp"},
		"a service that is not its own":    {gw + strings.Replace(fmt.Sprintf(boundService, "s", use, "8080"), "app: p", "app: q", 1), "", ""},
		"a namespace":                      {gw + space("labels: {istio.io/use-waypoint: wp}") + fmt.Sprintf(boundService, "s", "", "8080"), "", "port 8080 admits only wp"},
		"two services, one port":           {gw + fmt.Sprintf(boundService, "s", use, "8080") + fmt.Sprintf(boundService, "free", "", "8080"), "", "port 8080 admits only wp"},
		"two services, two ports":          {gw + fmt.Sprintf(boundService, "s", use, "8080") + fmt.Sprintf(boundService, "free", "", "9090"), "", "port 8080 admits only wp"},
		"two waypoints, one port":          {gw + other + fmt.Sprintf(boundService, "s", use, "8080") + fmt.Sprintf(boundService, "o", ", labels: {istio.io/use-waypoint: other}", "8080"), "", "port 8080 admits only other, wp"},
		"two waypoints, two ports":         {gw + other + fmt.Sprintf(boundService, "s", use, "8080") + fmt.Sprintf(boundService, "o", ", labels: {istio.io/use-waypoint: other}", "9090"), "", "port 8080 admits only wp; port 9090 admits only other"},
		"the pod":                          {all + fmt.Sprintf(boundService, "s", "", "8080"), ", istio.io/use-waypoint: wp", "every port admits only wp"},
		"the pod, for services only":       {gw, ", istio.io/use-waypoint: wp", "every port admits no peer"},
		"all of a namespace":               {all + space("labels: {istio.io/use-waypoint: wp}") + fmt.Sprintf(boundService, "s", "", "8080"), "", "port 8080 admits only wp; other ports admits only wp"},
		"for nothing":                      {fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: none}", "", atAddress) + fmt.Sprintf(boundService, "s", use, "8080"), "", ""},
		"no address":                       {fmt.Sprintf(gateway, "", "", "") + fmt.Sprintf(boundService, "s", use, "8080"), "", "port 8080 admits no peer"},
		"there is none":                    {fmt.Sprintf(boundService, "s", use, "8080"), "", "port 8080 admits no peer"},
		"bypass":                           {gw + fmt.Sprintf(boundService, "s", note("ambit.mesh/waypoint-bypass: allow"), "8080"), "", ""},
		"bypass of none":                   {fmt.Sprintf(boundService, "s", note("ambit.mesh/waypoint-bypass: allow"), "8080"), "", ""},
		"bypass in another word":           {gw + fmt.Sprintf(boundService, "s", note("ambit.mesh/waypoint-bypass: yes please"), "8080"), "", "port 8080 admits only wp"},
		"bypass by the namespace":          {gw + space("annotations: {ambit.mesh/waypoint-bypass: allow}") + fmt.Sprintf(boundService, "s", use, "8080"), "", ""},
		"no bypass, against the namespace": {gw + space("annotations: {ambit.mesh/waypoint-bypass: allow}") + fmt.Sprintf(boundService, "s", note("ambit.mesh/waypoint-bypass: deny"), "8080"), "", "port 8080 admits only wp"},
		"exempt":                           {gw + fmt.Sprintf(boundService, "s", note(`ambit.mesh/waypoint-exempt: "mon/prom, shop/cron"`), "8080"), "", "port 8080 admits only cluster.local/ns/mon/sa/prom, cron, wp"},
		"exempt, and none that is ready":   {fmt.Sprintf(boundService, "s", note(`ambit.mesh/waypoint-exempt: "shop/cron,everybody,*"`), "8080"), "", "port 8080 admits only cron"},
		"another account":                  {strings.Replace(gw, "namespace: shop", "namespace: shop, annotations: {gateway.istio.io/service-account: acc}", 1) + fmt.Sprintf(boundService, "s", use, "8080"), "", "port 8080 admits only acc"},
		"a pod that says it is a proxy":    {gw + fmt.Sprintf(boundService, "s", use, "8080"), ", gateway.networking.k8s.io/gateway-name: wp", "port 8080 admits only wp"},
	} {
		t.Run(name, func(t *testing.T) {
			r, rec := load(t, tt.yaml+pod("p", ", labels: {app: p"+tt.pod+"}"))
			if got := doors(t, rec, "Kubernetes//Pod/shop/p"); got != tt.want {
				t.Errorf("%s, not %s", got, tt.want)
			}
			want := "True " + status.ReasonWaypointRequired
			if tt.want == "" {
				want = ""
			}
			expect(t, r, source.Pod.Name, "p", status.WaypointOnly, want)
			// Without the pod there is no policy either.
			r.Apply([]source.Event{{Key: source.Pod.Key("shop", "p")}})
			for n := range rec.policies {
				if derived(n) {
					t.Errorf("policy %s is left", n)
				}
			}
		})
	}
}

// The proxies of a waypoint are no destinations that it stands before.
func TestProxiesAreNotClosed(t *testing.T) {
	gw := strings.Replace(fmt.Sprintf(gateway, "", "", atAddress), "namespace: shop", "namespace: shop, annotations: {gateway.istio.io/service-account: default}", 1)
	_, rec := load(t, gw+fmt.Sprintf(boundService, "s", ", labels: {istio.io/use-waypoint: wp}", "8080")+pod("p", ", labels: {app: p, gateway.networking.k8s.io/gateway-name: wp}"))
	if got := doors(t, rec, "Kubernetes//Pod/shop/p"); got != "" {
		t.Error(got)
	}
}

// The mesh's administrator can have it Istio's way, and a service the other.
func TestBypassOfTheMesh(t *testing.T) {
	for _, note := range []string{"", ", annotations: {ambit.mesh/waypoint-bypass: deny}"} {
		rec := newRecorder()
		r := New(tables.Options{WaypointBypass: true}, rec)
		r.Apply(events(t, fmt.Sprintf(boundService, "s", ", labels: {istio.io/use-waypoint: wp}"+note, "8080")+pod("p", ", labels: {app: p}")))
		want := ""
		if note != "" {
			want = "port 8080 admits no peer"
		}
		if got := doors(t, rec, "Kubernetes//Pod/shop/p"); got != want {
			t.Errorf("%q: %s", note, got)
		}
		s := rec.service(t, "shop/s.shop.svc.cluster.local")
		if refused := strings.HasSuffix(s.Waypoint.GetHostname().GetHostname(), wellknown.UnavailableWaypoint); refused != (note != "") {
			t.Errorf("%q: %v", note, s.Waypoint)
		}
	}
}

// acks are the clients of a test: which of them accept, and what they waited for.
type acks struct {
	asked chan []xds.Group
	say   chan error
}

func (a acks) Accepted(ctx context.Context, groups []xds.Group) error {
	select {
	case a.asked <- groups:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-a.say:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestTrafficMovesInStages: a service gets a waypoint while clients use it. It is
// announced to that waypoint first, then clients go there, and then its pods are
// closed; away in the reverse order. A waypoint that does not accept is not used.
func TestTrafficMovesInStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := func(meta string) string { return fmt.Sprintf(boundService, "s", meta, "8080") }
		const use = ", labels: {istio.io/use-waypoint: wp}"
		route := "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{group: \"\", kind: Service, name: s}], rules: [{backendRefs: [{name: s, port: 80}]}]}\n---\n"
		rec := newRecorder()
		r := New(tables.Options{}, rec)
		r.Apply(events(t, fmt.Sprintf(gateway, "", "", atAddress)+svc("")+pod("p", ", labels: {app: p}")+route))
		a := acks{make(chan []xds.Group), make(chan error)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Move(ctx, a); close(ended) }()
		synctest.Wait()
		state := func() string {
			s := rec.service(t, "shop/s.shop.svc.cluster.local")
			out := "clients go " + cmp.Or(way(s.Waypoint), "straight")
			for _, w := range s.WeightedWaypoints {
				out += fmt.Sprintf(", accepted %s with weight %d", way(w.Destination), w.Weight)
			}
			return out + fmt.Sprintf(", %d rules, pods: %s", len(rec.rules), doors(t, rec, "Kubernetes//Pod/shop/p"))
		}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := state(); got != want {
				t.Errorf("%s\nnot %s", got, want)
			}
		}
		wait := func(groups []xds.Group, say error) {
			t.Helper()
			if got := <-a.asked; !slices.Equal(got, groups) {
				t.Errorf("it waits for %v, and not for %v", got, groups)
			}
			a.say <- say
			time.Sleep(2 * moveGrace)
		}
		wp := []xds.Group{"gateway/Kubernetes/shop/wp"}
		expect("clients go straight, 0 rules, pods: ")
		r.Apply(events(t, svc(use)))
		expect("clients go straight, accepted there with weight 0, 1 rules, pods: ")
		wait(wp, nil)
		expect("clients go there, 1 rules, pods: ")
		wait(nil, nil)
		expect("clients go there, 1 rules, pods: port 8080 admits only wp")
		r.Apply(events(t, svc("")))
		expect("clients go there, 1 rules, pods: ")
		wait(nil, nil)
		expect("clients go straight, accepted there with weight 0, 1 rules, pods: ")
		wait(nil, nil)
		expect("clients go straight, 0 rules, pods: ")

		// It does not accept: then nothing goes around it any more.
		r.Apply(events(t, svc(use)))
		wait(wp, errors.New("no answer"))
		expect("clients go refused, accepted there with weight 0, 1 rules, pods: port 8080 admits only wp")
		bound := func(want string) {
			t.Helper()
			if got := condition(r, status.WaypointBound); got != want {
				t.Errorf("the condition is %q, not %q", got, want)
			}
		}
		bound(status.ReasonPending)
		// A deleted waypoint is not waited for.
		r.Apply([]source.Event{{Key: source.Gateway.Key("shop", "wp")}})
		expect("clients go refused, 0 rules, pods: port 8080 admits no peer")
		<-a.asked // for a move that is no more
		a.say <- nil
		expect("clients go refused, 0 rules, pods: port 8080 admits no peer")
		// Nor is anything of a service that was deleted left.
		r.Apply([]source.Event{{Key: source.Service.Key("shop", "s")}})
		synctest.Wait()
		if len(r.moves.under) > 0 || doors(t, rec, "Kubernetes//Pod/shop/p") != "" {
			t.Errorf("moves %v, pods: %s", r.moves.under, doors(t, rec, "Kubernetes//Pod/shop/p"))
		}
		// A new service is refused until its waypoint has accepted it.
		r.Apply(events(t, fmt.Sprintf(gateway, "", "", atAddress)))
		r.Apply(events(t, svc(use)))
		expect("clients go refused, accepted there with weight 0, 1 rules, pods: port 8080 admits only wp")
		wait(wp, nil)
		wait(nil, nil)
		expect("clients go there, 1 rules, pods: port 8080 admits only wp")
		bound(status.ReasonWaypointAccepted)
		cancel()
		<-ended
	})
}

// TestEndpointsBehindWaypoint: clients are sent that the endpoints of a service admit only
// its waypoint, and which accounts go there directly.
func TestEndpointsBehindWaypoint(t *testing.T) {
	gw := fmt.Sprintf(gateway, "", "", atAddress)
	note := func(s string) string { return ", labels: {istio.io/use-waypoint: wp}, annotations: {" + s + "}" }
	for name, tt := range map[string]struct{ yaml, want string }{
		"no waypoint":      {gw + fmt.Sprintf(boundService, "s", "", "8080"), ""},
		"a waypoint":       {gw + fmt.Sprintf(boundService, "s", note("a: b"), "8080"), "taken, behind but for cluster.local/ns/shop/sa/wp"},
		"exempt":           {gw + fmt.Sprintf(boundService, "s", note(`ambit.mesh/waypoint-exempt: "mon/prom"`), "8080"), "taken, behind but for cluster.local/ns/mon/sa/prom cluster.local/ns/shop/sa/wp"},
		"bypass":           {gw + fmt.Sprintf(boundService, "s", note("ambit.mesh/waypoint-bypass: allow"), "8080"), ""},
		"none that exists": {fmt.Sprintf(boundService, "s", note("a: b"), "8080"), "taken, behind but for "},
		"an entry": {gw + `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {hosts: [s.shop.svc.cluster.local], addresses: [10.96.0.9], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {app: p}}}
---
`, "taken, behind but for cluster.local/ns/shop/sa/wp"},
	} {
		t.Run(name, func(t *testing.T) {
			_, rec := load(t, tt.yaml+pod("p", ", labels: {app: p}"))
			got := ""
			for _, e := range rec.service(t, "shop/s.shop.svc.cluster.local").Extensions {
				switch e.Name {
				case wellknown.ExtensionEndpointsTaken:
					got += "taken"
				case wellknown.ExtensionEndpoints:
					list := &structpb.ListValue{}
					if err := e.Config.UnmarshalTo(list); err != nil {
						t.Fatal(err)
					}
					var names []string
					for _, v := range list.Values {
						names = append(names, v.GetStringValue())
					}
					got += ", behind but for " + strings.Join(names, " ")
				}
			}
			if got != tt.want {
				t.Errorf("%q, not %q", got, tt.want)
			}
		})
	}
}
