package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/source"
)

// object makes the JSON and kind of one with this spec.
func object(t testing.TB, k *source.Kind, namespace, spec string) ([]byte, schema.GroupVersionKind) {
	t.Helper()
	text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: x, namespace: %s, uid: u, managedFields: [{manager: m}]}\nspec: %s\n", k.APIVersion(), k.Name, namespace, spec)
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return data, schema.GroupVersionKind{Group: k.Group, Version: k.Versions[0], Kind: k.Name}
}

var (
	authz   = source.AuthorizationPolicy.Kind
	peer    = source.PeerAuthentication.Kind
	tokens  = source.RequestAuthentication.Kind
	entry   = source.ServiceEntry.Kind
	machine = source.WorkloadEntry.Kind
)

func TestReview(t *testing.T) {
	tests := []struct {
		name    string
		kind    *source.Kind
		spec    string
		refused []string // parts of the message; none: allowed
		warned  []string // a part of each warning, in order
	}{
		{name: "an ordinary policy", kind: authz, spec: `{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b], notNamespaces: [c]}}], to: [{operation: {ports: ["80"]}}], when: [{key: source.ip, values: [10.0.0.0/8]}]}]}`},
		{name: "allow nothing", kind: authz, spec: `{}`},
		{name: "everything matches", kind: authz, spec: `{rules: [{}]}`},
		{name: "unknown field", kind: authz, spec: `{rules: [{from: [{source: {principal: [x]}}]}]}`, refused: []string{"spec.rules[0].from[0].source.principal: there is no such field", "AuthorizationPolicy shop/x: "}},
		{name: "wrong type", kind: authz, spec: `{rules: [{to: [{operation: {ports: 80}}]}]}`, refused: []string{"spec.rules[0].to[0].operation.ports: "}},
		{name: "unknown action", kind: authz, spec: `{action: PERMIT}`, refused: []string{"spec.action: "}},
		{name: "bad port, block and principal", kind: authz,
			spec:    `{action: DENY, rules: [{}, {to: [{operation: {ports: [http]}}]}, {from: [{source: {ipBlocks: [10.0.0.0/33]}}]}, {from: [{source: {principals: ["spiffe://a/ns/b/sa/c"]}}]}]}`,
			refused: []string{`AuthorizationPolicy shop/x: `, `spec.rules[1].to[0].operation.ports: "http" is not a port`, `spec.rules[2].from[0].source.ipBlocks: "10.0.0.0/33"`, `spec.rules[3].from[0].source.principals: "spiffe:`}},
		{name: "bad values where a waypoint enforces", kind: authz, spec: `{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}], rules: [{to: [{operation: {ports: ["0"]}}]}]}`,
			refused: []string{"spec.rules[0].to[0].operation.ports"}, warned: []string{"only the waypoint"}},
		{name: "bad values under AUDIT", kind: authz, spec: `{action: AUDIT, rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}`,
			refused: []string{"serviceAccounts"}, warned: []string{"AUDIT has no effect"}},
		{name: "bad values that only a waypoint would read", kind: authz, spec: `{rules: [{from: [{source: {remoteIpBlocks: [x], requestPrincipals: [""]}}]}]}`,
			refused: []string{"remoteIpBlocks[0]", "requestPrincipals[0]"}, warned: []string{"never allows"}},
		{name: "tokens of a waypoint", kind: tokens, spec: `{targetRefs: [{group: "", kind: Service, name: w}], jwtRules: [{issuer: "me@a", jwksUri: "https://a/keys", audiences: [x], fromHeaders: [{name: x-a, prefix: "Token "}], outputClaimToHeaders: [{header: x-b, claim: a.b}]}, {issuer: "https://a"}]}`, warned: []string{"only the waypoint"}},
		{name: "tokens of node proxies", kind: tokens, spec: `{jwtRules: [{issuer: "https://a"}]}`, warned: []string{"no token is looked at"}},
		{name: "no rules", kind: tokens, spec: `{targetRefs: [{group: "", kind: Service, name: w}]}`, warned: []string{"only the waypoint", "without rules no token"}},
		{name: "rules that mean nothing", kind: tokens,
			spec:    `{targetRefs: [{group: "", kind: Pod, name: w}], jwtRules: [{}, {issuer: a}, {issuer: a, jwksUri: "file:///x"}, {issuer: a, jwks: "{}"}, {issuer: a, jwks: "{}", jwksUri: "https://a"}, {issuer: "https://a", outputPayloadToHeader: host}, {issuer: "https://a", outputClaimToHeaders: [{header: "a b", claim: c}]}]}`,
			refused: []string{"spec.targetRefs[0].kind", "spec.jwtRules[0].issuer: without it", "spec.jwtRules[1].issuer: keys are looked for", `spec.jwtRules[2].jwksUri: "file:///x"`, "spec.jwtRules[3].jwks: key set", "spec.jwtRules[4].jwksUri: a rule has either", "spec.jwtRules[5].outputPayloadToHeader", "spec.jwtRules[6].outputClaimToHeaders[0].header"},
			warned:  []string{"only the waypoint"}},
		{name: "a time of its own", kind: tokens, spec: `{targetRefs: [{group: "", kind: Service, name: w}], jwtRules: [{issuer: "https://a", timeout: 9s}]}`, warned: []string{"only the waypoint", "keys are fetched by the control plane"}},
		{name: "claims without an end", kind: authz, spec: `{targetRefs: [{group: "", kind: Service, name: w}], rules: [{when: [{key: "request.auth.claims[a][]", values: [b]}]}]}`, refused: []string{`spec.rules[0].when[0].key: "request.auth.claims[a][]"`}, warned: []string{"only the waypoint"}},
		{name: "empty source", kind: authz, spec: `{rules: [{from: [{source: {}}]}]}`, refused: []string{"spec.rules[0].from[0].source: this part of the rule is empty"}},
		{name: "no source", kind: authz, spec: `{rules: [{from: [{}]}]}`, refused: []string{"spec.rules[0].from[0].source"}},
		{name: "empty operation", kind: authz, spec: `{rules: [{to: [{operation: {methods: []}}]}]}`, refused: []string{"spec.rules[0].to[0].operation"}, warned: []string{"never allows"}},
		{name: "no list of sources", kind: authz, spec: `{rules: [{from: []}]}`, refused: []string{"spec.rules[0].from[0].source: this part of the rule is empty"}},
		{name: "null for the sources", kind: authz, spec: `{rules: [{from: null}]}`, refused: []string{"spec.rules[0].from[0].source: this part of the rule is empty"}},
		{name: "no list of conditions", kind: authz, spec: `{rules: [{when: []}]}`, refused: []string{"spec.rules[0].when[0].key"}},
		{name: "an empty list beside another", kind: authz, spec: `{rules: [{from: [{source: {principals: [], namespaces: [a]}}]}]}`, refused: []string{"spec.rules[0].from[0].source.principals: an empty value or list"}},
		{name: "no exceptions", kind: authz, spec: `{rules: [{from: [{source: {notPrincipals: [], namespaces: [a]}}]}]}`},
		{name: "a condition with an empty list", kind: authz, spec: `{rules: [{when: [{key: "request.headers[x]", values: []}]}]}`, refused: []string{"spec.rules[0].when[0].values: an empty"}, warned: []string{"never allows"}},
		{name: "a block that has IPv4 inside", kind: authz, spec: `{action: DENY, rules: [{from: [{source: {ipBlocks: ["::ffff:0:0/95"]}}]}]}`, refused: []string{"is larger than IPv4"}},
		{name: "such a block for a waypoint", kind: authz, spec: `{targetRefs: [{kind: Service, name: w}], rules: [{from: [{source: {remoteIpBlocks: ["::/64"]}}]}]}`, refused: []string{"is larger than IPv4"}, warned: []string{"only the waypoint"}},
		{name: "all of IPv6", kind: authz, spec: `{action: DENY, rules: [{from: [{source: {ipBlocks: ["::/0", "2000::/3"]}}]}]}`},
		{name: "condition without values", kind: authz, spec: `{rules: [{when: [{key: source.ip}]}]}`, refused: []string{"spec.rules[0].when[0]: "}},
		{name: "condition without key", kind: authz, spec: `{rules: [{when: [{values: [a]}]}]}`, refused: []string{"spec.rules[0].when[0].key: the condition"}},
		{name: "a path that is no template", kind: authz, spec: `{targetRefs: [{kind: Service, name: w}], rules: [{to: [{operation: {paths: ["/a/{*}", "/a/{*}.txt"], notPaths: ["/{**}/{*}"]}}]}]}`,
			refused: []string{"spec.rules[0].to[0].operation.paths[1]: ", "spec.rules[0].to[0].operation.notPaths[0]: "}, warned: []string{"only the waypoint"}},
		{name: "a trust domain", kind: authz, spec: `{targetRefs: [{kind: Service, name: w}], rules: [{when: [{key: source.trustDomain, values: [a]}]}]}`, warned: []string{"only the waypoint"}},
		{name: "unknown attribute", kind: authz, spec: `{rules: [{when: [{key: source.labels, values: [a]}]}]}`, refused: []string{`"source.labels" is not an attribute`}, warned: []string{"never allows"}},
		{name: "accounts with namespaces", kind: authz, spec: `{rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}`, refused: []string{"cannot be combined"}},
		{name: "selector nothing can match", kind: authz, spec: `{selector: {matchLabels: {app: "we*"}}}`, refused: []string{"spec.selector.matchLabels[app]"}},
		{name: "selector and target", kind: authz, spec: `{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: w}]}`, refused: []string{"either a selector or targetRefs"}, warned: []string{"only the waypoint"}},
		{name: "target elsewhere", kind: authz, spec: `{targetRef: {kind: Service, name: w, namespace: other}}`, refused: []string{"spec.targetRef.namespace"}, warned: []string{"only the waypoint"}},
		{name: "target of no kind", kind: authz, spec: `{targetRefs: [{kind: Pod, name: w}]}`, refused: []string{"spec.targetRefs[0].kind"}, warned: []string{"only the waypoint"}},
		{name: "custom without provider", kind: authz, spec: `{action: CUSTOM, rules: [{}]}`, refused: []string{"spec.provider.name"}, warned: []string{"everything the rules match is denied"}},
		{name: "custom", kind: authz, spec: `{action: CUSTOM, provider: {name: p}, rules: [{}]}`, warned: []string{"everything the rules match is denied"}},
		{name: "provider without custom", kind: authz, spec: `{provider: {name: p}}`, refused: []string{"spec.provider: "}},
		{name: "audit", kind: authz, spec: `{action: AUDIT, rules: [{}]}`, warned: []string{"no effect"}},
		{name: "deny nothing", kind: authz, spec: `{action: DENY}`, warned: []string{"denies nothing"}},
		{name: "allow with a method", kind: authz, spec: `{rules: [{}, {to: [{operation: {methods: [GET], ports: ["80"]}}]}]}`, warned: []string{"spec.rules[1]: never allows: node proxies cannot see to[0].operation.methods; attach"}},
		{name: "allow with a method in one of two", kind: authz, spec: `{rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ["80"]}}]}]}`, warned: []string{"spec.rules[0]: allows less than written"}},
		{name: "deny with a method", kind: authz, spec: `{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]}`, warned: []string{"spec.rules[0]: denies whatever its other fields match: node proxies cannot see to[0].operation.methods"}},
		{name: "deny with nothing else", kind: authz, spec: `{action: DENY, rules: [{when: [{key: "request.headers[x]", values: [v]}]}]}`, warned: []string{"spec.rules[0]: denies EVERY connection"}},

		{name: "strict", kind: peer, spec: `{mtls: {mode: STRICT}}`},
		{name: "ports", kind: peer, spec: `{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}`},
		{name: "ports without selector", kind: peer, spec: `{portLevelMtls: {8080: {mode: STRICT}}}`, refused: []string{"spec.portLevelMtls"}},
		{name: "ports with an empty selector", kind: peer, spec: `{selector: {}, portLevelMtls: {8080: {mode: STRICT}}}`, refused: []string{"spec.portLevelMtls"}},
		{name: "not a port", kind: peer, spec: `{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}, 70000: {}}}`, refused: []string{"spec.portLevelMtls[0]", "spec.portLevelMtls[70000]"}},
		{name: "unknown mode", kind: peer, spec: `{mtls: {mode: STRIKT}}`, refused: []string{"spec.mtls.mode"}},
		{name: "disable", kind: peer, spec: `{mtls: {mode: DISABLE}}`, warned: []string{"write PERMISSIVE"}},

		{name: "a service entry", kind: entry, spec: `{hosts: [db.example.com], addresses: [10.1.0.0/16], ports: [{number: 5432, name: pg, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.1, ports: {pg: 15432}}]}`},
		{name: "no hosts", kind: entry, spec: `{}`, refused: []string{"spec.hosts"}},
		{name: "all hosts", kind: entry, spec: `{hosts: ["*"]}`, refused: []string{"spec.hosts[0]"}},
		{name: "not a host", kind: entry, spec: `{hosts: ["a b", "a*.b", h, h]}`, refused: []string{"spec.hosts[0]", "spec.hosts[1]", "spec.hosts[3]"}},
		{name: "wildcard", kind: entry, spec: `{hosts: ["*.example.com"], resolution: NONE}`},
		{name: "dynamic", kind: entry, spec: `{hosts: ["*.example.com", a.example.org], resolution: DYNAMIC_DNS}`},
		{name: "wildcard with endpoints", kind: entry, spec: `{hosts: ["*.example.com"], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}`, warned: []string{"without a waypoint"}},
		{name: "wildcard by DNS", kind: entry, spec: `{hosts: ["*.example.com"], resolution: DNS}`, refused: []string{"spec.resolution"}, warned: []string{"without a waypoint"}},
		{name: "addresses", kind: entry, spec: `{hosts: [h], addresses: [x, 10.0.0.0/40], resolution: STATIC}`, refused: []string{"spec.addresses[0]", "spec.addresses[1]"}},
		{name: "blocks by DNS", kind: entry, spec: `{hosts: [h], addresses: [10.0.0.0/8], resolution: DNS}`, refused: []string{"CIDR blocks need"}},
		{name: "ports of an entry", kind: entry, spec: `{hosts: [h], ports: [{number: 0, name: a}, {number: 80}, {number: 80, name: a, targetPort: 70000, protocol: SCTP}]}`,
			refused: []string{"ports[0].number", "ports[1].name", "ports[2].targetPort", `two ports "a"`, "two ports 80", `"SCTP"`}},
		{name: "UDP", kind: entry, spec: `{hosts: [h], ports: [{number: 53, name: dns, protocol: UDP}]}`, warned: []string{"does not carry UDP"}},
		{name: "endpoints that go nowhere", kind: entry, spec: `{hosts: [h], resolution: NONE, endpoints: [{address: 1.1.1.1}]}`, refused: []string{"resolution NONE"}},
		{name: "names that stay", kind: entry, spec: `{hosts: [h], resolution: STATIC, endpoints: [{address: a.example.com}]}`, refused: []string{"endpoints[0].address"}},
		{name: "two ways to endpoints", kind: entry, spec: `{hosts: [h], resolution: STATIC, endpoints: [{address: 1.1.1.1}], workloadSelector: {labels: {a: "b*"}}}`, refused: []string{"either endpoints or a workloadSelector", "workloadSelector.labels[a]"}},
		{name: "unknown port of an endpoint", kind: entry, spec: `{hosts: [h], resolution: STATIC, ports: [{number: 1, name: a}], endpoints: [{address: 1.1.1.1, ports: {b: 1}}]}`, refused: []string{"no port of this name"}},
		{name: "visibility", kind: entry, spec: `{hosts: [h], exportTo: [other]}`, warned: []string{"visible to the whole mesh"}},
		{name: "own visibility", kind: entry, spec: `{hosts: [h], exportTo: ["."]}`},

		{name: "a machine", kind: machine, spec: `{address: 192.0.2.7, labels: {app: vm}, serviceAccount: vm, ports: {http: 8080}}`},
		{name: "no address", kind: machine, spec: `{labels: {a: b}}`, refused: []string{"spec.address"}},
		{name: "network only", kind: machine, spec: `{network: net}`, warned: []string{"no node proxy can reach it"}},
		{name: "socket", kind: machine, spec: `{address: "unix:///x"}`, warned: []string{"unix socket"}},
		{name: "bad endpoint", kind: machine, spec: `{address: "a b", ports: {x: 70000}, serviceAccount: "a/b", labels: {"": b}}`, refused: []string{"spec.address", "spec.ports[x]", "spec.serviceAccount", "spec.labels"}},
		{name: "zone", kind: machine, spec: `{address: "fe80::1%eth0"}`, refused: []string{"zone"}},

		{name: "a waypoint", kind: source.Gateway.Kind, spec: `{gatewayClassName: istio-waypoint, infrastructure: {labels: {a: b}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}`},
		{name: "a waypoint that gets nothing", kind: source.Gateway.Kind, spec: `{gatewayClassName: istio-waypoint, listeners: [{name: h, port: 80, protocol: HTTP}]}`, warned: []string{"HBONE"}},
		{name: "another gateway", kind: source.Gateway.Kind, spec: `{gatewayClassName: other}`},
		{name: "a route", kind: source.HTTPRoute.Kind, spec: `{parentRefs: [{group: "", kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}`},
		{name: "a match that cannot be evaluated", kind: source.HTTPRoute.Kind, spec: `{parentRefs: [{group: "", kind: Service, name: web}], rules: [{}, {matches: [{path: {type: RegularExpression, value: "("}}]}]}`, refused: []string{"spec.rules[1]: matches[0]: error parsing regexp"}},
		{name: "the same beside a Gateway", kind: source.HTTPRoute.Kind, spec: `{parentRefs: [{name: edge}, {group: "", kind: Service, name: web}], rules: [{matches: [{path: {type: RegularExpression, value: "("}}]}]}`, warned: []string{"the rule fits no request"}},
		{name: "the same of a Gateway", kind: source.HTTPRoute.Kind, spec: `{parentRefs: [{name: edge}], rules: [{matches: [{path: {type: RegularExpression, value: "("}}]}]}`},
		{name: "what is not executed", kind: source.HTTPRoute.Kind,
			spec:   `{hostnames: [a.b], parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: x}], rules: [{filters: [{type: ExternalAuth}]}, {sessionPersistence: {type: Magic}}, {backendRefs: [{name: web, port: 80, filters: [{type: CORS}]}]}]}`,
			warned: []string{"hostnames have no meaning", "spec.rules[0]: filters[0]: the type is \"ExternalAuth\", and the field for it is missing: in the mesh, its requests are answered with 500", "spec.rules[1]: sessionPersistence.type: \"Magic\" is not supported", "spec.rules[2]: backendRefs[0].filters[0]"}},
		{name: "an empty method", kind: source.GRPCRoute.Kind, spec: `{parentRefs: [{group: "", kind: Service, name: web}], rules: [{matches: [{method: {}}]}]}`, refused: []string{"neither service nor method"}},
		{name: "what Kubernetes judges", kind: source.Service.Kind, spec: `{nonsense: 1}`},
	}
	for _, tt := range tests {
		t.Run(tt.kind.Name+" "+tt.name, func(t *testing.T) {
			got := Review(object(t, tt.kind, "shop", tt.spec))
			if got.Allowed != (len(tt.refused) == 0) {
				t.Errorf("allowed: %v (%s)", got.Allowed, got.Message)
			}
			for _, want := range tt.refused {
				if !strings.Contains(got.Message, want) {
					t.Errorf("message %q does not say %q", got.Message, want)
				}
			}
			if len(got.Warnings) != len(tt.warned) {
				t.Fatalf("warnings %q, want %d", got.Warnings, len(tt.warned))
			}
			for i, want := range tt.warned {
				if !strings.Contains(got.Warnings[i], want) {
					t.Errorf("warning %q does not say %q", got.Warnings[i], want)
				}
			}
		})
	}
}

