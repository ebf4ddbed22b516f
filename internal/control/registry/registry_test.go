package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// events reads YAML through the file source, as in life.
func events(t testing.TB, yaml string) []source.Event {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir+"/x.yaml", yaml)
	list, problems := file.Load(file.Options{ConfigDirs: []string{dir}})
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	return list
}

func load(t testing.TB, yaml string) (*Registry, *recorder) {
	t.Helper()
	rec := newRecorder()
	r := New(tables.Options{Network: "n1"}, rec)
	list := events(t, yaml)
	r.Apply(list)
	sameFromTrimmed(t, list, r, rec)
	return r, rec
}

func (r *recorder) address(t testing.TB, name string) *workloadpb.Address {
	t.Helper()
	body, ok := r.addresses[name]
	if !ok {
		var have []string
		for n := range r.addresses {
			have = append(have, n)
		}
		t.Fatalf("no %s; there are %q", name, have)
	}
	a := &workloadpb.Address{}
	if err := proto.Unmarshal(body, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// equal compares a message with its JSON.
func equal(t *testing.T, want string, got proto.Message) {
	t.Helper()
	w := got.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal([]byte(want), w); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(w, got) {
		t.Errorf("got  %s\nwant %s", protojson.Format(got), protojson.Format(w))
	}
}

func TestAPodBecomesAWorkload(t *testing.T) {
	_, rec := load(t, `
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, topology.istio.io/subzone: r2}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-5d4f-x
  namespace: shop
  labels: {app: web, version: v2, pod-template-hash: 5d4f}
  annotations: {ambient.istio.io/redirection: enabled}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, uid: u, controller: true}]
spec:
  nodeName: n1
  serviceAccountName: web
  containers:
  - {name: c, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}
  initContainers:
  - {name: i, restartPolicy: Always, ports: [{name: admin, containerPort: 9000}]}
  - {name: j, ports: [{name: never, containerPort: 9001}]}
status: {phase: Running, podIP: 10.0.0.5, podIPs: [{ip: 10.0.0.5}, {ip: "fd00::5"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIPs: [10.96.0.1, "fd96::1"]
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: grpc-api, port: 81}
  - {name: admin, port: 82, targetPort: admin}
  - {name: gone, port: 83, targetPort: never}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {selector: {app: web, version: v1}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: elsewhere}
spec: {selector: {app: web}, clusterIP: None, ports: [{port: 80}]}
`)
	equal(t, `{"uid":"Kubernetes//Pod/shop/web-5d4f-x","name":"web-5d4f-x","namespace":"shop","addresses":["CgAABQ==","/QAAAAAAAAAAAAAAAAAABQ=="],
		"network":"n1","tunnelProtocol":"HBONE","serviceAccount":"web","node":"n1","canonicalName":"web","canonicalRevision":"v2",
		"workloadType":"DEPLOYMENT","workloadName":"web","clusterId":"Kubernetes","locality":{"region":"eu","zone":"eu-1","subzone":"r2"},
		"services":{"shop/web.shop.svc.cluster.local":{"ports":[{"servicePort":80,"targetPort":8080,"appProtocol":"HTTP11"},{"servicePort":81,"targetPort":81,"appProtocol":"GRPC"},{"servicePort":82,"targetPort":9000}]}}}`,
		rec.workload(t, "Kubernetes//Pod/shop/web-5d4f-x"))
	equal(t, `{"name":"web","namespace":"shop","hostname":"web.shop.svc.cluster.local","canonical":true,"ipFamilies":"DUAL",
		"addresses":[{"network":"n1","address":"CmAAAQ=="},{"network":"n1","address":"/ZYAAAAAAAAAAAAAAAAAAQ=="}],
		"ports":[{"servicePort":80,"appProtocol":"HTTP11"},{"servicePort":81,"targetPort":81,"appProtocol":"GRPC"},{"servicePort":82},{"servicePort":83}]}`,
		rec.service(t, "shop/web.shop.svc.cluster.local"))
	if s := rec.service(t, "elsewhere/web.elsewhere.svc.cluster.local"); len(s.Addresses) != 0 {
		t.Errorf("headless, but %v", s.Addresses)
	}
	for _, a := range rec.set(wellknown.TypeAddress) {
		if a.Name == "Kubernetes//Pod/shop/web-5d4f-x" {
			if diff := cmp.Diff([]string{"n1/10.0.0.5", "n1/fd00::5"}, a.Aliases); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func pod(name, extra string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: shop" + extra + "}\nspec: {nodeName: n1, containers: [{name: c}]}\nstatus: {phase: Running, podIP: 10.0.0.9, conditions: [{type: Ready, status: \"True\"}]}\n---\n"
}

func TestPodsThatDiffer(t *testing.T) {
	base := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop%s}\nspec: {containers: [{name: c}]%s}\nstatus: {%s}\n"
	const up = `podIP: 10.0.0.9, phase: Running, conditions: [{type: Ready, status: "True"}]`
	tests := map[string]struct {
		meta, spec, status string
		want               func(*workloadpb.Workload) bool // nil: no workload
	}{
		"no address": {status: "phase: Pending"},
		"ended":      {status: "podIP: 10.0.0.9, phase: Succeeded"},
		"failed":     {status: "podIP: 10.0.0.9, phase: Failed"},
		"pending":    {status: "podIP: 10.0.0.9, phase: Pending", want: func(w *workloadpb.Workload) bool { return w.Status == workloadpb.WorkloadStatus_UNHEALTHY }},
		"not enrolled": {status: up, want: func(w *workloadpb.Workload) bool {
			return w.TunnelProtocol == workloadpb.TunnelProtocol_NONE && w.ServiceAccount == "default"
		}},
		"being deleted": {meta: ", deletionTimestamp: 2026-01-01T00:00:00Z", status: up, want: func(w *workloadpb.Workload) bool { return w.Status == workloadpb.WorkloadStatus_UNHEALTHY }},
		"native tunnel": {meta: ", labels: {networking.istio.io/tunnel: http}", status: up, want: func(w *workloadpb.Workload) bool {
			return w.NativeTunnel && w.TunnelProtocol == workloadpb.TunnelProtocol_HBONE
		}},
		"host network": {meta: ", annotations: {ambient.istio.io/redirection: enabled}", spec: ", hostNetwork: true", status: up, want: func(w *workloadpb.Workload) bool {
			return w.NetworkMode == workloadpb.NetworkMode_HOST_NETWORK && w.TunnelProtocol == workloadpb.TunnelProtocol_NONE
		}},
		"own network": {meta: ", labels: {topology.istio.io/network: n2}", status: up, want: func(w *workloadpb.Workload) bool { return w.Network == "n2" }},
		"job of a cron": {meta: ", ownerReferences: [{apiVersion: batch/v1, kind: Job, name: tidy-29123456, uid: u, controller: true}]", status: up, want: func(w *workloadpb.Workload) bool {
			return w.WorkloadName == "tidy" && w.WorkloadType == workloadpb.WorkloadType_CRONJOB
		}},
		"job": {meta: ", ownerReferences: [{apiVersion: batch/v1, kind: Job, name: tidy, uid: u, controller: true}]", status: up, want: func(w *workloadpb.Workload) bool {
			return w.WorkloadName == "tidy" && w.WorkloadType == workloadpb.WorkloadType_JOB
		}},
		"stateful set": {meta: ", ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: u, controller: true}]", status: up, want: func(w *workloadpb.Workload) bool {
			return w.WorkloadName == "db" && w.CanonicalName == "db" && w.CanonicalRevision == "latest"
		}},
		"canonical names": {meta: ", labels: {app: a, app.kubernetes.io/name: b, service.istio.io/canonical-name: c, app.kubernetes.io/version: '7'}", status: up, want: func(w *workloadpb.Workload) bool { return w.CanonicalName == "c" && w.CanonicalRevision == "7" }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, rec := load(t, fmt.Sprintf(base, tt.meta, tt.spec, tt.status))
			const uid = "Kubernetes//Pod/shop/p"
			if tt.want == nil {
				if _, there := rec.addresses[uid]; there {
					t.Error("it is a workload")
				}
				return
			}
			if w := rec.workload(t, uid); !tt.want(w) {
				t.Errorf("workload %s", protojson.Format(w))
			}
		})
	}
}

func TestServicesThatDiffer(t *testing.T) {
	base := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: %s}\nspec: {ports: [{port: 80}]%s}\n"
	tests := map[string]struct{ namespace, spec, want string }{
		"local":           {"a", ", internalTrafficPolicy: Local", `{"mode":"STRICT","routingPreference":["NODE"]}`},
		"close":           {"a", ", trafficDistribution: PreferClose", `{"mode":"FAILOVER","routingPreference":["NETWORK","REGION","ZONE"]}`},
		"same zone":       {"a", ", trafficDistribution: PreferSameZone", `{"mode":"FAILOVER","routingPreference":["NETWORK","REGION","ZONE"]}`},
		"same node":       {"a", ", trafficDistribution: PreferSameNode", `{"mode":"FAILOVER","routingPreference":["NETWORK","REGION","ZONE","SUBZONE","NODE"]}`},
		"by namespace":    {"shop", "", `{"mode":"FAILOVER","routingPreference":["NETWORK","REGION","ZONE"]}`},
		"not ready":       {"a", ", publishNotReadyAddresses: true", `{"healthPolicy":"ALLOW_ALL"}`},
		"nothing special": {"a", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, rec := load(t, fmt.Sprintf(base, tt.namespace, tt.spec))
			lb := rec.service(t, tt.namespace+"/s."+tt.namespace+".svc.cluster.local").LoadBalancing
			if tt.want == "" {
				if lb != nil {
					t.Errorf("got %v", lb)
				}
				return
			}
			equal(t, tt.want, lb)
		})
	}
	for spec, want := range map[string]int{", sessionAffinity: ClientIP": 1, ", sessionAffinity: None": 0, "": 0} {
		_, rec := load(t, fmt.Sprintf(base, "a", spec))
		if got := rec.service(t, "a/s.a.svc.cluster.local").Extensions; len(got) != want || want > 0 && got[0].Name != wellknown.ExtensionClientAffinity {
			t.Errorf("spec {%s} has extensions %v", spec, got)
		}
	}
	_, rec := load(t, "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {type: ExternalName, externalName: x.y}\n")
	if len(rec.addresses) != 0 {
		t.Error("an ExternalName is served")
	}
}

func TestServiceEntries(t *testing.T) {
	_, rec := load(t, `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example.com]
  addresses: [240.0.0.1, 10.9.0.0/16]
  resolution: STATIC
  exportTo: ["."]
  subjectAltNames: [spiffe://x/ns/a/sa/b]
  ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: 15432}, {number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 192.0.2.1, weight: 3, locality: eu/eu-1/r, ports: {tcp: 5}, serviceAccount: db, labels: {networking.istio.io/tunnel: http}}
  - {address: 192.0.2.1, ports: {tcp: 6}}
  - {address: unix:///x}
  - {address: db2.example.com, network: far}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: shop}
spec: {hosts: [a.example.com, b.example.com], resolution: DNS, ports: [{number: 443, name: https, protocol: TLS}]}
status: {addresses: [{host: a.example.com, value: 240.240.0.1}, {host: b.example.com, value: 240.240.0.2}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: pass, namespace: shop}
spec: {hosts: [pass.example.com], addresses: [1.1.1.1], resolution: NONE, ports: [{number: 443, name: https}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec: {hosts: ["*.example.com"], ports: [{number: 443, name: https}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: select, namespace: shop}
spec: {hosts: [vm.example.com], resolution: STATIC, workloadSelector: {labels: {app: vm}}, ports: [{number: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, namespace: shop}
spec: {address: 192.0.2.9, labels: {app: vm, networking.istio.io/tunnel: http}, ports: {http: 8080}, serviceAccount: vm, weight: 2}
---
`+pod("podvm", ", labels: {app: vm}"))
	equal(t, `{"name":"db","namespace":"shop","hostname":"db.example.com","visibility":"NAMESPACE","subjectAltNames":["spiffe://x/ns/a/sa/b"],
		"addresses":[{"network":"n1","address":"8AAAAQ=="},{"network":"n1","address":"CgkAAA==","length":16}],
		"ports":[{"servicePort":5432,"targetPort":15432,"appProtocol":"TCP"},{"servicePort":80,"targetPort":80,"appProtocol":"HTTP11"}]}`,
		rec.service(t, "shop/db.example.com"))
	const uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/db/192.0.2.1"
	equal(t, `{"uid":"`+uid+`","name":"db","namespace":"shop","addresses":["wAACAQ=="],"network":"n1","tunnelProtocol":"HBONE","nativeTunnel":true,
		"serviceAccount":"db","workloadName":"db","workloadType":"POD","canonicalName":"db","canonicalRevision":"latest","clusterId":"Kubernetes","capacity":3,
		"locality":{"region":"eu","zone":"eu-1","subzone":"r"},
		"services":{"shop/db.example.com":{"ports":[{"servicePort":5432,"targetPort":5,"appProtocol":"TCP"},{"servicePort":80,"targetPort":80,"appProtocol":"HTTP11"}]}}}`, rec.workload(t, uid))
	if w := rec.workload(t, uid+"~1"); w.Services["shop/db.example.com"].Ports[0].TargetPort != 6 {
		t.Errorf("second port of one address: %v", w)
	}
	if w := rec.workload(t, "Kubernetes/networking.istio.io/ServiceEntry/shop/db/db2.example.com"); w.Hostname != "db2.example.com" || w.Network != "far" {
		t.Errorf("endpoint by name: %v", w)
	}
	if w := rec.workload(t, "Kubernetes/networking.istio.io/ServiceEntry/shop/dns/a.example.com"); w.Hostname != "a.example.com" || len(w.Services) != 1 {
		t.Errorf("host as endpoint: %v", w)
	}
	if s := rec.service(t, "shop/b.example.com"); len(s.Addresses) != 2 || s.Addresses[0].Address[3] != 2 || len(s.Addresses[1].Address) != 16 {
		t.Errorf("allocated address: %v", s)
	}
	if s := rec.service(t, "shop/pass.example.com"); s.LoadBalancing.GetMode() != workloadpb.LoadBalancing_PASSTHROUGH || s.LoadBalancing.GetHealthPolicy() != workloadpb.LoadBalancing_ALLOW_ALL {
		t.Errorf("passthrough: %v", s)
	}
	if _, there := rec.addresses["shop/*.example.com"]; there {
		t.Error("a wildcard without a waypoint is served")
	}
	w := rec.workload(t, "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm1")
	if w.Services["shop/vm.example.com"].Ports[0].TargetPort != 8080 || !w.NativeTunnel || w.Capacity.GetValue() != 2 {
		t.Errorf("workload entry: %v", w)
	}
	if w := rec.workload(t, "Kubernetes//Pod/shop/podvm"); w.Services["shop/vm.example.com"].GetPorts()[0].TargetPort != 80 {
		t.Errorf("selected pod: %v", w)
	}
}

// Of entries for one host, the oldest counts in namespaces that have none; who
// comes later takes nothing away, nor does anybody from a Kubernetes Service.
func TestCanonicalEntry(t *testing.T) {
	entry := func(namespace, host, created, more string) string {
		return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: %s, creationTimestamp: %q}\nspec: {hosts: [%s], ports: [{number: 80, name: http}]%s}\n---\n", namespace, created, host, more)
	}
	const host, web = "h.example.com", "web.shop.svc.cluster.local"
	all := entry("a", host, "2026-01-03T00:00:00Z", "") +
		entry("b", host, "2026-01-02T00:00:00Z", "") +
		entry("c", host, "2026-01-01T00:00:00Z", `, exportTo: ["."]`) +
		entry("d", web, "2026-01-01T00:00:00Z", "")
	r, rec := load(t, all)
	want := func(when string, canonical ...string) {
		t.Helper()
		var got []string
		for _, name := range []string{"a/" + host, "b/" + host, "c/" + host, "d/" + web} {
			if _, there := rec.addresses[name]; there && rec.service(t, name).Canonical {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, canonical) {
			t.Errorf("%s: %q are canonical, and not %q", when, got, canonical)
		}
	}
	want("at first", "b/"+host, "d/"+web)
	r.Apply(events(t, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n"))
	want("with a Service", "b/"+host)
	r.Apply(events(t, entry("a", host, "2025-01-01T00:00:00Z", "")))
	want("with an older one", "a/"+host)
}

func TestEndpointSlicesOfServicesWithoutSelector(t *testing.T) {
	const svc = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {clusterIP: 10.96.0.3%s, ports: [{name: https, port: 443, targetPort: 6443}]}\n---\n"
	const slice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: https, port: 7443}]
endpoints:
- {addresses: [192.0.2.7], conditions: {ready: false}, nodeName: n1}
- {addresses: [10.0.0.9], targetRef: {kind: Pod, name: p, namespace: shop}}
`
	r, rec := load(t, pod("p", "")+fmt.Sprintf(svc, "")+slice)
	w := rec.workload(t, "Kubernetes/discovery.k8s.io/EndpointSlice/shop/api-1/192.0.2.7")
	if w.NetworkMode != workloadpb.NetworkMode_HOST_NETWORK {
		t.Errorf("somebody is recognized by the endpoint's address: %v", w)
	}
	if w.Status != workloadpb.WorkloadStatus_UNHEALTHY || w.Node != "n1" || w.Services["shop/api.shop.svc.cluster.local"].Ports[0].TargetPort != 7443 {
		t.Errorf("endpoint: %v", w)
	}
	if w := rec.workload(t, "Kubernetes//Pod/shop/p"); w.Services["shop/api.shop.svc.cluster.local"].GetPorts()[0].GetTargetPort() != 7443 {
		t.Errorf("pod: %v", w)
	}
	// With a selector the pods decide.
	r.Apply(events(t, fmt.Sprintf(svc, ", selector: {a: b}")))
	if _, there := rec.addresses["Kubernetes/discovery.k8s.io/EndpointSlice/shop/api-1/192.0.2.7"]; there {
		t.Error("the endpoint is still there")
	}
	if w := rec.workload(t, "Kubernetes//Pod/shop/p"); len(w.Services) != 0 {
		t.Errorf("pod: %v", w)
	}
}

const gateway = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop%s}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE%s}]}
status: {addresses: [%s]}
---
`

func TestWaypoints(t *testing.T) {
	const address = "{type: IPAddress, value: 10.0.0.77}"
	const svc = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: %s%s}\nspec: {ports: [{port: 80}]}\n---\n"
	const ns = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: wp}}\n---\n"
	tests := map[string]struct {
		gw, yaml          string
		service, workload string // see way
		reason            string // of the service, else the pod
	}{
		"for services":    {fmt.Sprintf(gateway, "", "", address), ns, "there", "", "WaypointAccepted"},
		"for all":         {fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}", "", address), ns, "there", "there", "WaypointAccepted"},
		"for workloads":   {fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: workload}", "", address), ns, "", "there", "WaypointAccepted"},
		"without address": {fmt.Sprintf(gateway, "", "", ""), ns, "refused", "", "WaypointIsNotReady"},
		"there is none":   {"", ns, "refused", "refused", "TargetNotFound"},
		"no label":        {fmt.Sprintf(gateway, "", "", address), "", "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, rec := load(t, tt.gw+tt.yaml+fmt.Sprintf(svc, "shop", "")+pod("p", ""))
			s, w := rec.service(t, "shop/s.shop.svc.cluster.local"), rec.workload(t, "Kubernetes//Pod/shop/p")
			if way(s.Waypoint) != tt.service || way(w.Waypoint) != tt.workload {
				t.Errorf("service %v, workload %v", s.Waypoint, w.Waypoint)
			}
			if closed := slices.ContainsFunc(w.AuthorizationPolicies, derived); closed != (tt.workload != "") {
				t.Errorf("the pod, of no service, has policies %v", w.AuthorizationPolicies)
			}
			if tt.service == "there" {
				equal(t, `{"address":{"network":"n1","address":"CgAATQ=="},"hboneMtlsPort":15008}`, s.Waypoint)
			}
			if got := condition(r, "istio.io/WaypointBound"); got != tt.reason {
				t.Errorf("condition %q", got)
			}
		})
	}
	t.Run("by name", func(t *testing.T) {
		_, rec := load(t, fmt.Sprintf(gateway, "", "", address+", {type: Hostname, value: wp.shop.svc.cluster.local}")+ns+fmt.Sprintf(svc, "shop", ""))
		equal(t, `{"hostname":{"namespace":"shop","hostname":"wp.shop.svc.cluster.local"},"hboneMtlsPort":15008}`, rec.service(t, "shop/s.shop.svc.cluster.local").Waypoint)
	})
	for labels, want := range map[string]bool{
		"": true, `, labels: {istio.io/ingress-use-waypoint: "false"}`: false, `, labels: {istio.io/ingress-use-waypoint: perhaps}`: false,
		", labels: {istio.io/use-waypoint: none}": false,
	} {
		t.Run("for gateways"+labels, func(t *testing.T) {
			ns := strings.Replace(ns, "labels: {", `labels: {istio.io/ingress-use-waypoint: "true", `, 1)
			_, rec := load(t, fmt.Sprintf(gateway, "", "", address)+ns+fmt.Sprintf(svc, "shop", labels))
			if s := rec.service(t, "shop/s.shop.svc.cluster.local"); s.IngressUseWaypoint != want {
				t.Errorf("%v", s)
			}
		})
	}
	t.Run("opted out", func(t *testing.T) {
		_, rec := load(t, fmt.Sprintf(gateway, "", "", address)+ns+fmt.Sprintf(svc, "shop", ", labels: {istio.io/use-waypoint: none}"))
		if s := rec.service(t, "shop/s.shop.svc.cluster.local"); s.Waypoint != nil {
			t.Errorf("waypoint %v", s.Waypoint)
		}
	})
	for name, tt := range map[string]struct {
		routes, way string
	}{
		"same namespace only": {"", "refused"},
		"all":                 {", allowedRoutes: {namespaces: {from: All}}", "there"},
		"selected":            {", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}", "there"},
		"not selected":        {", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: b}}}}", "refused"},
	} {
		t.Run("from another namespace, "+name, func(t *testing.T) {
			_, rec := load(t, fmt.Sprintf(gateway, "", tt.routes, address)+"apiVersion: v1\nkind: Namespace\nmetadata: {name: web, labels: {team: a}}\n---\n"+
				fmt.Sprintf(svc, "web", ", labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}"))
			if s := rec.service(t, "web/s.web.svc.cluster.local"); way(s.Waypoint) != tt.way {
				t.Errorf("waypoint %v", s.Waypoint)
			}
		})
	}
	t.Run("its own pod", func(t *testing.T) {
		_, rec := load(t, fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}", "", address)+ns+pod("p", ", labels: {gateway.networking.k8s.io/gateway-name: wp}"))
		w := rec.workload(t, "Kubernetes//Pod/shop/p")
		if w.Waypoint != nil || w.ApplicationTunnel.GetPort() != 15088 {
			t.Errorf("workload %v", w)
		}
	})
}

