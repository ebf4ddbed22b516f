package node

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

const mode = "istio.io/dataplane-mode"

var (
	ambient = map[string]string{mode: "ambient"}
	none    = map[string]string{mode: "none"}
)

func TestWhoIsEnrolled(t *testing.T) {
	policy := Policy{Selectors: DefaultSelectors(), ExcludeNamespaces: []string{"kube-system"}}
	for name, c := range map[string]struct {
		pod       Pod
		namespace map[string]string
		want      bool
	}{
		"nothing says so":            {Pod{}, nil, false},
		"namespace":                  {Pod{}, ambient, true},
		"pod alone":                  {Pod{Labels: ambient}, nil, true},
		"both":                       {Pod{Labels: ambient}, ambient, true},
		"pod opts out":               {Pod{Labels: none}, ambient, false},
		"pod opts in against none":   {Pod{Labels: ambient}, none, true},
		"namespace says none":        {Pod{}, none, false},
		"unknown mode of the pod":    {Pod{Labels: map[string]string{mode: "other"}}, ambient, true},
		"sidecar":                    {Pod{Labels: ambient, Annotations: map[string]string{"sidecar.istio.io/status": "{}"}}, ambient, false},
		"host network":               {Pod{Labels: ambient, HostNetwork: true}, ambient, false},
		"excluded namespace":         {Pod{Labels: ambient, Namespace: "kube-system"}, ambient, false},
		"ended":                      {Pod{Labels: ambient, Terminal: true}, ambient, false},
		"annotation is not believed": {Pod{Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}}, nil, false},
	} {
		got, why := policy.Enrols(c.pod, c.namespace)
		if got != c.want || got == (why != "") {
			t.Errorf("%s: %t (%s)", name, got, why)
		}
	}
}

func TestParseSelectors(t *testing.T) {
	list, err := ParseSelectors([]byte(`
- podSelector:
    matchLabels: {istio.io/dataplane-mode: ambient}
- podSelector:
    matchExpressions:
    - {key: istio.io/dataplane-mode, operator: NotIn, values: [none]}
  namespaceSelector:
    matchLabels: {istio.io/dataplane-mode: ambient}
`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(DefaultSelectors(), list); diff != "" {
		t.Error(diff)
	}
	for text, want := range map[string]string{
		"":  "empty",
		"[": "selectors",
		"- podSelector: {matchExpressions: [{key: a, operator: Like}]}":                "Like",
		"- podSelector: {matchExpressions: [{key: a, operator: In}]}":                  "0 values",
		"- podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}": "1 values",
		"- namespaceSelector: {matchExpressions: [{operator: Exists}]}":                "no key",
		"- podSelektor: {}": "podSelektor",
	} {
		if _, err := ParseSelectors([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want something with %q", text, err, want)
		}
	}
	all, err := ParseSelectors([]byte("- {}"))
	if err != nil {
		t.Fatal(err)
	}
	if yes, _ := (Policy{Selectors: all}).Enrols(Pod{}, nil); !yes {
		t.Error("the empty selector does not match everything")
	}
}

func TestOperatorsAreOpposites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		labels := rapid.MapOf(rapid.SampledFrom([]string{"a", "b"}), rapid.SampledFrom([]string{"x", "y"})).Draw(t, "labels")
		key := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
		values := []string{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "value")}
		match := func(op string, v []string) bool {
			return Labels{MatchExpressions: []Expression{{key, op, v}}}.Matches(labels)
		}
		if match("In", values) == match("NotIn", values) || match("Exists", nil) == match("DoesNotExist", nil) {
			t.Fatalf("%s of %v", key, labels)
		}
		if match("In", values) && !match("Exists", nil) {
			t.Fatal("In without the label")
		}
	})
}

// TestDNSCapture: the annotation of a pod comes before the label of its namespace, and
// that before the node's setting.
func TestDNSCapture(t *testing.T) {
	for _, c := range []struct {
		node           bool
		namespace, pod string
		want           bool
	}{
		{false, "", "", false}, {true, "", "", true}, {false, "true", "", true}, {true, "false", "", false},
		{false, "true", "false", false}, {true, "false", "true", true}, {true, "no", "maybe", true}, {false, "no", "maybe", false},
	} {
		pod := Pod{Annotations: map[string]string{"ambient.istio.io/dns-capture": c.pod}}
		got := Redirection(nft.Config{CaptureDNS: c.node}, pod, map[string]string{"ambient.istio.io/dns-capture": c.namespace})
		if got.CaptureDNS != c.want {
			t.Errorf("%+v: %v", c, got.CaptureDNS)
		}
	}
}

func TestRedirection(t *testing.T) {
	base := nft.Config{IPv6: true, CaptureDNS: true, Probes: []nft.Probe{{Source: netip.MustParsePrefix("10.0.0.1/32")}}}
	for name, c := range map[string]struct {
		pod  Pod
		want nft.Config
	}{
		"the node's": {Pod{}, nft.Config{IPv6: true, CaptureDNS: true}},
		"ingress": {
			Pod{Annotations: map[string]string{"ambient.istio.io/bypass-inbound-capture": "true"}},
			nft.Config{IPv6: true, CaptureDNS: true, BypassInbound: true},
		},
		"no dns": {Pod{Annotations: map[string]string{"ambient.istio.io/dns-capture": "false"}}, nft.Config{IPv6: true}},
		"interfaces": {
			Pod{Annotations: map[string]string{"istio.io/reroute-virtual-interfaces": "net1, net2,"}},
			nft.Config{IPv6: true, CaptureDNS: true, VirtualInterfaces: []string{"net1", "net2"}},
		},
		"probes": {
			Pod{ProbePorts: []uint16{80, 81}},
			nft.Config{IPv6: true, CaptureDNS: true, Probes: []nft.Probe{{Source: base.Probes[0].Source, Ports: []uint16{80, 81}}}},
		},
	} {
		if diff := cmp.Diff(c.want, Redirection(base, c.pod, nil), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
