package registry

import (
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/tables"
)

// What names another revision is not looked at; what the cluster is made of is,
// whatever its labels.
func TestRevisions(t *testing.T) {
	const yaml = `
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: d, labels: {istio.io/rev: other}}
spec: {containers: [{name: c}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], phase: Running}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ours, namespace: d}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mine, namespace: d, labels: {istio.io/rev: canary}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tagged, namespace: d, labels: {istio.io/rev: prod}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: another, namespace: d, labels: {istio.io/rev: other}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: entry, namespace: d, labels: {istio.io/rev: other}}
spec: {hosts: [entry.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}
`
	has := func(kind map[string][]byte, name string, want bool) {
		t.Helper()
		if _, ok := kind[name]; ok != want {
			t.Errorf("%s is there: %t", name, ok)
		}
	}
	for _, tc := range []struct {
		revisions []string
		others    bool
	}{{nil, true}, {[]string{"canary", "prod"}, false}} {
		rec := newRecorder()
		r := New(tables.Options{Revisions: tc.revisions}, rec)
		r.Apply(events(t, yaml))
		for _, name := range []string{"d/ours", "d/mine", "d/tagged"} {
			has(rec.policies, name, true)
		}
		has(rec.addresses, "Kubernetes//Pod/d/p", true)
		has(rec.policies, "d/another", tc.others)
		has(rec.addresses, "d/entry.example", tc.others)

		r.Apply(events(t, strings.NewReplacer("rev: prod", "rev: other", "rev: canary", "rev: prod").Replace(yaml)))
		has(rec.policies, "d/mine", true)
		has(rec.policies, "d/tagged", tc.others)
	}
}