func TestAskedOfWaypoints(t *testing.T) {
	for _, tt := range []struct {
		name   string
		meta   metav1.ObjectMeta
		warned []string
	}{
		{"a canary", metav1.ObjectMeta{Labels: map[string]string{"istio.io/use-waypoint-canary": "new"}}, []string{"connections are not split between waypoints: new gets none"}},
		{"a canary with a share", metav1.ObjectMeta{Labels: map[string]string{"istio.io/use-waypoint-canary": "new"}, Annotations: map[string]string{"istio.io/use-waypoint-canary-weight": "10"}}, []string{"new gets none"}},
		{"a share that is none", metav1.ObjectMeta{Labels: map[string]string{"istio.io/use-waypoint-canary": "new"}, Annotations: map[string]string{"istio.io/use-waypoint-canary-weight": "-1"}}, []string{`"-1" is not a whole number`, "new gets none"}},
		{"no canary", metav1.ObjectMeta{Labels: map[string]string{"istio.io/use-waypoint-canary": "none"}}, nil},
		{"racing", metav1.ObjectMeta{Annotations: map[string]string{"istio.io/connect-strategy": "RACE_FIRST_TCP_CONNECT"}}, nil},
		{"racing in a way that is unknown", metav1.ObjectMeta{Annotations: map[string]string{"istio.io/connect-strategy": "SOMETIMES"}}, []string{"neither DEFAULT nor RACE_FIRST_TCP_CONNECT"}},
		{"not racing", metav1.ObjectMeta{Annotations: map[string]string{"istio.io/connect-strategy": "default"}}, nil},
	} {
		e := &networkingv1.ServiceEntry{ObjectMeta: tt.meta}
		e.Spec.Hosts = []string{"db.example.com"}
		found := Reviewer{}.Check(e)
		if len(found) != len(tt.warned) {
			t.Errorf("%s: %v", tt.name, found)
			continue
		}
		for i, f := range found {
			if f.Class.Refuses() || !strings.Contains(f.String(), tt.warned[i]) {
				t.Errorf("%s: %v, want %q", tt.name, f, tt.warned[i])
			}
		}
	}
}

