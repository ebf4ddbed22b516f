package telemetry

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestVerdicts: verdicts are counted by policy, and the series of a policy end with it.
func TestVerdicts(t *testing.T) {
	v := NewVerdicts()
	v.Count("shop/a", "audited")
	v.Count("shop/a", "audited")
	v.Count("shop/b", "would_deny")
	const head = "# HELP ambit_policy_verdicts_total Verdicts of policies that decide nothing: of AUDIT, and of dry runs.\n# TYPE ambit_policy_verdicts_total counter\n"
	const a, b = "ambit_policy_verdicts_total{policy=\"shop/a\",verdict=\"audited\"} 2\n", "ambit_policy_verdicts_total{policy=\"shop/b\",verdict=\"would_deny\"} 1\n"
	if err := testutil.CollectAndCompare(v, strings.NewReader(head+a+b)); err != nil {
		t.Error(err)
	}
	v.Keep(func(policy string) bool { return policy == "shop/b" })
	if err := testutil.CollectAndCompare(v, strings.NewReader(head+b)); err != nil {
		t.Error(err)
	}
}

// TestAuthorizations: what external authorizers answer is counted in the same way.
func TestAuthorizations(t *testing.T) {
	v := NewAuthorizations()
	v.Count("door", "allowed")
	v.Count("door", "fail_open")
	v.Count("gone", "denied")
	v.Keep(func(authorizer string) bool { return authorizer == "door" })
	const want = "# HELP ambit_external_authorizations_total Questions to external authorizers, by what came of them: allowed, denied, error, fail_open.\n# TYPE ambit_external_authorizations_total counter\n" +
		"ambit_external_authorizations_total{authorizer=\"door\",outcome=\"allowed\"} 1\nambit_external_authorizations_total{authorizer=\"door\",outcome=\"fail_open\"} 1\n"
	if err := testutil.CollectAndCompare(v, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