// way returns what an address leads to: a gateway, a refusal, or "" for none.
func way(a *workloadpb.GatewayAddress) string {
	switch {
	case a == nil:
		return ""
	case strings.HasSuffix(a.GetHostname().GetHostname(), wellknown.UnavailableWaypoint):
		return "refused"
	}
	return "there"
}

// derived reports whether a policy is one that admits only waypoints.
func derived(name string) bool { return strings.Contains(name, "/"+wellknown.DerivedWaypointPolicy) }

// condition is the reason of the first condition of a type, False ones last.
func condition(r *Registry, typ string) string {
	reason := ""
	for _, o := range r.Status() {
		for _, c := range o.Conditions {
			if c.Type == typ && (reason == "" || c.Status == "True") {
				reason = c.Reason
			}
		}
	}
	return reason
}

func TestPoliciesAreNamedByTheWorkloadsTheySelect(t *testing.T) {
	authz := func(ns, name, selector string) string {
		return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: " + ns + "}\nspec: {" + selector + "}\n---\n"
	}
	peer := func(ns, name, spec string) string {
		return "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: " + ns + "}\nspec: {" + spec + "}\n---\n"
	}
	const strict, permissive, sel = "mtls: {mode: STRICT}", "mtls: {mode: PERMISSIVE}", "selector: {matchLabels: {app: web}}"
	const static = "istio-system/istio_converted_static_strict"
	tests := map[string]struct {
		yaml string
		want []string
	}{
		"none":                        {"", nil},
		"selected":                    {authz("shop", "a", sel), []string{"shop/a"}},
		"of another namespace":        {authz("web", "a", sel), nil},
		"mesh wide selector":          {authz("istio-system", "a", sel), []string{"istio-system/a"}},
		"two labels, one missing":     {authz("shop", "a", "selector: {matchLabels: {app: web, x: y}}"), nil},
		"of the namespace":            {authz("shop", "a", ""), nil},
		"strict mesh":                 {peer("istio-system", "default", strict), []string{static}},
		"strict namespace":            {peer("shop", "default", strict), []string{static}},
		"another strict namespace":    {peer("web", "default", strict), nil},
		"permissive in a strict mesh": {peer("istio-system", "default", strict) + peer("shop", "default", permissive), nil},
		"workload over namespace":     {peer("shop", "default", strict) + peer("shop", "w", sel+", "+permissive), nil},
		"strict workload":             {peer("shop", "w", sel+", "+strict), []string{static}},
		"unset workload, strict mesh": {peer("istio-system", "default", strict) + peer("shop", "w", sel), []string{static}},
		"a port":                      {peer("shop", "w", sel+", portLevelMtls: {80: "+strict[6:]+"}"), []string{"shop/converted_peer_authentication_w"}},
		"a port exempt":               {peer("shop", "w", sel+", "+strict+", portLevelMtls: {80: "+permissive[6:]+"}"), []string{"shop/converted_peer_authentication_w"}},
		"a port, strict by the mesh":  {peer("istio-system", "default", strict) + peer("shop", "w", sel+", portLevelMtls: {80: "+permissive[6:]+"}"), []string{"shop/converted_peer_authentication_w"}},
		"the older of two":            {peer("shop", "w1", sel+", "+permissive) + peer("shop", "w2", sel+", "+strict), nil},
		"a selector in the root":      {peer("istio-system", "w", sel+", "+strict), nil},
		"both kinds":                  {authz("shop", "z", sel) + peer("shop", "default", strict), []string{static, "shop/z"}},
		"for a waypoint":              {authz("shop", "a", "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]"), nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, rec := load(t, pod("p", ", labels: {app: web}")+tt.yaml)
			got := rec.workload(t, "Kubernetes//Pod/shop/p").AuthorizationPolicies
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			for _, p := range got {
				body, there := rec.policies[p]
				if !there {
					t.Errorf("policy %s is named and was not published", p)
					continue
				}
				var pb securitypb.Authorization
				if err := proto.Unmarshal(body, &pb); err != nil || pb.Scope != securitypb.Scope_WORKLOAD_SELECTOR {
					t.Errorf("%v %v", err, &pb)
				}
			}
		})
	}
}

