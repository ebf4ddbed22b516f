package policy_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// clients are connections to a workload of namespace shop, by a short name.
var clients = map[string]rbac.Conn{
	"a":     client("a/x", "10.0.0.5:999", "10.1.0.1:8080"),
	"ab":    client("ab/x", "10.0.0.6:999", "10.1.0.1:8080"),
	"b":     client("b/y", "10.0.1.5:999", "10.1.0.1:9090"),
	"plain": client("", "10.0.0.5:999", "10.1.0.1:8080"),
	"six":   client("a/x", "[fd00::5]:999", "[fd00:1::1]:8080"),
	"map4":  client("a/x", "[::ffff:10.0.0.5]:999", "[::ffff:10.1.0.1]:8080"),
}

func client(account, src, dst string) rbac.Conn {
	c := rbac.Conn{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	if ns, name, ok := strings.Cut(account, "/"); ok {
		c.Identity = identity.Identity{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: name}
	}
	return c
}

// written is one policy of namespace shop: what the webhook says of it, and
// who is let in when it is in force although the webhook was not asked.
type written struct {
	name, spec string // the spec as YAML
	dry        bool   // under trial
	refused    bool   // by the webhook
	in, out    string // clients
}

var table = []written{
	{name: "exact principal", spec: `{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]}]}`, in: "a", out: "ab b plain"},
	{name: "principal in another case", spec: `{rules: [{from: [{source: {principals: [cluster.local/ns/A/sa/x]}}]}]}`, in: "", out: "a"},
	{name: "prefix", spec: `{rules: [{from: [{source: {principals: ["cluster.local/ns/a*"]}}]}]}`, in: "a ab", out: "b plain"},
	{name: "suffix", spec: `{rules: [{from: [{source: {principals: ["*/ns/a/sa/x"]}}]}]}`, in: "a", out: "ab plain"},
	{name: "suffix that crosses a segment", spec: `{rules: [{from: [{source: {principals: ["*a/sa/x"]}}]}]}`, in: "a", out: "ab"},
	{name: "presence", spec: `{rules: [{from: [{source: {principals: ["*"]}}]}]}`, in: "a b", out: "plain"},
	{name: "two stars", spec: `{rules: [{from: [{source: {principals: ["**"]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "star in the middle", spec: `{rules: [{from: [{source: {principals: ["cluster.local/*/sa/x"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "star at both ends", spec: `{rules: [{from: [{source: {principals: ["*a*"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "spiffe:// in front", spec: `{rules: [{from: [{source: {principals: ["spiffe://cluster.local/ns/a/sa/x"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "empty principal", spec: `{rules: [{from: [{source: {principals: [""]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty principal", spec: `{action: DENY, rules: [{from: [{source: {principals: [""]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "notPrincipals presence, DENY", spec: `{action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}`, in: "a", out: "plain"},
	{name: "notPrincipals presence, ALLOW", spec: `{rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}`, in: "plain", out: "a"},
	{name: "AND within a source", spec: `{rules: [{from: [{source: {namespaces: [a], ipBlocks: [10.0.1.0/24]}}]}]}`, in: "", out: "a b"},
	{name: "notX and X", spec: `{rules: [{from: [{source: {namespaces: ["a*"], notNamespaces: [ab]}}]}]}`, in: "a", out: "ab b plain"},
	{name: "OR of sources, AND with to", spec: `{rules: [{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}], to: [{operation: {ports: ["8080"]}}]}]}`, in: "a", out: "b"},
	{name: "notNamespaces alone lets plaintext in (as Istio)", spec: `{rules: [{from: [{source: {notNamespaces: [b]}}]}]}`, in: "a plain", out: "b"},
	{name: "DENY notNamespaces denies plaintext", spec: `{action: DENY, rules: [{from: [{source: {notNamespaces: [a]}}]}]}`, in: "a", out: "b plain"},
	{name: "serviceAccounts short form", spec: `{rules: [{from: [{source: {serviceAccounts: [x]}}]}]}`, in: "", out: "a ab plain"},
	{name: "serviceAccounts", spec: `{rules: [{from: [{source: {serviceAccounts: [a/x]}}]}]}`, in: "a", out: "ab plain"},
	{name: "serviceAccounts with a star", spec: `{rules: [{from: [{source: {serviceAccounts: ["a/*"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "notServiceAccounts DENY", spec: `{action: DENY, rules: [{from: [{source: {notServiceAccounts: [a/x]}}]}]}`, in: "a", out: "b plain"},
	{name: "ipBlocks host bits", spec: `{rules: [{from: [{source: {ipBlocks: [10.0.0.77/24]}}]}]}`, in: "a map4", out: "b"},
	{name: "ipBlocks 4in6", spec: `{rules: [{from: [{source: {ipBlocks: ["::ffff:10.0.0.0/120"]}}]}]}`, in: "a map4", out: "b six"},
	{name: "ipBlocks 4in6 address", spec: `{rules: [{from: [{source: {ipBlocks: ["::ffff:10.0.0.5"]}}]}]}`, in: "a", out: "b"},
	{name: "DENY ipBlocks ::/0", spec: `{action: DENY, rules: [{from: [{source: {ipBlocks: ["::/0"]}}]}]}`, in: "a map4", out: "six"},
	{name: "DENY ipBlocks ::ffff:0:0/95", spec: `{action: DENY, rules: [{from: [{source: {ipBlocks: ["::ffff:0:0/95"]}}]}]}`, refused: true, in: "", out: "map4 a six"},
	{name: "DENY ipBlocks wrong", spec: `{action: DENY, rules: [{from: [{source: {ipBlocks: ["10.0.0.0/33"]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "ALLOW ipBlocks with leading zeros", spec: `{rules: [{from: [{source: {ipBlocks: ["010.0.0.5"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "ALLOW notIpBlocks wrong", spec: `{rules: [{from: [{source: {notIpBlocks: ["x"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "remoteIpBlocks ALLOW", spec: `{rules: [{from: [{source: {remoteIpBlocks: ["10.0.0.0/8"]}}]}]}`, in: "", out: "a"},
	{name: "remoteIpBlocks DENY", spec: `{action: DENY, rules: [{from: [{source: {remoteIpBlocks: ["192.0.2.0/24"]}}]}]}`, in: "", out: "a"},
	{name: "DENY one known, one unseen field", spec: `{action: DENY, rules: [{from: [{source: {namespaces: [b], requestPrincipals: ["*"]}}]}]}`, in: "a", out: "b"},
	{name: "ALLOW or-ed: one unseen, one fine", spec: `{rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ["8080"]}}]}]}`, in: "a", out: "b"},
	{name: "port with leading zeros", spec: `{rules: [{to: [{operation: {ports: ["08080"]}}]}]}`, in: "a", out: "b"},
	{name: "port 0", spec: `{action: DENY, rules: [{to: [{operation: {ports: ["0"]}}]}]}`, refused: true, in: "", out: "a b"},
	{name: "port 65536+8080", spec: `{rules: [{to: [{operation: {ports: ["73616"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "notPorts DENY", spec: `{action: DENY, rules: [{to: [{operation: {notPorts: ["8080"]}}]}]}`, in: "a", out: "b"},
	{name: "port name", spec: `{rules: [{to: [{operation: {ports: ["http"]}}]}]}`, refused: true, in: "", out: "a"},
	{name: "empty from entry", spec: `{rules: [{from: [{}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty source", spec: `{rules: [{from: [{source: {}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty from list", spec: `{rules: [{from: []}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty to entry beside a good one", spec: `{rules: [{to: [{operation: {ports: ["9090"]}}, {}]}]}`, refused: true, in: "b", out: "a"},
	{name: "empty principals list", spec: `{rules: [{from: [{source: {principals: []}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when without values", spec: `{rules: [{when: [{key: source.principal}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when unknown key ALLOW", spec: `{rules: [{when: [{key: source.foo, values: [x]}]}]}`, refused: true, in: "", out: "a"},
	{name: "when unknown key DENY", spec: `{action: DENY, rules: [{when: [{key: source.foo, values: [x]}]}]}`, refused: true, in: "", out: "a"},
	{name: "when key in another case", spec: `{rules: [{when: [{key: Source.Principal, values: ["*"]}]}]}`, refused: true, in: "", out: "a"},
	{name: "when two conditions AND", spec: `{rules: [{when: [{key: source.namespace, values: [a, b]}, {key: destination.port, values: ["8080"]}]}]}`, in: "a", out: "b"},
	{name: "when notValues", spec: `{action: DENY, rules: [{when: [{key: source.namespace, notValues: [a]}]}]}`, in: "a", out: "b plain"},
	{name: "when connection.sni ALLOW", spec: `{rules: [{when: [{key: connection.sni, values: [x]}]}]}`, in: "", out: "a"},
	{name: "when destination.ip", spec: `{rules: [{when: [{key: destination.ip, values: [10.1.0.1]}]}]}`, in: "a map4", out: "six"},
	{name: "no rules ALLOW", spec: `{action: ALLOW}`, in: "", out: "a plain"},
	{name: "no rules DENY", spec: `{action: DENY}`, in: "a plain", out: ""},
	{name: "empty rule ALLOW", spec: `{rules: [{}]}`, in: "a plain", out: ""},
	{name: "CUSTOM", spec: `{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {paths: ["/a"]}}]}]}`, in: "", out: "a"},
	{name: "AUDIT", spec: `{action: AUDIT, rules: [{}]}`, in: "a", out: ""},
	{name: "trustDomains ALLOW", spec: `{rules: [{from: [{source: {trustDomains: [cluster.local]}}]}]}`, in: "", out: "a"},
	{name: "trustDomains DENY", spec: `{action: DENY, rules: [{from: [{source: {trustDomains: [elsewhere]}}]}]}`, in: "", out: "a"},
	{name: "dry-run DENY", spec: `{action: DENY, rules: [{}]}`, dry: true, in: "a", out: ""},
	{name: "null for the sources", spec: `{rules: [{from: null}]}`, refused: true, in: "", out: "a plain"},
	{name: "null for a source", spec: `{rules: [{from: [{source: null}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty to list", spec: `{rules: [{to: []}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty when list", spec: `{rules: [{when: []}]}`, refused: true, in: "", out: "a plain"},
	{name: "all clauses empty", spec: `{rules: [{from: [], to: [], when: []}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty from beside a good to", spec: `{rules: [{from: [], to: [{operation: {ports: ["8080"]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty to beside a good from", spec: `{rules: [{from: [{source: {namespaces: [a]}}], to: []}]}`, refused: true, in: "", out: "a b plain"},
	{name: "empty when beside a good from", spec: `{rules: [{from: [{source: {namespaces: [a]}}], when: []}]}`, refused: true, in: "", out: "a b plain"},
	{name: "empty from, good rule after it", spec: `{rules: [{from: []}, {from: [{source: {namespaces: [b]}}]}]}`, refused: true, in: "b", out: "a plain"},
	{name: "empty from beside a good one", spec: `{rules: [{from: [{}, {source: {namespaces: [b]}}]}]}`, refused: true, in: "b", out: "a plain"},
	{name: "empty operation, good from", spec: `{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty list of ports", spec: `{rules: [{to: [{operation: {ports: []}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty list of exceptions alone", spec: `{rules: [{from: [{source: {notPrincipals: []}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty list of exceptions beside another", spec: `{rules: [{from: [{source: {notPrincipals: [], namespaces: [a]}}]}]}`, in: "a", out: "b plain"},
	{name: "empty principals beside namespaces", spec: `{rules: [{from: [{source: {principals: [], namespaces: [a]}}]}]}`, refused: true, in: "", out: "a b plain"},
	{name: "null principals beside namespaces", spec: `{rules: [{from: [{source: {principals: null, namespaces: [a]}}]}]}`, refused: true, in: "", out: "a b plain"},
	{name: "empty blocks by the other name", spec: `{rules: [{from: [{source: {ip_blocks: [], namespaces: [a]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty remoteIpBlocks", spec: `{rules: [{from: [{source: {remoteIpBlocks: []}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty methods", spec: `{rules: [{to: [{operation: {methods: []}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when with empty values", spec: `{rules: [{when: [{key: source.namespace, values: []}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when with empty notValues", spec: `{rules: [{when: [{key: source.namespace, notValues: []}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when with null values", spec: `{rules: [{when: [{key: source.namespace, values: null}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "when without a key", spec: `{rules: [{when: [{values: [a]}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty condition", spec: `{rules: [{when: [{}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "empty condition beside a good one", spec: `{rules: [{when: [{key: source.namespace, values: [a]}, {key: destination.port}]}]}`, refused: true, in: "", out: "a b plain"},
	{name: "empty text", spec: `{rules: [{from: [{source: {namespaces: [""]}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty from entry", spec: `{action: DENY, rules: [{from: [{}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty source", spec: `{action: DENY, rules: [{from: [{source: {}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty from list", spec: `{action: DENY, rules: [{from: []}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty from list beside to", spec: `{action: DENY, rules: [{from: [], to: [{operation: {ports: ["8080"]}}]}]}`, refused: true, in: "b", out: "a plain"},
	{name: "DENY empty principals beside namespaces", spec: `{action: DENY, rules: [{from: [{source: {principals: [], namespaces: [a]}}]}]}`, refused: true, in: "b plain", out: "a"},
	{name: "DENY when without values", spec: `{action: DENY, rules: [{when: [{key: source.principal}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "DENY empty operation", spec: `{action: DENY, rules: [{to: [{operation: {}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "CUSTOM empty source", spec: `{action: CUSTOM, provider: {name: x}, rules: [{from: [{source: {}}]}]}`, refused: true, in: "", out: "a plain"},
	{name: "no rules at all, null", spec: `{action: ALLOW, rules: null}`, in: "", out: "a plain"},
	{name: "ALLOW ipBlocks ::ffff:0:0/95", spec: `{rules: [{from: [{source: {ipBlocks: ["::ffff:0:0/95"]}}]}]}`, refused: true, in: "", out: "a map4 six"},
	{name: "ALLOW notIpBlocks ::/64", spec: `{rules: [{from: [{source: {notIpBlocks: ["::/64"]}}]}]}`, refused: true, in: "", out: "a map4 six"},
	{name: "DENY destination.ip ::/1", spec: `{action: DENY, rules: [{when: [{key: destination.ip, values: ["::/1"]}]}]}`, refused: true, in: "", out: "a map4 six"},
}

// object is the policy as JSON.
func (w written) object(t testing.TB) []byte {
	t.Helper()
	meta := "namespace: shop, name: p"
	if w.dry {
		meta += `, annotations: {istio.io/dry-run: "true"}`
	}
	data, err := yaml.YAMLToJSON([]byte(fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {%s}, spec: %s}", meta, w.spec)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// enforce is what node proxies have of a policy.
func enforce(p *securityv1.AuthorizationPolicy) (*rbac.Store, *policy.Authorization) {
	store := rbac.NewStore()
	a := policy.Translate(p, "istio-system")
	if a.Policy != nil {
		store.Apply([]rbac.Update{{Name: "shop/p", Policy: a.Policy}}, nil)
	}
	return store, a
}

// TestTable runs each policy through the webhook, and as it is when the webhook
// was not asked through reading, translation and evaluation.
func TestTable(t *testing.T) {
	for _, w := range table {
		t.Run(w.name, func(t *testing.T) {
			data := w.object(t)
			r := admission.Review(data, schema.GroupVersionKind{Group: "security.istio.io", Version: "v1", Kind: "AuthorizationPolicy"})
			if r.Allowed == w.refused {
				t.Errorf("webhook: allowed %v %s", r.Allowed, r.Message)
			}
			obj, problems := file.DecodeJSON(source.AuthorizationPolicy.Kind, data)
			p, ok := obj.(*securityv1.AuthorizationPolicy)
			if !ok {
				t.Fatalf("not read: %v", problems)
			}
			store, a := enforce(p)
			for _, group := range []struct {
				names string
				in    bool
			}{{w.in, true}, {w.out, false}} {
				for name := range strings.FieldsSeq(group.names) {
					c, known := clients[name]
					if !known {
						t.Fatalf("no client %q", name)
					}
					if d := store.Set().Evaluate(rbac.Target{Namespace: "shop"}, &c); d.Allowed != group.in {
						t.Errorf("%s is let in: %v\n%v", name, d.Allowed, a.Policy)
					}
				}
			}
			if w.refused && a.Policy != nil && a.Conditions[0].Status != status.False {
				t.Errorf("the webhook refuses it, and the status is %+v", a.Conditions[0])
			}
		})
	}
}

// FuzzRaw: whatever a policy's JSON is, reading and translating it does not
// crash, and a rule with a part that is empty lets no client in.
func FuzzRaw(f *testing.F) {
	for _, w := range table {
		var top struct{ Spec json.RawMessage }
		if err := json.Unmarshal(w.object(f), &top); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(top.Spec))
	}
	f.Fuzz(func(t *testing.T, spec []byte) {
		if !json.Valid(spec) {
			return
		}
		data := fmt.Appendf(nil, `{"apiVersion":"security.istio.io/v1","kind":"AuthorizationPolicy","metadata":{"namespace":"shop","name":"p"},"spec":%s}`, spec)
		obj, _ := file.DecodeJSON(source.AuthorizationPolicy.Kind, data)
		p, ok := obj.(*securityv1.AuthorizationPolicy)
		if !ok {
			return
		}
		store, a := enforce(p)
		if a.Policy == nil || p.Annotations != nil {
			return
		}
		may, known := everyRuleIsEmpty(spec)
		if !known {
			return
		}
		for name, c := range clients {
			if d := store.Set().Evaluate(rbac.Target{Namespace: "shop"}, &c); d.Allowed && may {
				t.Errorf("%s is let in by %s", name, spec)
			}
		}
	})
}

// everyRuleIsEmpty reports whether each rule of an ALLOW policy has a part that
// is empty, so that none of them may let anybody in. It reads nothing but the
// JSON, word by word. known is false for what it cannot judge.
func everyRuleIsEmpty(spec []byte) (empty, known bool) {
	var raw map[string]any
	if json.Unmarshal(spec, &raw) != nil {
		return false, false
	}
	if action, set := raw["action"]; set && action != "ALLOW" {
		return false, false
	}
	rules, _ := raw["rules"].([]any)
	for _, r := range rules {
		rule, ok := r.(map[string]any)
		if !ok {
			return false, false
		}
		if !ruleIsEmpty(rule) {
			return false, true
		}
	}
	return true, true
}

func ruleIsEmpty(rule map[string]any) bool {
	for clause, v := range rule {
		list, _ := v.([]any)
		some := false // a part that is not empty
		every := len(list) > 0
		for _, part := range list {
			fields, _ := part.(map[string]any)
			if inner, wrapped := map[string]string{"from": "source", "to": "operation"}[clause]; wrapped {
				fields, _ = fields[inner].(map[string]any)
			}
			full := false
			for name, values := range fields {
				l, isList := values.([]any)
				full = full || name != "key" && isList && len(l) > 0
			}
			some, every = some || full, every && full
		}
		if clause == "when" && !every || !some {
			return true
		}
	}
	return false
}
