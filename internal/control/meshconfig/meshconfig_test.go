package meshconfig_test

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

func TestParse(t *testing.T) {
	got, unread, err := meshconfig.Parse([]byte(`
localityLbSetting: {enabled: true}
trustDomain: example.org
trustDomainAliases: [old.example, older.example]
defaultConfig: {proxyMetadata: {ISTIO_META_ENABLE_HBONE: "true"}}
rootNamespace: mesh
discoverySelectors:
- matchLabels: {mesh: "yes"}
- matchExpressions: [{key: team, operator: In, values: [a, b]}]
`))
	want := meshconfig.Config{
		TrustDomain: "example.org", TrustDomainAliases: []string{"old.example", "older.example"}, RootNamespace: "mesh",
		DiscoverySelectors: []metav1.LabelSelector{
			{MatchLabels: map[string]string{"mesh": "yes"}},
			{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "team", Operator: metav1.LabelSelectorOpIn, Values: []string{"a", "b"}}}},
		},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	if d := cmp.Diff([]string{"localityLbSetting"}, unread); d != "" {
		t.Error(d)
	}
	if got, unread, err := meshconfig.Parse(nil); err != nil || unread != nil || !reflect.DeepEqual(got, meshconfig.Config{}) {
		t.Errorf("empty: %+v %v %v", got, unread, err)
	}
	for _, bad := range []string{"- a", "trustDomain: [", "discoverySelectors: 3", "trustDomainAliases: old", "trustDomainAliases: ['']", "trustDomainAliases: ['*']", "trustDomainAliases: [a/b]", "discoverySelectors: [{matchExpressions: [{key: a, operator: Near}]}]",
		"extensionProviders: 3", "defaultConfig: 3", "serviceEntryVisibility: NONE", "serviceEntryVisibility: {defaultVisibility: Everybody}", "serviceEntryVisibility: {policies: [{visibility: 7}]}",
		"serviceEntryVisibility: {policies: [{visibility: MINE}]}", "serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{hostSuffix: x}]}]}",
		"serviceEntryVisibility: {policies: [{matchingRules: [{namespaceSelector: {matchExpressions: [{key: a, operator: Near}]}}]}]}"} {
		if c, _, err := meshconfig.Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

// TestVisibilityIsStrict: each setting of visibility is applied or refused, and
// all of them may be written as in the protobuf.
func TestVisibilityIsStrict(t *testing.T) {
	const rules = "[{namespaceSelector: {matchLabels: {a: b}}}]"
	for _, bad := range []string{
		"serviceEntryVisibility: {policies: [{visibility: NONE, matchingRule: " + rules + "}]}",
		"serviceEntryVisibility: {policies: [{visiblity: NONE, matchingRules: " + rules + "}]}",
		"serviceEntryVisibility: {policy: []}",
		"serviceEntryVisibility: {DefaultVisibility: NONE}",
		"serviceEntryVisibility: {defaultVisibility: NONE, default_visibility: PUBLIC}",
		"serviceEntryVisibility: {defaultVisibility: none}",
		"serviceEntryVisibility: {defaultVisibility: NONE, defaultVisibility: PUBLIC}",
		"serviceEntryVisibility: {defaultVisibility: NONE}\nserviceEntryVisibility: {}",
		"serviceEntryVisibility: {defaultVisibility: NONE}\nservice_entry_visibility: {}",
		"ServiceEntryVisibility: {defaultVisibility: NONE}",
		"serviceentry_visibility: {defaultVisibility: NONE}",
		"serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{}]}]}",
		"serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{namespaceSelector: {matchLabel: {a: b}}}]}]}",
		"serviceEntryVisibility: {policies: [{visibility: NONE, matchingRules: [{namespaceSelector: {matchLabels: {a: true}}}]}]}",
		"service_entry_visibility: {default: NONE}",
	} {
		if c, _, err := meshconfig.Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c.ServiceEntryVisibility)
		}
	}
	for _, good := range []string{
		"service_entry_visibility: {default_visibility: PUBLIC, apply_to_sidecars: true, policies: [{visibility: NONE, matching_rules: [{namespace_selector: {matchLabels: {a: b}}}]}]}",
		"serviceEntryVisibility: {policies: [{visibility: 1, matchingRules: " + rules + "}]}",
		"serviceEntryVisibility: {defaultVisibility: VISIBILITY_UNSPECIFIED, policies: [{visibility: NONE, matchingRules: " + rules + "}]}",
	} {
		c, unread, err := meshconfig.Parse([]byte(good))
		if err != nil || unread != nil {
			t.Errorf("%q: %v %v", good, unread, err)
		} else if hidden, other := c.ServiceEntryVisibility.Of(map[string]string{"a": "b"}), c.ServiceEntryVisibility.Of(nil); hidden != meshconfig.None || other != meshconfig.Public {
			t.Errorf("%q: %s, %s", good, hidden, other)
		}
	}
	if c, _, err := meshconfig.Parse([]byte("serviceEntryVisibility:\n")); err != nil || c.ServiceEntryVisibility != nil {
		t.Errorf("nothing: %+v %v", c, err)
	}
}

