package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	metav1alpha1 "istio.io/api/meta/v1alpha1"
	securityapi "istio.io/api/security/v1beta1"
	typeapi "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/nodestate"
	"github.com/ambit-mesh/ambit/internal/kube/portforward/portforwardtest"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// TestClusterScripts runs command lines against an API server in memory, whose
// pods answer on their debug ports.
func TestClusterScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/cluster",
		UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			env.Setenv("AMBIT_LAB", "")
			env.Setenv("KUBECONFIG", startCluster(t, env.WorkDir))
			return nil
		},
	})
}

// startCluster returns the kubeconfig of a cluster with two nodes: on node1
// everything is well, on node2 no ztunnel runs.
func startCluster(t *testing.T, dir string) string {
	api := kubetest.Start(t, clusterObjects()...)
	to, err := url.Parse(api.Client().Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	mux := http.NewServeMux()
	mux.Handle("/", proxy)
	mux.HandleFunc("GET /api/v1/namespaces/{ns}/pods/{pod}/log", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "log of %s\nAuthorization: Bearer abcdefghijklmnop\n", r.PathValue("pod"))
	})
	mux.HandleFunc("POST /api/v1/namespaces/{ns}/serviceaccounts/{name}/token", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("name") != "ztunnel" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"serviceaccounts \"nobody\" not found"}`)
			return
		}
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), "istio-ca") {
			http.Error(w, "no audience", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","status":{"token":"for-`+r.PathValue("ns")+`","expirationTimestamp":"2030-01-01T00:00:00Z"}}`)
	})
	pods := debugPorts(t)
	front := httptest.NewServer(&portforwardtest.Handler{Next: mux, Dial: func(ctx context.Context, _, pod string, port int) (net.Conn, error) {
		address := pods[fmt.Sprintf("%s:%d", pod, port)]
		if address == "" {
			return nil, fmt.Errorf("connect to %d: connection refused", port)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}})
	t.Cleanup(front.Close)
	file := filepath.Join(dir, "kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: test, clusters: [{name: test, cluster: {server: "` + front.URL +
		`"}}], users: [{name: test, user: {}}], contexts: [{name: test, context: {cluster: test, user: test, namespace: shop}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// debugPorts serves what the mesh's own pods say of themselves, by pod:port.
func debugPorts(t *testing.T) map[string]string {
	out := map[string]string{}
	serve := func(pod string, port int, answers map[string]string) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked := r.Method + " " + r.URL.RequestURI()
			if q := r.URL.Query(); r.URL.Path == "/explain" {
				asked = strings.Join(strings.Fields(strings.Join([]string{r.Method, r.URL.Path, q.Get("direction"), q.Get("pod"), q.Get("to"), q.Get("authority"), q.Get("path")}, " ")), " ")
			}
			said, ok := answers[asked]
			if said == "no such name" {
				http.Error(w, "not found: "+said, http.StatusNotFound)
				return
			}
			if !ok {
				http.NotFound(w, r)
				return
			}
			_, _ = io.WriteString(w, said)
		}))
		t.Cleanup(s.Close)
		out[fmt.Sprintf("%s:%d", pod, port)] = s.Listener.Addr().String()
	}
	build := func(component, tag string) map[string]string {
		return map[string]string{"GET /metrics": "# HELP istio_build x\nistio_build{component=\"" + component + "\",tag=\"" + tag + "\"} 1\n"}
	}
	for i, name := range []string{"ambitd-a", "ambitd-b"} {
		serve(name, wellknown.PortControlDebug, map[string]string{
			"GET /debug/syncz": fmt.Sprintf(`[{"name":"ztunnel-%d.istio-system","cluster":"Kubernetes","types":["Address","Authorization"],"peer":"10.0.0.1:1"}]`, i+1),
			"GET /debug/ca":    `{"stage":"steady","signer":"O=` + name + `","roots":1}`,
		})
		serve(name, wellknown.PortControlMonitor, build("ambitd", "v2"))
	}
	serve("ambit-cni-1", wellknown.PortControlMonitor, map[string]string{
		"GET /metrics":    build("ambit-cni", "v2")["GET /metrics"],
		"GET /debug/pods": `[{"pod":"shop/web","uid":"u-web","enrolled":true,"served":true,"state":"enabled"}]`,
	})
	serve("ambit-cni-2", wellknown.PortControlMonitor, map[string]string{
		"GET /debug/pods": `[{"pod":"shop/stuck","uid":"u-stuck","enrolled":false,"served":false,"state":"pending"}]`,
	})
	serve("ztunnel-1", wellknown.PortMetrics, build("ztunnel", "v1"))
	serve("ztunnel-1", wellknown.PortAdmin, map[string]string{
		"GET /config_dump":          clusterDump,
		"POST /logging":             "current log level is info\n",
		"POST /logging?level=debug": "current log level is debug\n",
		"POST /logging?reset":       "current log level is info\n",

		"GET /explain outbound shop/web front:80": `{"role":"client","captured":true,"allowed":true,"reason":"OK","called":"10.96.0.17:80",
 "steps":[{"step":"capture","says":"the pod is in the mesh","object":"Pod shop/web"},{"step":"waypoint","says":"the service uses a waypoint","object":"Gateway mart/waypoint"}],
 "next":{"to":"waypoint","namespace":"mart","name":"waypoint-1","node":"node1","uid":"c//Pod/mart/waypoint-1","tunnel":true,"authority":"10.96.0.17:80","identity":"spiffe://cluster.local/ns/shop/sa/web","source":"10.244.1.10"}}`,
		"GET /explain outbound shop/web nothing": "no such name",
		"GET /explain outbound shop/web stuck:80": `{"role":"client","captured":true,"allowed":true,"reason":"OK","called":"10.96.0.18:80","steps":[],
 "next":{"to":"pod","namespace":"shop","name":"stuck","node":"node2","uid":"c//Pod/shop/stuck","tunnel":true,"authority":"10.244.2.10:80","identity":"spiffe://cluster.local/ns/shop/sa/web","source":"10.244.1.10"}}`,
		"GET /explain inbound shop/web 10.244.1.10:8080": `{"role":"destination","captured":true,"allowed":true,"reason":"OK","steps":[{"step":"policy","says":"no policy refuses","decides":true}],
 "next":{"to":"program","namespace":"shop","name":"web","authority":"10.244.1.10:8080"}}`,
	})
	serve("waypoint-1", wellknown.PortAdmin, map[string]string{
		"GET /config_dump": waypointText,
		"GET /explain 10.96.0.17:80": `{"role":"waypoint","http":true,"allowed":true,"reason":"OK","steps":[{"step":"route","says":"the request matches everything","object":"HTTPRoute mart/split","rule":"rule 1"}],
 "next":{"to":"pod","namespace":"shop","name":"web","node":"node1","uid":"c//Pod/shop/web","tunnel":true,"authority":"10.244.1.10:8080","identity":"spiffe://cluster.local/ns/mart/sa/waypoint","source":"10.244.1.11"}}`,
		"GET /explain 10.96.0.17:80 /admin": `{"role":"waypoint","http":true,"allowed":false,"reason":"POLICY_DENIED","detail":"explicitly denied by a policy: mart/guard, rule 0","status":403,
 "steps":[{"step":"policy","says":"DENY matches","object":"AuthorizationPolicy mart/guard","rule":"rule 0","decides":true}]}`,
	})
	serve("ztunnel-3", wellknown.PortMetrics, build("ztunnel", "v1"))
	serve("ztunnel-3", wellknown.PortAdmin, map[string]string{
		"GET /config_dump":                    clusterDump,
		"POST /logging":                       "current log level is warn\n",
		"POST /logging?level=debug":           "current log level is debug\n",
		"POST /logging?level=info%2Ca%3Dwarn": "current log level is info,a=warn\n",
	})
	return out
}

