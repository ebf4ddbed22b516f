package registry

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// endpointsOf renders the endpoints of a service: who is reached how, on
// service port>target port, and whether it is ready.
func endpointsOf(t *testing.T, rec *recorder, service string) []string {
	t.Helper()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(rec.addresses)) {
		w := rec.address(t, name).GetWorkload()
		list := w.GetServices()[service]
		if list == nil {
			continue
		}
		ports := ""
		for _, p := range list.Ports {
			ports += fmt.Sprintf(" %d>%d", p.ServicePort, p.TargetPort)
		}
		_, kind, _ := strings.Cut(w.Uid, "/")
		out = append(out, fmt.Sprintf("%s as %s/%s by %s%s %s", kind, w.Namespace, w.ServiceAccount, w.TunnelProtocol, ports, w.Status))
	}
	return out
}

func expectEndpoints(t *testing.T, rec *recorder, service string, want ...string) {
	t.Helper()
	if got := endpointsOf(t, rec, service); !slices.Equal(got, want) {
		t.Errorf("endpoints of %s:\n%s\nwant\n%s", service, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// An endpoint at a pod's address is that pod, whatever object says so.
func TestEndpointsThatArePods(t *testing.T) {
	const machine = `
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: %s}
spec: {address: %s, labels: {app: %s}, weight: 7%s}
`
	legacy := claim("shop", "legacy", early, `hosts: [legacy.test], addresses: [240.0.0.3]`)
	at := func(address string) string { return strings.Replace(legacy, "10.9.9.9", address, 1) }
	selecting := strings.Replace(legacy, "endpoints: [{address: 10.9.9.9}]", "workloadSelector: {labels: {app: old}}", 1)
	t.Run("inline", func(t *testing.T) {
		_, rec := load(t, owners+at("10.1.0.5"))
		expectEndpoints(t, rec, "shop/legacy.test", "networking.istio.io/ServiceEntry/shop/legacy/10.1.0.5 as shop/web by HBONE 80>80 HEALTHY")
		w := rec.workload(t, "Kubernetes/networking.istio.io/ServiceEntry/shop/legacy/10.1.0.5")
		if w.NetworkMode != workloadpb.NetworkMode_HOST_NETWORK || w.Node != "node1" || w.Name == "web" {
			t.Errorf("it must not be taken for the pod itself: %v", w)
		}
		expectEndpoints(t, rec, "shop/web.shop.svc.cluster.local", "/Pod/shop/web as shop/web by HBONE 80>8080 HEALTHY")
	})
	t.Run("inline, IPv6, of another namespace", func(t *testing.T) {
		_, rec := load(t, owners+strings.Replace(at("'fd01::5'"), "namespace: shop", "namespace: other", 1))
		expectEndpoints(t, rec, "other/legacy.test", "networking.istio.io/ServiceEntry/other/legacy/fd01::5 as shop/web by HBONE 80>80 HEALTHY")
	})
	t.Run("of the node's network", func(t *testing.T) {
		_, rec := load(t, owners+at("192.0.2.11"))
		expectEndpoints(t, rec, "shop/legacy.test", "networking.istio.io/ServiceEntry/shop/legacy/192.0.2.11 as shop/default by NONE 80>80 HEALTHY")
	})
	t.Run("in another network", func(t *testing.T) {
		_, rec := load(t, owners+at("10.1.0.5, network: far"))
		expectEndpoints(t, rec, "shop/legacy.test", "networking.istio.io/ServiceEntry/shop/legacy/10.1.0.5 as shop/default by NONE 80>80 HEALTHY")
	})
	t.Run("a WorkloadEntry", func(t *testing.T) {
		r, rec := load(t, owners+selecting+fmt.Sprintf(machine, "shop", "10.1.0.5", "old", ", ports: {http: 9000}"))
		expectEndpoints(t, rec, "shop/legacy.test", "networking.istio.io/WorkloadEntry/shop/vm as shop/web by HBONE 80>9000 HEALTHY")
		if c := rec.workload(t, "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm").Capacity.GetValue(); c != 7 {
			t.Errorf("weight %d", c)
		}
		// The pod leaves the mesh, and the entry with it.
		r.Apply(events(t, strings.Replace(owners, "annotations: {ambient.istio.io/redirection: enabled}", "", 1)))
		expectEndpoints(t, rec, "shop/legacy.test", "networking.istio.io/WorkloadEntry/shop/vm as shop/web by NONE 80>9000 HEALTHY")
	})
	t.Run("a WorkloadEntry of what selects the pod", func(t *testing.T) {
		_, rec := load(t, owners+fmt.Sprintf(machine, "shop", "10.1.0.5", "web", ""))
		expectEndpoints(t, rec, "shop/web.shop.svc.cluster.local", "/Pod/shop/web as shop/web by HBONE 80>8080 HEALTHY")
	})
	t.Run("a WorkloadEntry elsewhere", func(t *testing.T) {
		_, rec := load(t, owners+fmt.Sprintf(machine, "shop", "10.9.9.9", "web", ""))
		expectEndpoints(t, rec, "shop/web.shop.svc.cluster.local", "/Pod/shop/web as shop/web by HBONE 80>8080 HEALTHY",
			"networking.istio.io/WorkloadEntry/shop/vm as shop/default by NONE 80>8080 HEALTHY")
	})
}

const leader = `
---
apiVersion: v1
kind: Service
metadata: {name: leader, namespace: shop}
spec: {clusterIP: 10.96.0.20, PUBLISH ports: [{name: pg, port: 5432}, {name: admin, port: 81}]}
`

func slice(name, port string, endpoints ...string) string {
	return fmt.Sprintf(`
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, namespace: shop, labels: {kubernetes.io/service-name: leader}}
addressType: IPv4
ports: [%s]
endpoints: [%s]
`, name, port, strings.Join(endpoints, ", "))
}

// Whether an endpoint receives connections is said by the slice, as for
// kube-proxy, and slices of one Service add up.
func TestReadinessOfSlices(t *testing.T) {
	const (
		key = "shop/leader.shop.svc.cluster.local"
		pg  = "{name: pg, port: 9000}"
		adm = "{name: admin, port: 9100}"
		pod = "addresses: [10.1.0.5], targetRef: {kind: Pod, name: web, namespace: shop}"
		raw = "addresses: [10.1.0.5]"
		ext = "addresses: [10.9.9.9]"
	)
	e := func(what, conditions string) string { return "{" + what + ", conditions: {" + conditions + "}}" }
	unready := strings.Replace(owners, `status: "True"`, `status: "False"`, 1)
	own := strings.Replace(leader, "PUBLISH", "", 1)
	publish := strings.Replace(leader, "PUBLISH", "publishNotReadyAddresses: true,", 1)
	for _, tc := range []struct {
		name, yaml string
		want       []string
	}{
		{"ready", owners + own + slice("a", pg, e(pod, "ready: true")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"nothing is said", owners + own + slice("a", pg, e(pod, "")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"not ready", owners + own + slice("a", pg, e(pod, "ready: false")), []string{"discovery.k8s.io/EndpointSlice/shop/a/web as shop/web by HBONE 5432>9000 UNHEALTHY"}},
		{"the pod is not", unready + own + slice("a", pg, e(pod, "ready: true")), []string{"discovery.k8s.io/EndpointSlice/shop/a/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"neither is", unready + own + slice("a", pg, e(pod, "ready: false")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 UNHEALTHY"}},
		{"published", owners + publish + slice("a", pg, e(pod, "ready: false")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"serves while it terminates", unready + own + slice("a", pg, e(pod, "ready: false, serving: true, terminating: true")), []string{"discovery.k8s.io/EndpointSlice/shop/a/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"serves, and another one is ready", unready + own + slice("a", pg, e(pod, "ready: false, serving: true, terminating: true")) + slice("b", pg, e(ext, "ready: true")),
			[]string{"/Pod/shop/web as shop/web by HBONE 5432>9000 UNHEALTHY", "discovery.k8s.io/EndpointSlice/shop/b/10.9.9.9 as shop/ by NONE 5432>9000 HEALTHY"}},
		{"no longer serves", owners + own + slice("a", pg, e(pod, "ready: false, serving: false, terminating: true")), []string{"discovery.k8s.io/EndpointSlice/shop/a/web as shop/web by HBONE 5432>9000 UNHEALTHY"}},
		{"two slices", owners + own + slice("a", pg, e(pod, "ready: true")) + slice("b", adm, e(pod, "ready: true")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 81>9100 HEALTHY"}},
		{"two slices of two minds", owners + own + slice("a", pg, e(pod, "ready: false")) + slice("b", adm, e(pod, "ready: true")),
			[]string{"/Pod/shop/web as shop/web by HBONE 81>9100 HEALTHY", "discovery.k8s.io/EndpointSlice/shop/a/web as shop/web by HBONE 5432>9000 UNHEALTHY"}},
		{"by address alone", owners + own + slice("a", pg, e(raw, "ready: true")), []string{"discovery.k8s.io/EndpointSlice/shop/a/10.1.0.5 as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"by address alone, not ready", owners + own + slice("a", pg, e(raw, "ready: false")), []string{"discovery.k8s.io/EndpointSlice/shop/a/10.1.0.5 as shop/web by HBONE 5432>9000 UNHEALTHY"}},
		{"by name and by address", owners + own + slice("a", pg, e(pod, "ready: true")) + slice("b", pg, e(raw, "ready: true")), []string{"/Pod/shop/web as shop/web by HBONE 5432>9000 HEALTHY"}},
		{"an address in two slices", owners + own + slice("a", pg, e(raw, "ready: true")) + slice("b", pg+", "+adm, e(raw, "ready: true")),
			[]string{"discovery.k8s.io/EndpointSlice/shop/a/10.1.0.5 as shop/web by HBONE 5432>9000 HEALTHY", "discovery.k8s.io/EndpointSlice/shop/b/10.1.0.5 as shop/web by HBONE 81>9100 HEALTHY"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, rec := load(t, tc.yaml)
			expectEndpoints(t, rec, key, tc.want...)
			for _, p := range rec.service(t, key).Ports {
				if p.TargetPort != 0 {
					t.Errorf("port %d has target %d for endpoints that do not have it", p.ServicePort, p.TargetPort)
				}
			}
		})
	}
}

// Entries of one host in one namespace are one service: ports and addresses
// add up, and endpoints have the ports of their own entry.
func TestEntriesOfOneHost(t *testing.T) {
	entry := func(namespace, name, created, port, rest string) string {
		return strings.Replace(claim(namespace, name, created, "hosts: [db.test], "+rest), "ports: [{number: 80, name: http}]", "ports: ["+port+"]", 1)
	}
	a := entry("shop", "db-a", early, "{number: 8080, name: a}", "addresses: [240.9.0.1]")
	b := strings.Replace(entry("shop", "db-b", late, "{number: 9000, name: b}", "addresses: [240.9.0.1, 240.9.0.2]"), "10.9.9.9", "10.9.9.8", 1)
	ports := func(rec *recorder, name string) (out []string) {
		for _, p := range rec.service(t, name).Ports {
			out = append(out, fmt.Sprintf("%d>%d", p.ServicePort, p.TargetPort))
		}
		return out
	}
	const inline = "networking.istio.io/ServiceEntry/shop/"
	first, second := inline+"db-a/10.9.9.9 as shop/default by NONE 8080>8080 HEALTHY", inline+"db-b/10.9.9.8 as shop/default by NONE 9000>9000 HEALTHY"
	r, rec := load(t, owners+b+a)
	if got := ports(rec, "shop/db.test"); !slices.Equal(got, []string{"8080>0", "9000>0"}) {
		t.Errorf("ports %v", got)
	}
	if got := addressesOf(t, rec, "shop/db.test"); !slices.Equal(got, []string{"240.9.0.1", "240.9.0.2"}) {
		t.Errorf("addresses %v", got)
	}
	expectEndpoints(t, rec, "shop/db.test", first, second)
	// One of them has another host now.
	r.Apply(events(t, strings.Replace(a, "db.test", "other.test", 1)))
	expectEndpoints(t, rec, "shop/db.test", second)
	if got := ports(rec, "shop/db.test"); !slices.Equal(got, []string{"9000>9000"}) {
		t.Errorf("ports of the one that is left: %v", got)
	}
	r.Apply(events(t, a))
	expectEndpoints(t, rec, "shop/db.test", first, second)

	t.Run("of two namespaces", func(t *testing.T) {
		_, rec := load(t, owners+a+strings.Replace(b, "namespace: shop", "namespace: other", 1))
		if got := ports(rec, "shop/db.test"); !slices.Equal(got, []string{"8080>8080"}) {
			t.Errorf("ports %v", got)
		}
		expectEndpoints(t, rec, "shop/db.test", first)
	})
	t.Run("one for its namespace only", func(t *testing.T) {
		_, rec := load(t, owners+a+strings.Replace(b, "hosts: [db.test]", `hosts: [db.test], exportTo: ["."]`, 1))
		if v := rec.service(t, "shop/db.test").Visibility; v != workloadpb.Service_NAMESPACE {
			t.Errorf("visible to %v", v)
		}
	})
	t.Run("of a Kubernetes Service", func(t *testing.T) {
		r, rec := load(t, owners+strings.Replace(a, "db.test", "web.shop.svc.cluster.local", 1))
		if got := ports(rec, "shop/web.shop.svc.cluster.local"); !slices.Equal(got, []string{"80>8080"}) {
			t.Errorf("ports %v", got)
		}
		expectEndpoints(t, rec, "shop/web.shop.svc.cluster.local", "/Pod/shop/web as shop/web by HBONE 80>8080 HEALTHY")
		if got := claimsOf(r, "shop", "db-a"); !strings.HasPrefix(got, "HostOfService: ") {
			t.Errorf("status %q", got)
		}
	})
	t.Run("by name", func(t *testing.T) {
		dns := func(y string) string {
			return strings.Replace(y, "resolution: STATIC, endpoints: [{address: 10.9.9.9}]", "resolution: DNS", 1)
		}
		_, rec := load(t, owners+dns(a)+dns(strings.Replace(b, "10.9.9.8", "10.9.9.9", 1)))
		expectEndpoints(t, rec, "shop/db.test", inline+"db-a/db.test as shop/default by NONE 8080>8080 HEALTHY", inline+"db-b/db.test as shop/default by NONE 9000>9000 HEALTHY")
	})
}

// The port of a pod is found by the name of the entry's port.
func TestEntryPortByName(t *testing.T) {
	selecting := strings.Replace(claim("shop", "alias", early, "hosts: [alias.test], addresses: [240.9.0.2]"), "endpoints: [{address: 10.9.9.9}]", "workloadSelector: {labels: {app: web}}", 1)
	named := func(port int) string {
		return strings.Replace(owners, "serviceAccountName: web}", fmt.Sprintf("serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: %d}]}]}", port), 1)
	}
	for yaml, want := range map[string]string{
		owners + selecting:      "80>80",
		named(8080) + selecting: "80>8080",
		named(8081) + selecting: "80>8081",
		named(8080) + strings.Replace(selecting, "name: http}", "name: http, targetPort: 81}", 1):  "80>8080", // as in Istio
		named(8080) + strings.Replace(selecting, "name: http}", "name: other, targetPort: 81}", 1): "80>81",
	} {
		_, rec := load(t, yaml)
		expectEndpoints(t, rec, "shop/alias.test", "/Pod/shop/web as shop/web by HBONE "+want+" HEALTHY")
	}
}