func TestRootNamespace(t *testing.T) {
	data, gvk := object(t, peer, "mesh", `{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}`)
	if got := Review(data, gvk); !got.Allowed || len(got.Warnings) != 0 {
		t.Error(got)
	}
	if got := (Reviewer{RootNamespace: "mesh"}).Review(data, gvk); !got.Allowed || len(got.Warnings) != 1 {
		t.Error(got)
	}
}

func TestKindsWithoutEffect(t *testing.T) {
	for _, gk := range UnreadKinds() {
		got := Review([]byte(`{"spec":{"anything":1}}`), gk.WithVersion("v1"))
		if !got.Allowed || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], gk.Kind) || len(got.Warnings[0]) >= maxWarning {
			t.Errorf("%s: %+v", gk, got)
		}
		if _, read := source.KindOf(gk.Group, gk.Kind); read {
			t.Errorf("%s is read", gk)
		}
	}
	got := Review(nil, schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "VirtualService"})
	if !got.Allowed || len(got.Warnings) > 0 {
		t.Errorf("somebody else's kind: %+v", got)
	}
}

func TestDryRunAnnotation(t *testing.T) {
	for value, allowed := range map[string]bool{"true": true, "false": true, "yes": false, "": false, "True": false} {
		data := fmt.Appendf(nil, `{"metadata":{"name":"x","namespace":"n","annotations":{"istio.io/dry-run":%q}},"spec":{}}`, value)
		got := Review(data, schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: authz.Name})
		if got.Allowed != allowed {
			t.Errorf("%q: %+v", value, got)
		}
	}
}