const clusterDump = `{
 "workloads": [
  {"workloadIps":["10.244.1.10"],"protocol":"HBONE","uid":"Kubernetes//Pod/shop/web","name":"web","namespace":"shop","node":"node1","serviceAccount":"web","status":"Healthy","authorizationPolicies":["shop/web-callers"]},
  {"workloadIps":["10.244.2.10"],"protocol":"TCP","uid":"Kubernetes//Pod/shop/stuck","name":"stuck","namespace":"shop","node":"node2","status":"Healthy"}
 ],
 "services": [{"name":"web","namespace":"shop","hostname":"web.shop.svc.cluster.local","vips":["/10.96.0.16"],"endpoints":{}}],
 "policies": [
  {"name":"web-callers","namespace":"shop","scope":"WorkloadSelector","action":"Allow","rules":[[[{"principals":[{"Exact":"cluster.local/ns/shop/sa/client"}]}],[{"destinationPorts":[8080]}]]]},
  {"name":"istio_converted_static_strict","namespace":"istio-system","scope":"Global","action":"Deny","rules":[[[{"notPrincipals":[{"Presence":[]}]}]]]},
  {"name":"elsewhere","namespace":"other","scope":"Namespace","action":"Deny","rules":[[[{}]]]}
 ],
 "certificates": [{"identity":"spiffe://cluster.local/ns/shop/sa/web","state":"Available","certChain":[{"serialNumber":"255","validFrom":"2020-01-01T00:00:00Z","expirationTime":"2990-01-01T00:00:00Z"}]}],
 "workloadState": {"u-web": {"state":"Up","info":{"name":"web","namespace":"shop"},"connections":{"inbound":[],"outbound":[]}}}
}`