// TestSelectorInTheRootNamespace: a PeerAuthentication there selects the pods of
// its own namespace.
func TestSelectorInTheRootNamespace(t *testing.T) {
	_, rec := load(t, strings.ReplaceAll(pod("p", ", labels: {app: web}"), "namespace: shop", "namespace: istio-system")+`apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: w, namespace: istio-system}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
`)
	got := rec.workload(t, "Kubernetes//Pod/istio-system/p").AuthorizationPolicies
	if diff := cmp.Diff([]string{"istio-system/istio_converted_static_strict"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNodesMayAskForTheirOwnPodsOnly(t *testing.T) {
	r, _ := load(t, strings.ReplaceAll(pod("p", ", uid: u1"), "spec: {", "spec: {serviceAccountName: web, ")+
		strings.ReplaceAll(strings.ReplaceAll(pod("done", ""), "Running", "Succeeded"), "spec: {", "spec: {serviceAccountName: job, "))
	web := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	job, foreign := web, web
	job.ServiceAccount, foreign.TrustDomain = "job", "else.where"
	zt := auth.Caller{Cluster: "Kubernetes", Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "n1"}
	other, none, own := zt, zt, auth.Caller{Cluster: "Kubernetes", Namespace: "shop", ServiceAccount: "web", PodName: "p", PodUID: "u1"}
	other.Node, none.Node = "n2", ""
	stale := own
	stale.PodUID = "u0"
	elsewhere := own
	elsewhere.Node = "n2"
	for _, tt := range []struct {
		name   string
		caller auth.Caller
		id     identity.Identity
		ok     bool
	}{
		{"its node", zt, web, true}, {"another node", other, web, false}, {"no node", none, web, false},
		{"an ended pod", zt, job, false}, {"another trust domain", zt, foreign, false},
		{"by the caller's pod", own, web, true}, {"a pod that was replaced", stale, web, false}, {"a pod of another node", elsewhere, web, false},
	} {
		if err := r.Nodes.MayImpersonate(tt.caller, tt.id); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	r.Apply([]source.Event{{Key: source.Key{Kind: source.Pod.Kind, Namespace: "shop", Name: "p"}}})
	if err := r.Nodes.MayImpersonate(zt, web); err == nil {
		t.Error("the pod is gone")
	}
	if left := r.Nodes.Identities(); len(left)+r.Nodes.Pods() != 0 {
		t.Errorf("%v left", left)
	}
}
