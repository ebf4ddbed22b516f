package analysis

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// world is what most cases start from: an enrolled namespace with a pod behind
// a service.
const world = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec:
  serviceAccountName: web
  nodeName: node1
  containers: [{name: c, ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {port: http}}}]
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`

func load(t testing.TB, text string) []source.Event {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	events, problems := file.Load(file.Options{ConfigDirs: []string{dir}, Also: Kinds()})
	for _, p := range problems {
		t.Fatal(p)
	}
	return events
}

func authz(spec string) string {
	return "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: " + spec
}

func egressPolicy(namespace, to string) string {
	return fmt.Sprintf("\n---\napiVersion: ambit.mesh/v1alpha1\nkind: EgressPolicy\nmetadata: {name: e, namespace: %s}\nspec: {to: %s}", namespace, to)
}

func peer(name, namespace, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: %s", name, namespace, spec)
}

func entry(name, spec string) string {
	return "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name + ", namespace: shop}\nspec: " + spec
}

func tokens(spec, status string) string {
	return "\n---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t, namespace: shop}\nspec: " + spec + "\n" + status
}

func firewall(spec string) string {
	return "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np, namespace: shop}\nspec: " + spec
}

func core(kind, name, meta, rest string) string {
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: %s\nmetadata: {name: %s%s}\n%s", kind, name, meta, rest)
}

func istiod(name, revision string) string {
	return core("Service", name, ", namespace: istio-system, labels: {app: istiod, istio.io/rev: "+revision+"}", "spec: {ports: [{port: 15012}]}")
}

func labelled(name, revision string) string {
	return strings.Replace(authz(`{rules: [{}]}`), "name: p, namespace: shop", "name: "+name+", namespace: shop, labels: {istio.io/rev: "+revision+"}", 1)
}

func pod(name, meta, spec string) string {
	return core("Pod", name, ", namespace: shop"+meta, "spec: {containers: [{name: c}]"+spec+"}\nstatus: {phase: Running, podIP: 10.0.0.9}")
}

func waypoint(meta, spec, status string) string {
	return "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: wp" + meta + "}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE" + spec + "}]}\nstatus: {" + status + "}"
}

const ready = "addresses: [{type: IPAddress, value: 10.0.0.7}]"

// cases has one or more for each code; want is code, object and a part of the
// message of every finding, in order.
var cases = []struct {
	name string
	text string // appended to world
	opts Options
	want []string
}{
	{name: "nothing is wrong", text: authz(`{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web], namespaces: [shop, "sh*"]}}]}]}`)},
	{name: "a bad value", text: authz(`{rules: [{to: [{operation: {ports: [http]}}]}]}`), want: []string{`AMB0002 AuthorizationPolicy/shop/p "http" is not a port`}},
	{name: "tokens without a waypoint", text: tokens(`{targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: a, jwksUri: "https://a/keys"}]}`, ""), want: []string{`AMB0027 RequestAuthentication/shop/t Service/shop/web has no waypoint`}},
	{name: "tokens of node proxies", text: tokens(`{jwtRules: [{issuer: a, jwksUri: "https://a/keys"}]}`, ""), want: []string{`AMB0004 RequestAuthentication/shop/t no token is looked at`}},
	{name: "tokens for nothing", text: tokens(`{targetRefs: [{kind: Service, name: none}], jwtRules: [{issuer: a, jwksUri: "https://a/keys"}]}`, ""), want: []string{`AMB0015 RequestAuthentication/shop/t there is no Service/shop/none`}},
	{name: "a rule that finds no key", text: tokens(`{jwtRules: [{issuer: a}]}`, ""), want: []string{`AMB0002 RequestAuthentication/shop/t keys are looked for at the issuer`, `AMB0004 RequestAuthentication/shop/t no token`}},
	{name: "keys that do not come", text: waypoint(", namespace: shop", "", ready) + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}" +
		tokens(`{targetRefs: [{group: "", kind: Service, name: api}], jwtRules: [{issuer: a, jwksUri: "https://a/keys"}]}`, "status: {conditions: [{type: ambit/KeysFetched, status: 'False', reason: KeysUnavailable, message: down}]}"),
		want: []string{`AMB0030 RequestAuthentication/shop/t down`, `AMB0008 RequestAuthentication/shop/t only the waypoint`}},
	{name: "kinds without effect",
		text: "\n---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: shop}\nspec: {configPatches: [{}]}" +
			"\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {servers: []}",
		want: []string{"AMB0003 EnvoyFilter/shop/f has no effect", "AMB0003 Gateway.networking.istio.io/shop/g has no effect"}},
	{name: "a part without effect", text: peer("d", "shop", `{mtls: {mode: DISABLE}}`), want: []string{"AMB0004 PeerAuthentication/shop/d DISABLE cannot"}},
	{name: "a rule that allows less", text: authz(`{rules: [{to: [{operation: {methods: [GET]}}]}]}`), want: []string{"AMB0005 AuthorizationPolicy/shop/p never allows"}},
	{name: "a rule that denies more", text: authz(`{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ["80"]}}]}]}`), want: []string{"AMB0006 AuthorizationPolicy/shop/p denies whatever"}},
	{name: "a DENY of nothing but requests", text: authz(`{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}`), want: []string{"AMB0007 AuthorizationPolicy/shop/p denies EVERY connection"}},
	{name: "a wildcard that look-ups find", text: entry("e", `{hosts: ["*.example.com"], resolution: NONE}`), want: []string{"AMB0042"}},
	{name: "a wildcard without a waypoint", text: entry("e", `{hosts: ["*.example.com"], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}`), want: []string{"AMB0008 ServiceEntry/shop/e without a waypoint"}},
	{name: "a DENY without rules", text: authz(`{action: DENY}`), want: []string{"AMB0009 AuthorizationPolicy/shop/p denies nothing"}},
	{name: "two PeerAuthentications", text: peer("a", "shop", `{mtls: {mode: STRICT}}`) + peer("b", "shop", `{mtls: {mode: PERMISSIVE}}`), want: []string{"AMB0010 PeerAuthentication/shop/b older"}},
	{name: "one host, twice", text: entry("a", `{hosts: [a.example.com], ports: [{number: 80, name: http}]}`) + entry("b", `{hosts: [x, a.example.com], ports: [{number: 80, name: http}]}`),
		want: []string{"AMB0011 ServiceEntry/shop/b port 80 is a port of ServiceEntry shop/a of the same host a.example.com, too"}},
	{name: "one host, an entry per port", text: entry("a", `{hosts: [a.example.com], ports: [{number: 80, name: http}]}`) + entry("b", `{hosts: [a.example.com], ports: [{number: 81, name: http}]}`)},
	{name: "one host in two namespaces", text: entry("a", `{hosts: [a.example.com]}`) + strings.Replace(entry("b", `{hosts: [x, A.example.com.]}`), "namespace: shop", "namespace: other", 1),
		want: []string{"AMB0011 ServiceEntry/shop/a a.example.com is a host of ServiceEntry/other/b"}},
	{name: "the address of a service of another namespace",
		text: core("Service", "api", ", namespace: other", "spec: {clusterIP: 10.96.9.9, ports: [{port: 1}]}") + entry("a", `{hosts: [a.example.com], addresses: [10.96.9.9]}`),
		want: []string{"AMB0032 ServiceEntry/shop/a address 10.96.9.9 belongs to Service other/api"}},
	{name: "an address that was claimed", text: entry("b", `{hosts: [b.example.com], addresses: [240.1.1.1]}`) + strings.Replace(entry("a", `{hosts: [a.example.com], addresses: [240.1.1.1]}`), "namespace: shop", "namespace: other", 1),
		want: []string{"AMB0033 ServiceEntry/shop/b 240.1.1.1 was claimed first by ServiceEntry other/a"}},
	{name: "a range around a service", text: core("Service", "api", ", namespace: other", "spec: {clusterIP: 10.96.9.9, ports: [{port: 1}]}") + entry("a", `{hosts: [a.example.com], resolution: NONE, addresses: [10.96.9.0/24]}`),
		want: []string{"AMB0034 ServiceEntry/shop/a the range 10.96.9.0/24 contains the addresses of Service other/api"}},
	{name: "a machine that is a pod",
		text: core("Pod", "extra", ", namespace: shop, labels: {istio.io/dataplane-mode: none}", "spec: {}\nstatus: {podIP: 10.1.2.3, podIPs: [{ip: 10.1.2.3}]}") + "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.1.2.3}",
		want: []string{"AMB0035 WorkloadEntry/shop/vm 10.1.2.3 is the address of Pod/shop/extra"}},
	{name: "the host of a service", text: entry("a", `{hosts: [web.shop.svc.cluster.local]}`), want: []string{"AMB0011 ServiceEntry/shop/a is a host of Service/shop/web"}},
	{name: "selectors of nothing", text: authz(`{selector: {matchLabels: {app: wep}}}`) + peer("p", "shop", `{selector: {matchLabels: {app: wep}}, mtls: {mode: STRICT}}`) + entry("e", `{hosts: [h], resolution: STATIC, workloadSelector: {labels: {app: wep}}}`),
		want: []string{"AMB0012 AuthorizationPolicy/shop/p app=wep", "AMB0012 PeerAuthentication/shop/p app=wep", "AMB0012 ServiceEntry/shop/e app=wep"}},
	{name: "selectors from the root namespace", text: strings.Replace(authz(`{selector: {matchLabels: {app: web}}}`), "namespace: shop", "namespace: istio-system", 1)},
	{name: "a selector of a machine", text: authz(`{selector: {matchLabels: {app: vm}}}`) + "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.9.9.9, labels: {app: vm}}"},
	{name: "no object of this name",
		text: authz(`{rules: [{from: [{source: {namespaces: [shopp]}}]}, {from: [{source: {serviceAccounts: [wep, shop/web, shop/default]}}]}, {when: [{key: source.principal, notValues: [cluster.local/ns/x/sa/y]}]}]}`),
		want: []string{"AMB0013 AuthorizationPolicy/shop/p shopp: there is no namespace", "AMB0013 AuthorizationPolicy/shop/p no namespace x", "AMB0014 AuthorizationPolicy/shop/p no service account wep in namespace shop"}},
	{name: "no target", text: authz(`{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: none}]}`),
		want: []string{"AMB0015 AuthorizationPolicy/shop/p there is no Gateway/shop/none"}},
	{name: "no authorizer of that name", opts: Options{Authorizers: onlyDoor}, text: waypoint(", namespace: shop", "", ready) + authz(`{action: CUSTOM, provider: {name: dor}, rules: [{}], targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]}`),
		want: []string{`AMB0040 AuthorizationPolicy/shop/p no provider "dor": all that the rules match is denied`, "AMB0008"}},
	{name: "an authorizer", opts: Options{Authorizers: onlyDoor}, text: waypoint(", namespace: shop", "", ready) + authz(`{action: CUSTOM, provider: {name: door}, rules: [{}], targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]}`), want: []string{"AMB0008"}},
	{name: "no waypoint of that name", text: core("Service", "s", ", namespace: shop, labels: {istio.io/use-waypoint: wp}", "spec: {ports: [{port: 1}]}"), want: []string{"AMB0016 Service/shop/s there is no waypoint shop/wp"}},
	{name: "no waypoint for a namespace, said once", text: core("Namespace", "other", ", labels: {istio.io/use-waypoint: wp}", "") + core("Service", "a", ", namespace: other", "spec: {ports: [{port: 1}]}") + core("Service", "b", ", namespace: other", "spec: {ports: [{port: 1}]}"),
		want: []string{"AMB0016 Namespace/other there is no waypoint other/wp"}},
	{name: "a waypoint that is not ready", text: waypoint(", namespace: shop", "", "") + core("Service", "s", ", namespace: shop, labels: {istio.io/use-waypoint: wp}", "spec: {ports: [{port: 1}]}"), want: []string{"AMB0017 Service/shop/s no address yet"}},
	{name: "a waypoint for others", text: waypoint(", namespace: istio-system", "", ready) + core("Service", "s", ", namespace: shop, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: istio-system}", "spec: {ports: [{port: 1}]}"), want: []string{"AMB0018 Service/shop/s does not admit"}},
	{name: "host network", text: pod("h", "", ", hostNetwork: true"), want: []string{"AMB0019 Pod/shop/h node's network"}},
	{name: "host network that says so", text: pod("h", ", labels: {istio.io/dataplane-mode: none}", ", hostNetwork: true")},
	{name: "a sidecar", text: pod("s", ", annotations: {sidecar.istio.io/status: x}", ""), want: []string{"AMB0020 Pod/shop/s has a sidecar"}},
	{name: "an excluded namespace", text: core("Namespace", "kube-system", ", labels: {istio.io/dataplane-mode: ambient}", ""), want: []string{"AMB0021 Namespace/kube-system is excluded"}},
	{name: "a namespace that is not discovered", opts: Options{DiscoverySelectors: notB}, text: core("Namespace", "n", ", labels: {istio.io/dataplane-mode: ambient, team: b}", "") + in("n", pod("new", "", "")),
		want: []string{"AMB0036 Namespace/n none of its pods is enrolled"}},
	{name: "a pod of a namespace that is not discovered", opts: Options{DiscoverySelectors: notB}, text: core("Namespace", "n", ", labels: {team: b}", "") + in("n", pod("new", ", labels: {istio.io/dataplane-mode: ambient}", "")),
		want: []string{"AMB0036 Pod/n/new the pod is not enrolled"}},
	{name: "one selector is enough", opts: Options{DiscoverySelectors: append(notB, metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}})},
		text: core("Namespace", "n", ", labels: {istio.io/dataplane-mode: ambient, team: b}", "")},
	{name: "the root namespace is discovered", opts: Options{RootNamespace: "n", DiscoverySelectors: notB}, text: core("Namespace", "n", ", labels: {istio.io/dataplane-mode: ambient, team: b}", "")},
	{name: "a network policy without 15008", text: firewall(`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}`), want: []string{"AMB0022 NetworkPolicy/shop/np 15008, where they arrive"}},
	{name: "a network policy without 15008 for clients", text: firewall(`{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}, {ports: [{port: 8080, endPort: 9000}]}]}`), want: []string{"AMB0022 NetworkPolicy/shop/np lets pod web-1 connect"}},
	{name: "DNS alone is no wish to connect", text: firewall(`{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}, {port: 53}]}]}`)},
	{name: "a network policy that closes everything", text: firewall(`{podSelector: {}}`), want: []string{"AMB0023 NetworkPolicy/shop/np port 8080"}},
	{name: "network policies add up", text: firewall(`{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}`) + strings.Replace(firewall(`{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}`), "name: np", "name: tunnels", 1)},
	{name: "a network policy of others", text: firewall(`{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 8080}]}]}`)},
	{name: "probes from elsewhere", text: firewall(`{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`), want: []string{"AMB0023 NetworkPolicy/shop/np port 8080 of pod web-1"}},
	{name: "a reserved port", text: core("Service", "s", ", namespace: shop", "spec: {selector: {app: web}, ports: [{name: a, port: 80, targetPort: 15008}, {name: b, port: 15006, protocol: UDP}]}"), want: []string{"AMB0024 Service/shop/s port 15008"}},
	{name: "strict beside others", text: peer("s", "istio-system", `{mtls: {mode: STRICT}}`) + pod("old", ", labels: {istio.io/dataplane-mode: none}", ""), want: []string{"AMB0025 PeerAuthentication/istio-system/s 1 of its pods (old among them)"}},
	{name: "not strict in this namespace", text: peer("s", "istio-system", `{mtls: {mode: STRICT}}`) + peer("p", "shop", `{mtls: {mode: PERMISSIVE}}`) + pod("old", ", labels: {istio.io/dataplane-mode: none}", "")},
	{name: "another trust domain", text: authz(`{action: DENY, rules: [{from: [{source: {principals: [example.org/ns/shop/sa/web]}}]}]}`), want: []string{"AMB0026 AuthorizationPolicy/shop/p denies no client"}},
	{name: "our trust domain", opts: Options{TrustDomain: "example.org"}, text: authz(`{rules: [{from: [{source: {principals: [example.org/ns/shop/sa/web]}}]}]}`)},
	{name: "an alias of our trust domain", opts: Options{TrustDomain: "example.org", TrustDomainAliases: []string{"old.example"}}, text: authz(`{action: DENY, rules: [{from: [{source: {principals: [old.example/ns/shop/sa/web, cluster.local/ns/shop/sa/web]}}]}]}`)},
	{name: "a wildcard of no trust domain of the mesh", opts: Options{TrustDomain: "example.org"}, text: authz(`{action: DENY, rules: [{from: [{source: {principals: ["*.test/ns/shop/sa/web"]}}]}]}`), want: []string{"AMB0026 AuthorizationPolicy/shop/p denies no client"}},
	{name: "a target without a waypoint", text: authz(`{targetRefs: [{kind: Service, name: web}]}`), want: []string{"AMB0027 AuthorizationPolicy/shop/p Service/shop/web has no waypoint"}},
	{name: "a target with one", text: waypoint(", namespace: shop", "", ready) + core("Service", "s", ", namespace: shop, labels: {istio.io/use-waypoint: wp}", "spec: {ports: [{port: 1}]}") + authz(`{targetRefs: [{kind: Service, name: s}]}`), want: []string{"AMB0008"}},
	{name: "no such outbound traffic policy", text: core("Namespace", "n", ", labels: {ambit.mesh/outbound-traffic-policy: registry_only}", "") + core("Namespace", "o", ", labels: {ambit.mesh/outbound-traffic-policy: DRY_RUN}", ""),
		want: []string{`AMB0041 Namespace/n "registry_only" is none of ALLOW_ANY, DRY_RUN, REGISTRY_ONLY: it counts as REGISTRY_ONLY`}},
	{name: "hosts without look-ups", text: egressPolicy("shop", "[{hosts: [a.test]}]") + pod("plain", ", labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.istio.io/redirection: enabled}", ""),
		want: []string{"AMB0042 EgressPolicy/shop/e"}},
	{name: "an entry that look-ups find, without them", text: entry("e", `{hosts: ["*.example.com"], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls}]}`) + pod("plain", ", labels: {istio.io/dataplane-mode: ambient}, annotations: {ambient.istio.io/redirection: enabled}", ""),
		want: []string{"AMB0042 ServiceEntry/shop/e 2 pods of its namespace (shop/plain among them)"}},
	{name: "an entry that look-ups find, without pods", text: strings.ReplaceAll(entry("e", `{hosts: ["*.example.com"], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls}]}`), "namespace: shop", "namespace: quiet")},
	{name: "ranges without look-ups", text: egressPolicy("shop", "[{cidrs: [192.0.2.0/24]}]")},
	{name: "no such mode", text: core("Namespace", "n", ", labels: {istio.io/dataplane-mode: enabled}", ""), want: []string{"AMB0028 Namespace/n"}},
	{name: "not enrolled yet", text: pod("new", "", ""), want: []string{"AMB0029 Pod/shop/new enrolment was asked for"}},
	{name: "not enrolled in files", opts: Options{Partial: true}, text: pod("new", "", "")},
	{name: "a revision that no control plane has", text: istiod("istiod", "default") + istiod("istiod-revision-tag-prod", "canary") +
		labelled("a", "default") + labelled("b", "canary") + labelled("c", "prod") + labelled("d", "old"),
		want: []string{`AMB0031 AuthorizationPolicy/shop/d "old", and no control plane`}},
	{name: "revisions of a mesh that is not here", text: labelled("a", "old")},
	{name: "a route of a Service without a waypoint", text: httpRoute("web", "[{backendRefs: [{name: web, port: 80}]}]"), want: []string{"AMB0038 HTTPRoute/shop/r it has no waypoint"}},
	{name: "a route of no Service", text: httpRoute("gone", "[{backendRefs: [{name: web, port: 80}]}]"), want: []string{"AMB0015 HTTPRoute/shop/r there is no Service shop/gone"}},
	{name: "backends that are refused", text: routed + httpRoute("front", "[{backendRefs: [{name: gone, port: 80}, {name: web, namespace: other, port: 80}]}]"), want: []string{"AMB0037 HTTPRoute/shop/r create a ReferenceGrant"}},
	{name: "a rule that is not executed", text: routed + httpRoute("front", "[{backendRefs: [{name: front, port: 80}]}, {filters: [{type: ExtensionRef}]}]"), want: []string{"AMB0039 HTTPRoute/shop/r filters of type ExtensionRef are not supported: in the mesh, its requests are answered with 500"}},
	{name: "a rule with a mistake", text: routed + httpRoute("front", "[{matches: [{path: {type: RegularExpression, value: '('}}]}]"), want: []string{"AMB0002 HTTPRoute/shop/r missing closing )"}},
	{name: "a route that a waypoint executes", text: routed + httpRoute("front", "[{backendRefs: [{name: front, port: 80}]}]")},
	{name: "a route whose Service may be in the cluster", opts: Options{Partial: true}, text: strings.Replace(httpRoute("front", "[{backendRefs: [{name: gone, kind: ServiceEntry, group: networking.istio.io, port: 80}]}]"), "namespace: shop", "namespace: alone", 1), want: []string{"AMB0015", "AMB0037"}},
	{name: "a route of another controller's Gateway", text: "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{name: edge}]}"},
	{name: "an endpoint that no client can reach", text: "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: shop}\nspec: {network: other}", want: []string{"AMB0004 WorkloadEntry/shop/w", "AMB0030 WorkloadEntry/shop/w"}},
}

// notB chooses every namespace but those of team b.
var notB = []metav1.LabelSelector{{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"b"}}}}}

// in moves objects of the namespace shop.
func in(namespace, text string) string {
	return strings.ReplaceAll(text, "namespace: shop", "namespace: "+namespace)
}

// routed is a Service that is bound to a waypoint.
var routed = waypoint(", namespace: shop", "", ready) + core("Service", "front", ", namespace: shop, labels: {istio.io/use-waypoint: wp}", "spec: {ports: [{port: 80}]}")

func httpRoute(parent, rules string) string {
	return fmt.Sprintf("\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: %s}], rules: %s}", parent, rules)
}

// onlyDoor has one external authorizer, called door.
func onlyDoor(name string) error {
	if name != "door" {
		return fmt.Errorf("no provider %q", name)
	}
	return nil
}

func TestAnalyzers(t *testing.T) {
	seen := map[string]bool{codeMalformed.id: true} // see TestProblems
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			got := Analyze(load(t, world+tt.text), tt.opts)
			for i, f := range got {
				seen[f.Code] = true
				line := fmt.Sprintf("%s %s %s", f.Code, f.Object, f.Message)
				if i >= len(tt.want) {
					t.Errorf("too many: %s", line)
					continue
				}
				prefix, part := tt.want[i], ""
				if words := strings.SplitN(tt.want[i], " ", 3); len(words) == 3 {
					prefix, part = words[0]+" "+words[1]+" ", words[2]
				}
				if !strings.HasPrefix(line, prefix) || !strings.Contains(line, part) {
					t.Errorf("%s\nwant %s", line, tt.want[i])
				}
				if !strings.HasSuffix(f.File, "x.yaml") || f.Line < 1 {
					t.Errorf("%s: at %q:%d", line, f.File, f.Line)
				}
			}
			if len(got) < len(tt.want) {
				t.Errorf("missing: %q", tt.want[len(got):])
			}
		})
	}
	for _, c := range codes {
		if !seen[c.id] {
			t.Errorf("no case produces %s %s", c.id, c.name)
		}
	}
}

func TestFilesAlone(t *testing.T) {
	events := load(t, authz(`{selector: {matchLabels: {app: x}}, rules: [{from: [{source: {serviceAccounts: [a/b]}}]}]}`)+
		strings.Replace(authz(`{targetRefs: [{kind: Service, name: x}]}`), "name: p", "name: q", 1))
	if got := Analyze(events, Options{Partial: true}); len(got) != 1 || got[0].Code != "AMB0008" {
		t.Errorf("%+v", got)
	}
	if got := Analyze(events, Options{}); len(got) != 3 {
		t.Errorf("as a whole: %+v", got)
	}
}

func TestProblems(t *testing.T) {
	f, ok := Problem(file.Problem{File: "a.yaml", Line: 3, Field: "spec.x", Message: "there is no such field"})
	if !ok || f.Code != "AMB0001" || f.File != "a.yaml" || f.Line != 3 || f.Severity != Error {
		t.Error(f, ok)
	}
	if b, err := json.Marshal(f); err != nil || strings.Contains(string(b), `"object":`) || !strings.Contains(string(b), `"istioCode":"IST0106"`) {
		t.Errorf("%s %v", b, err)
	}
	f.Object = source.Key{Kind: &source.Kind{Name: "K"}, Name: "n"}
	if b, err := json.Marshal(f); err != nil || !strings.Contains(string(b), `"object":{"kind":"K","name":"n"}`) {
		t.Errorf("%s %v", b, err)
	}
	if _, ok := Problem(file.Problem{Ignored: true}); ok {
		t.Error("an ignored kind is no finding")
	}
}

func TestAnEventMayBeADeletion(t *testing.T) {
	events := load(t, world+pod("new", "", ""))
	for _, e := range events {
		events = append(events, source.Event{Key: e.Key})
	}
	if got := Analyze(events, Options{}); len(got) != 0 {
		t.Error(got)
	}
}

func TestSameObjectsSameFindings(t *testing.T) {
	var text strings.Builder
	text.WriteString(world)
	for i, c := range cases {
		text.WriteString(strings.ReplaceAll(c.text, "namespace: shop", fmt.Sprintf("namespace: n%d", i)))
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	events, _ := file.Load(file.Options{ConfigDirs: []string{dir}, Also: Kinds()})
	want := Analyze(events, Options{})
	if len(want) < 30 {
		t.Fatalf("only %d findings", len(want))
	}
	for range 5 {
		slices.Reverse(events)
		if got := Analyze(events, Options{}); !slices.Equal(got, want) {
			t.Fatal("another order of objects gave other findings")
		}
	}
}

func TestCodesAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/analysis.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range codes {
		istio := c.istio
		if istio == "" {
			istio = "–"
		}
		if row := fmt.Sprintf("| `%s` | %s | %s | %s |", c.id, c.name, c.severity, istio); !strings.Contains(string(b), row) {
			t.Errorf("docs/analysis.md has no row that begins with %s", row)
		}
		if want := fmt.Sprintf("AMB%04d", i+1); c.id != want {
			t.Errorf("%s is at the place of %s", c.id, want)
		}
	}
	if Name("AMB0022") != "NetworkPolicyBlocksHBONE" || Name("X") != "" {
		t.Error("names")
	}
}