const waypointText = `{
 "routes": [
  {"name":"a","origin":"HTTPRoute mart/split, rule 0","kind":"HTTPRoute","namespace":"mart","route":"split","rule":0,"parents":["mart/front.mart.svc.cluster.local:80"],
   "matches":["header x-version=2"],"backends":[{"name":"mart/v2.mart.svc.cluster.local:80","weight":1}],"retries":2,"extra":"kept"},
  {"name":"b","origin":"HTTPRoute mart/split, rule 1","kind":"HTTPRoute","namespace":"mart","route":"split","rule":1,"parents":["mart/front.mart.svc.cluster.local:80"],
   "matches":[],"backends":[{"name":"mart/v1.mart.svc.cluster.local:80","weight":90},{"name":"","weight":10,"invalid":"not found"}],"timeouts":{"request":"5s","try":"1s"},"retries":3,"filters":["rewrite"]},
  {"name":"c","kind":"GRPCRoute","namespace":"mart","route":"bad","rule":0,"parents":["mart/api.mart.svc.cluster.local:90 (clients of namespace shop)"],"matches":[],"backends":[],"dropped":"a filter that is not known","retries":2}
 ],
 "backends": [
  {"namespace":"mart","hostname":"front.mart.svc.cluster.local","port":80,"protocol":"HTTP/1.1","known":true,"endpoints":[{"workload":"mart/a","healthy":true},{"workload":"mart/b","healthy":true,"leftOut":true},{"workload":"mart/c","healthy":false}]},
  {"namespace":"mart","hostname":"v1.mart.svc.cluster.local","port":80,"protocol":"unknown","known":false,"endpoints":[],"limits":{"connections":10,"requests":5}}
 ],
 "policies": [
  {"resource":"r1","policy":"mart/guard","action":"DENY","for":["mart/front.mart.svc.cluster.local"],"rules":2},
  {"resource":"r2","policy":"mart/trial","action":"ALLOW","dryRun":true,"for":["*"],"rules":1},
  {"resource":"r3","policy":"mart/new","action":"DENY","for":["mart/api.mart.svc.cluster.local"],"rules":1,"error":"a field that is not known"}
 ],
 "connections": [
  {"client":"shop/web","identity":"spiffe://cluster.local/ns/shop/sa/web","source":"10.244.1.10:40000","called":"mart/front.mart.svc.cluster.local","port":80,"protocol":"HTTP/1.1","since":"2026-01-01T00:00:00Z"},
  {"identity":"spiffe://cluster.local/ns/shop/sa/gone","source":"10.244.9.9:1","called":"mart/db.mart.svc.cluster.local","port":5432,"protocol":"TCP","endpoint":"mart/db-0","since":"2026-01-01T00:00:01Z"}
 ],
 "connectionsOmitted": 7
}`

