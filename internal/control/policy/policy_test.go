package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/control/status"
)

func written(t *testing.T, namespace, spec string) *securityv1.AuthorizationPolicy {
	t.Helper()
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: namespace}}
	if err := protojson.Unmarshal([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTranslate(t *testing.T) {
	tests := map[string]struct {
		namespace, spec string
		want            string // the policy as JSON, without name and namespace; empty for none
		condition       string // status, reason and a part of the message
	}{
		"allow one namespace": {
			spec:      `{"rules":[{"from":[{"source":{"namespaces":["web"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","groups":[{"rules":[{"matches":[{"namespaces":[{"exact":"web"}]}]}]}]}`,
			condition: "True Accepted enforced",
		},
		"everything of a rule": {
			spec: `{"action":"DENY","selector":{"matchLabels":{"app":"x"}},"rules":[{"from":[{"source":{"principals":["td/ns/a/sa/b","*/sa/c","td/*","*"],"notIpBlocks":["10.0.0.0/8","1.2.3.4"],"serviceAccounts":["s","n/s"]}},{"source":{"notNamespaces":["q"]}}],"to":[{"operation":{"ports":["80","443"]}}],"when":[{"key":"destination.port","notValues":["81"]},{"key":"source.namespace","values":["w"]}]}]}`,
			want: `{"scope":"WORKLOAD_SELECTOR","action":"DENY","groups":[{"rules":[
				{"matches":[{"principals":[{"exact":"td/ns/a/sa/b"},{"suffix":"/sa/c"},{"prefix":"td/"},{"presence":{}}],
					"notSourceIps":[{"address":"CgAAAA==","length":8},{"address":"AQIDBA==","length":32}],
					"serviceAccounts":[{"namespace":"shop","serviceAccount":"s"},{"namespace":"n","serviceAccount":"s"}]},
					{"notNamespaces":[{"exact":"q"}]}]},
				{"matches":[{"destinationPorts":[80,443]}]},
				{"matches":[{"notDestinationPorts":[81]}]},
				{"matches":[{"namespaces":[{"exact":"w"}]}]}]}]}`,
			condition: "True Accepted enforced",
		},
		"root namespace":       {namespace: "istio-system", spec: `{"rules":[{}]}`, want: `{"scope":"GLOBAL","groups":[{"rules":[{}]}]}`, condition: "True Accepted"},
		"allow nothing":        {spec: `{}`, want: `{"scope":"NAMESPACE"}`, condition: "True Accepted without rules it allows nothing"},
		"deny nothing":         {spec: `{"action":"DENY"}`, want: `{"scope":"NAMESPACE","action":"DENY"}`, condition: "True Accepted denies nothing"},
		"empty selector":       {spec: `{"selector":{},"rules":[{}]}`, want: `{"scope":"NAMESPACE","groups":[{"rules":[{}]}]}`, condition: "True Accepted"},
		"audit":                {spec: `{"action":"AUDIT","rules":[{}]}`, condition: "False UnsupportedValue no effect"},
		"for a waypoint":       {spec: `{"targetRefs":[{"kind":"Gateway","name":"w"}],"rules":[{}]}`, condition: "Unknown EnforcedByWaypoint the waypoint"},
		"selector and targets": {spec: `{"selector":{"matchLabels":{"a":"b"}},"targetRefs":[{"kind":"Gateway","name":"w"}]}`, want: `{"scope":"WORKLOAD_SELECTOR"}`, condition: "False Invalid targetRefs are ignored"},
		"allow with a method": {
			spec:      `{"rules":[{"to":[{"operation":{"methods":["GET"],"ports":["80"]}}]}]}`,
			want:      `{"scope":"NAMESPACE"}`,
			condition: "False UnsupportedValue never allow (spec.rules[0].to[0].operation.methods)",
		},
		"allow with a method in one of two": {
			spec:      `{"rules":[{"to":[{"operation":{"methods":["GET"]}},{"operation":{"ports":["80"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","groups":[{"rules":[{"matches":[{"destinationPorts":[80]}]}]}]}`,
			condition: "False UnsupportedValue",
		},
		"deny with a method": {
			spec:      `{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["web"]}}],"to":[{"operation":{"methods":["GET"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","action":"DENY","groups":[{"rules":[{"matches":[{"namespaces":[{"exact":"web"}]}]}]}]}`,
			condition: "False UnsupportedValue deny everything that their other fields match",
		},
		"deny with nothing but a header": {
			spec:      `{"action":"DENY","rules":[{"when":[{"key":"request.headers[x]","values":["y"]}]}]}`,
			want:      `{"scope":"NAMESPACE","action":"DENY","groups":[{"rules":[{}]}]}`,
			condition: `False UnsupportedValue spec.rules[0].when[0].key "request.headers[x]"`,
		},
		"custom": {
			spec:      `{"action":"CUSTOM","provider":{"name":"x"},"rules":[{"to":[{"operation":{"ports":["80"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","action":"DENY","groups":[{"rules":[{"matches":[{"destinationPorts":[80]}]}]}]}`,
			condition: "False UnsupportedValue cannot ask an external authorizer",
		},
		"allow with bad values": {
			spec:      `{"rules":[{"to":[{"operation":{"ports":["http"]}}]},{"from":[{"source":{"notIpBlocks":["x"]}}]},{"from":[{"source":{"ipBlocks":["x","1.1.1.1"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","groups":[{"rules":[{"matches":[{"sourceIps":[{"address":"AQEBAQ==","length":32}]}]}]}]}`,
			condition: `False Invalid correct spec.rules[0].to[0].operation.ports: "http" is not a port`,
		},
		"deny with bad values": {
			spec:      `{"action":"DENY","rules":[{"to":[{"operation":{"ports":["http"]}}]},{"from":[{"source":{"notIpBlocks":["x","1.1.1.1"]}}]}]}`,
			want:      `{"scope":"NAMESPACE","action":"DENY","groups":[{"rules":[{}]},{"rules":[{"matches":[{"notSourceIps":[{"address":"AQEBAQ==","length":32}]}]}]}]}`,
			condition: "False Invalid",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ns := tt.namespace
			if ns == "" {
				ns = "shop"
			}
			a := Translate(written(t, ns, tt.spec), "istio-system")
			if tt.want == "" {
				if a.Policy != nil {
					t.Errorf("got %v, want none", a.Policy)
				}
			} else {
				want := &securitypb.Authorization{Name: "p", Namespace: ns}
				if err := protojson.Unmarshal([]byte(tt.want), want); err != nil {
					t.Fatal(err)
				}
				want.Name, want.Namespace = "p", ns
				if diff := cmp.Diff(want, a.Policy, protocmp.Transform()); diff != "" {
					t.Error(diff)
				}
			}
			parts := strings.SplitN(tt.condition, " ", 3)
			c := a.Conditions[0]
			if c.Status != parts[0] || c.Reason != parts[1] || len(parts) > 2 && !strings.Contains(c.Message, parts[2]) {
				t.Errorf("condition %+v, want %s", c, tt.condition)
			}
		})
	}
}

func TestDryRunIsNeverEnforced(t *testing.T) {
	p := written(t, "shop", `{"action":"DENY","rules":[{}]}`)
	p.Annotations = map[string]string{"istio.io/dry-run": "true"}
	a := Translate(p, "istio-system")
	if !a.Policy.DryRun || a.Conditions[0].Status != status.True || !strings.Contains(a.Conditions[0].Message, "dry run") {
		t.Errorf("%v %v", a.Policy, a.Conditions)
	}
}

func TestConvertPeerAuthentication(t *testing.T) {
	type ports = map[uint32]Mode
	tests := map[string]struct {
		mode, outer Mode
		ports       ports
		want        string // the match, empty for no policy of its own
		strict      bool
	}{
		"strict":                          {mode: Strict, strict: true},
		"permissive":                      {mode: Permissive, outer: Strict},
		"unset under strict":              {outer: Strict, strict: true},
		"unset under nothing":             {},
		"strict but one port":             {mode: Strict, ports: ports{80: Permissive, 81: Strict}, want: `{"notDestinationPorts":[80]}`, strict: true},
		"strict, ports too":               {mode: Strict, ports: ports{80: Strict}, strict: true},
		"strict, port unset":              {mode: Strict, ports: ports{80: Unset}, strict: true},
		"permissive but one port":         {mode: Permissive, ports: ports{81: Strict, 80: Strict, 82: Unset}, want: `{"destinationPorts":[80,81]}`},
		"unset, one port strict":          {ports: ports{80: Strict}, want: `{"destinationPorts":[80]}`},
		"unset under strict but one port": {outer: Strict, ports: ports{80: Permissive}, want: `{"notDestinationPorts":[80]}`, strict: true},
		"permissive, port permissive":     {mode: Permissive, ports: ports{80: Permissive}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pb, strict := Convert(&PeerAuthentication{Namespace: "shop", Name: "x", Mode: tt.mode, Ports: tt.ports}, tt.outer)
			if strict != tt.strict {
				t.Errorf("strict %v", strict)
			}
			if tt.want == "" {
				if pb != nil {
					t.Errorf("got %v, want none", pb)
				}
				return
			}
			want := &securitypb.Match{}
			if err := protojson.Unmarshal([]byte(tt.want), want); err != nil {
				t.Fatal(err)
			}
			want.NotPrincipals = []*securitypb.StringMatch{{MatchType: &securitypb.StringMatch_Presence{}}}
			got := pb.Groups[0].Rules[0].Matches[0]
			got.NotPrincipals[0] = want.NotPrincipals[0]
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if pb.Name != "converted_peer_authentication_x" || pb.Action != securitypb.Action_DENY || pb.Scope != securitypb.Scope_WORKLOAD_SELECTOR {
				t.Errorf("policy %v", pb)
			}
		})
	}
}

func TestOlder(t *testing.T) {
	at := time.Unix(1000, 0)
	a := &PeerAuthentication{Namespace: "n", Name: "b", Created: at}
	b := &PeerAuthentication{Namespace: "n", Name: "a", Created: at.Add(time.Second)}
	c := &PeerAuthentication{Namespace: "n", Name: "a", Created: at}
	if !Older(a, b) || Older(b, a) || !Older(c, a) || Older(a, a) {
		t.Error("order")
	}
}