func TestVisibility(t *testing.T) {
	if got := (*meshconfig.Visibility)(nil).Of(nil); got != meshconfig.Public {
		t.Errorf("nobody said anything: %s", got)
	}
	c, unread, err := meshconfig.Parse([]byte(`
serviceEntryVisibility:
  defaultVisibility: NAMESPACE
  applyToSidecars: true
  policies:
  - visibility: NONE
    matchingRules:
    - namespaceSelector: {matchLabels: {team: guests}}
    - namespaceSelector: {matchExpressions: [{key: trusted, operator: DoesNotExist}]}
  - visibility: PUBLIC
    matchingRules: [{namespaceSelector: {matchLabels: {egress: shared}}}]
  - matchingRules: [{namespaceSelector: {matchLabels: {old: "yes"}}}]
`))
	if err != nil || unread != nil {
		t.Fatal(unread, err)
	}
	for _, tt := range []struct {
		want   meshconfig.Scope
		labels map[string]string
	}{
		{meshconfig.Namespace, nil},
		{meshconfig.Namespace, map[string]string{"team": "guests", "trusted": "yes"}}, // one rule of two
		{meshconfig.None, map[string]string{"team": "guests"}},
		{meshconfig.None, map[string]string{"team": "guests", "egress": "shared"}}, // the first counts
		{meshconfig.Public, map[string]string{"egress": "shared"}},
		{meshconfig.Public, map[string]string{"old": "yes"}}, // unspecified
	} {
		if got := c.ServiceEntryVisibility.Of(tt.labels); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.labels, got, tt.want)
		}
	}
	c, _, err = meshconfig.Parse([]byte("serviceEntryVisibility: {policies: [{visibility: NONE}]}"))
	if err != nil || c.ServiceEntryVisibility.Of(nil) != meshconfig.None {
		t.Errorf("a policy without rules: %v, %v", c.ServiceEntryVisibility, err)
	}
}

// TestOutbound: a setting of the outbound traffic policy is applied or rejected.
func TestOutbound(t *testing.T) {
	for text, want := range map[string]egress.Mode{
		"outboundTrafficPolicy: {mode: REGISTRY_ONLY}":   egress.RegistryOnly,
		"outboundTrafficPolicy: {mode: ALLOW_ANY}":       egress.AllowAny,
		"outboundTrafficPolicy: {mode: DRY_RUN}":         egress.DryRun,
		"outbound_traffic_policy: {mode: REGISTRY_ONLY}": egress.RegistryOnly,
		"outboundTrafficPolicy: {mode: 0}":               egress.RegistryOnly,
		"outboundTrafficPolicy: {mode: 1}":               egress.AllowAny,
	} {
		if c, unread, err := meshconfig.Parse([]byte(text)); err != nil || unread != nil || c.Outbound == nil || *c.Outbound != want {
			t.Errorf("%q: %v, %v, %v", text, c.Outbound, unread, err)
		}
	}
	for _, none := range []string{"outboundTrafficPolicy:", "trustDomain: a.b"} {
		if c, _, err := meshconfig.Parse([]byte(none)); err != nil || c.Outbound != nil {
			t.Errorf("%q: %v, %v", none, c.Outbound, err)
		}
	}
	for _, bad := range []string{
		"outboundTrafficPolicy: {}",
		"outboundTrafficPolicy: {mode: null}",
		"outboundTrafficPolicy: {mode: ''}",
		"outboundTrafficPolicy: {mode: registry_only}",
		"outboundTrafficPolicy: {mode: 2}",
		"outboundTrafficPolicy: {mode: true}",
		"outboundTrafficPolicy: {mode: [REGISTRY_ONLY]}",
		"outboundTrafficPolicy: {Mode: REGISTRY_ONLY}",
		"outboundTrafficPolicy: {mode: ALLOW_ANY, dryRun: true}",
		"outboundTrafficPolicy: {mode: ALLOW_ANY, mode: REGISTRY_ONLY}",
		"outboundTrafficPolicy: REGISTRY_ONLY",
		"OutboundTrafficPolicy: {mode: REGISTRY_ONLY}",
		"outboundtraffic_policy: {mode: REGISTRY_ONLY}",
		"outboundTrafficPolicy: {mode: ALLOW_ANY}\noutbound_traffic_policy: {mode: REGISTRY_ONLY}",
	} {
		if c, _, err := meshconfig.Parse([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, c.Outbound)
		}
	}
}