func clusterObjects() []runtime.Object {
	meta := func(ns, name string, labels map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels, UID: types.UID("u-" + name), CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))}
	}
	pod := func(ns, name, node, ip, container, image string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: meta(ns, name, labels),
			Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: labels["app"], Containers: []corev1.Container{{
				Name: container, Image: image, Env: []corev1.EnvVar{{Name: "DB_PASSWORD", Value: "hunter2"}, {Name: "COLOUR", Value: "blue"}},
			}}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
		}
	}
	ambient := map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient}
	web := pod("shop", "web", "node1", "10.244.1.10", "web", "web:1", map[string]string{"app": "web"})
	web.Annotations = map[string]string{wellknown.AnnotationRedirection: wellknown.RedirectionEnabled}
	stuck := pod("shop", "stuck", "node2", "10.244.2.10", "web", "web:1", map[string]string{"app": "web"})
	system := wellknown.SystemNamespace
	istiod := map[string]string{"app": "istiod", "istio.io/rev": "default"}
	callers := &securityv1.AuthorizationPolicy{ObjectMeta: meta("shop", "web-callers", nil)}
	callers.Spec.Selector = &typeapi.WorkloadSelector{MatchLabels: map[string]string{"app": "web"}}
	callers.Spec.Action = securityapi.AuthorizationPolicy_ALLOW
	callers.Status.Conditions = []*metav1alpha1.IstioCondition{{Type: "ZtunnelAccepted", Status: "True", Reason: "Accepted", Message: "enforced by node proxies"}}
	targeted := &securityv1.AuthorizationPolicy{ObjectMeta: meta("shop", "web-paths", nil)}
	targeted.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Kind: "Service", Name: "web"}}
	tcp8080 := intstr.FromInt32(8080)
	guard := &networkv1.NetworkPolicy{ObjectMeta: meta("shop", "guard", nil)}
	guard.Spec.PolicyTypes = []networkv1.PolicyType{networkv1.PolicyTypeIngress}
	guard.Spec.Ingress = []networkv1.NetworkPolicyIngressRule{{Ports: []networkv1.NetworkPolicyPort{{Port: &tcp8080}}}}
	service := &corev1.Service{ObjectMeta: meta("shop", "web", map[string]string{wellknown.LabelUseWaypoint: "wp"})}
	service.Spec = corev1.ServiceSpec{ClusterIPs: []string{"10.96.0.16"}, Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: tcp8080}}}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta("shop", "web-1", map[string]string{"kubernetes.io/service-name": "web"}), AddressType: discoveryv1.AddressTypeIPv4}
	for _, p := range []*corev1.Pod{web, stuck} {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{p.Status.PodIPs[0].IP}, NodeName: &p.Spec.NodeName, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: p.Name}})
	}
	return []runtime.Object{
		&corev1.Namespace{ObjectMeta: meta("", "shop", ambient)}, &corev1.Namespace{ObjectMeta: meta("", system, nil)},
		&corev1.Namespace{ObjectMeta: meta("", "plain", nil)},
		&corev1.Node{ObjectMeta: meta("", "node1", nil)},
		&corev1.Node{ObjectMeta: meta("", "node2", nil), Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: nodestate.Condition, Status: corev1.ConditionFalse, Message: "nftables is missing"}}}},
		pod(system, "ambitd-a", "node1", "10.244.1.2", "discovery", "ghcr.io/ambit-mesh/ambitd:v2", istiod),
		pod(system, "ambitd-b", "node2", "10.244.2.2", "discovery", "ghcr.io/ambit-mesh/ambitd:v2", istiod),
		pod(system, "ambit-cni-1", "node1", "10.244.1.3", "install-cni", "ghcr.io/ambit-mesh/ambit-cni:v2", map[string]string{"k8s-app": "istio-cni-node"}),
		pod(system, "ambit-cni-2", "node2", "10.244.2.3", "install-cni", "localhost:5000/ambit-cni:v0", map[string]string{"k8s-app": "istio-cni-node"}),
		pod(system, "ztunnel-1", "node1", "10.244.1.4", "istio-proxy", "ghcr.io/ambit-mesh/ztunnel:v1", map[string]string{"app": "ztunnel"}),
		&corev1.Node{ObjectMeta: meta("", "node3", nil)},
		pod(system, "ztunnel-3", "node3", "10.244.3.4", "istio-proxy", "ghcr.io/ambit-mesh/ztunnel:v1", map[string]string{"app": "ztunnel"}),
		&corev1.Secret{ObjectMeta: meta(system, "istio-ca-secret", nil), Data: map[string][]byte{"ca-key.pem": []byte("the-key")}},
		pod("plain", "lonely", "node1", "10.244.1.9", "x", "x:1", map[string]string{"app": "lonely"}),
		pod("mart", "waypoint-1", "node1", "10.244.1.11", "waypoint", "waypoint:1", map[string]string{"app": "waypoint", wellknown.LabelGatewayName: "waypoint"}),
		pod("two", "first-1", "node1", "10.244.1.12", "waypoint", "waypoint:1", map[string]string{"app": "first", wellknown.LabelGatewayName: "first"}),
		pod("two", "second-1", "node1", "10.244.1.13", "waypoint", "waypoint:1", map[string]string{"app": "second", wellknown.LabelGatewayName: "second"}),
		web, stuck, callers, targeted, guard, service, slice,
	}
}
