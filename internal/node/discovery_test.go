package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func TestDiscovery(t *testing.T) {
	d, err := ParseDiscovery([]byte("trustDomain: x\nrootNamespace: root\ndiscoverySelectors:\n- matchLabels: {team: a}\n- matchExpressions: [{key: mesh, operator: In, values: [a, b]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		namespace string
		labels    map[string]string
		want      bool
	}{
		{"shop", map[string]string{"team": "a"}, true}, {"shop", map[string]string{"mesh": "b"}, true},
		{"shop", map[string]string{"team": "b"}, false}, {"shop", nil, false}, {"root", nil, true},
	} {
		if got := d.Sees(tc.namespace, tc.labels); got != tc.want {
			t.Errorf("%s %v: %v", tc.namespace, tc.labels, got)
		}
	}
	for _, text := range []string{"", "trustDomain: x", "discoverySelectors: []", "discoverySelectors: [{}]"} {
		if d, err := ParseDiscovery([]byte(text)); err != nil || !d.Sees("shop", nil) {
			t.Errorf("%q: %+v, %v", text, d, err)
		}
	}
	for _, bad := range []string{"discoverySelectors: 3", "- a", "discoverySelectors: [{matchExpressions: [{key: a, operator: Near}]}]", "discoverySelectors: [{matchExpressions: [{key: a, operator: In}]}]"} {
		if _, err := ParseDiscovery([]byte(bad)); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// TestPodsThatTheControlPlaneDoesNotSee checks that a label alone does not enrol
// a pod whose namespace the control plane leaves out.
func TestPodsThatTheControlPlaneDoesNotSee(t *testing.T) {
	ambient := map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient}
	p := Policy{Selectors: DefaultSelectors(), Discovery: Discovery{Selectors: []Labels{{MatchLabels: map[string]string{"team": "a"}}}}}
	seen := map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient, "team": "a"}
	for _, tc := range []struct {
		pod    Pod
		labels map[string]string
		want   bool
		why    string
	}{
		{Pod{Namespace: "b"}, ambient, false, whyUnseen},
		{Pod{Namespace: "b", Labels: ambient}, nil, false, whyUnseen},
		{Pod{Namespace: "b"}, nil, false, "no selector matches"},
		{Pod{Namespace: "b"}, seen, true, ""},
	} {
		if got, why := p.Enrols(tc.pod, tc.labels); got != tc.want || why != tc.why {
			t.Errorf("%+v in %v: %v, %q", tc.pod.Labels, tc.labels, got, why)
		}
	}
}

func TestInterfacesAreBounded(t *testing.T) {
	named := func(n int, format string) Pod {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf(format, i)
		}
		return Pod{Annotations: map[string]string{wellknown.AnnotationRerouteInterfaces: strings.Join(list, ", ")}}
	}
	if names, err := named(maxInterfaces, "net%d").interfaces(); err != nil || len(names) != maxInterfaces {
		t.Errorf("%d names: %v", len(names), err)
	}
	for name, p := range map[string]Pod{
		"one too many": named(maxInterfaces+1, "net%d"), "very many": named(36000, "n%d"), "long name": named(1, "abcdefghijklmnop%d"),
		"commas only": {Annotations: map[string]string{wellknown.AnnotationRerouteInterfaces: strings.Repeat(",", 250_000)}},
	} {
		err := p.check()
		if n := failure(eventEnrol, err); err == nil || n.Reason != ReasonBadAnnotation || len(n.Message) > 400 {
			t.Errorf("%s: %+v", name, n)
		}
		if got := Redirection(Config{}.Redirection, p, nil).VirtualInterfaces; len(got) != 0 {
			t.Errorf("%s: %d interfaces", name, len(got))
		}
	}
	var wish *wishError
	if err := (Pod{}).check(); errors.As(err, &wish) {
		t.Error(err)
	}
}