// What is stored already must be able to lose its finalizers.
func TestUpdateOfAnObjectThatWasNeverGood(t *testing.T) {
	bad, gvk := object(t, authz, "shop", `{rules: [{to: [{operation: {ports: [http]}}]}]}`)
	labelled := []byte(strings.Replace(string(bad), `"name":"x"`, `"name":"x","labels":{"a":"b"}`, 1))
	worse, _ := object(t, authz, "shop", `{rules: [{to: [{operation: {ports: [https]}}]}]}`)
	var r Reviewer
	if got := r.ReviewUpdate(bad, labelled, gvk); !got.Allowed || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "would be refused now") {
		t.Errorf("%+v", got)
	}
	for name, old := range map[string][]byte{"other spec": worse, "none": nil, "not JSON": []byte("{")} {
		if got := r.ReviewUpdate(old, bad, gvk); got.Allowed {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	rule := `{to: [{operation: {ports: [http], methods: [` + strings.Repeat("é", 300) + `], paths: [/], hosts: [h], notMethods: [x], notPaths: [/x], notHosts: [z]}}]}`
	got := Review(object(t, authz, "shop", `{action: DENY, rules: [`+strings.Repeat(rule+",", 200)+`]}`))
	if got.Allowed || strings.Count(got.Message, "is not a port") > maxMistakes || !strings.Contains(got.Message, "and 191 more") {
		t.Errorf("%d bytes of message: %.300s", len(got.Message), got.Message)
	}
	if len(got.Warnings) != maxWarnings || slices.ContainsFunc(got.Warnings, func(w string) bool { return len(w) > maxWarning }) {
		t.Errorf("%d warnings: %q", len(got.Warnings), got.Warnings)
	}
}

func FuzzReview(f *testing.F) {
	kinds := []*source.Kind{authz, peer, entry, machine, source.Gateway.Kind}
	for i, spec := range []string{
		`{action: DENY, rules: [{from: [{source: {notIpBlocks: [x]}}], to: [{operation: {ports: ["1"]}}], when: [{key: "a[", values: [b]}]}]}`,
		`{selector: {matchLabels: {a: b}}, portLevelMtls: {1: {mode: STRICT}}}`,
		`{hosts: ["*.a"], ports: [{number: 1, name: n}], endpoints: [{address: 1.1.1.1}], resolution: DNS}`,
		`{address: x, ports: {a: 1}}`,
		`{gatewayClassName: istio-waypoint, listeners: [{port: 1}]}`,
	} {
		data, _ := object(f, kinds[i], "n", spec)
		f.Add(uint8(i), data)
	}
	f.Add(uint8(0), []byte(`{"spec":{"rules":[null,{"from":[null],"to":[{"operation":null}]}]},"metadata":null}`))
	f.Fuzz(func(t *testing.T, k uint8, data []byte) {
		kind := kinds[int(k)%len(kinds)]
		gvk := schema.GroupVersionKind{Group: kind.Group, Version: kind.Versions[0], Kind: kind.Name}
		got := Review(data, gvk)
		if got.Allowed == (got.Message != "") {
			t.Errorf("allowed %v with message %q", got.Allowed, got.Message)
		}
		// A change to the very same is never refused, and an object that may be
		// made may also be made of any other.
		if same := (Reviewer{}).ReviewUpdate(data, data, gvk); !same.Allowed && sameMeaning(data, data) {
			t.Error(same)
		}
		if up := (Reviewer{}).ReviewUpdate(nil, data, gvk); up.Allowed != got.Allowed {
			t.Error(up, got)
		}
	})
}

// book is an AddressBook with one Service.
type book struct{}

func (book) Clashes(namespace string, p netip.Prefix) ([]string, int) {
	if namespace == "shop" || !p.Contains(netip.MustParseAddr("10.96.0.16")) {
		return nil, 0
	}
	if p.IsSingleIP() {
		return []string{"Service shop/web"}, 0
	}
	return []string{"Pod shop/a", "Pod shop/b", "Service shop/web"}, 4
}

func TestAddressesOfOthers(t *testing.T) {
	for _, tc := range []struct{ namespace, rest, want string }{
		{"aaa", `addresses: [10.96.0.16]`, "spec.addresses[0]: 10.96.0.16 belongs to Service shop/web: proxies do not receive this claim; remove it"},
		{"aaa", `addresses: [10.96.0.16], exportTo: ["."]`, ""},
		{"aaa", `addresses: [240.0.0.1, "::ffff:10.96.0.16/128"]`, ""}, // the book has plain addresses
		{"aaa", `addresses: [240.0.0.1, 10.0.0.0/8]`, "spec.addresses[1]: 10.0.0.0/8 contains the addresses of Pod shop/a, Pod shop/b, Service shop/web and 4 more, which stay what they are; give narrower ranges"},
		{"shop", `addresses: [10.96.0.16]`, ""},
	} {
		data, err := yaml.YAMLToJSON([]byte(`{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e, namespace: ` + tc.namespace +
			`}, spec: {hosts: [a.example], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.9.9.9}], ` + tc.rest + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		got := Reviewer{Addresses: book{}}.Review(data, schema.GroupVersionKind{Group: "networking.istio.io", Version: "v1", Kind: "ServiceEntry"})
		if warnings := strings.Join(got.Warnings, "\n"); !got.Allowed || warnings != tc.want {
			t.Errorf("%s %s: allowed %v, warnings %q, want %q", tc.namespace, tc.rest, got.Allowed, warnings, tc.want)
		}
	}
}
