package scenario

import (
	"net/netip"
	"os"
	"regexp"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestPolicyPage: every policy of docs/policy.md, applied to the shop of the
// quick start, does what the page says. A new one there needs a line here.
func TestPolicyPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient")
	w := rig.Start(t, lab.Config{YAML: yaml})
	client, outsider := lab.InPod("shop", "client"), lab.InPod("street", "stranger")
	web := netip.AddrPortFrom(w.Service("shop", "web", false), 80)

	type verdict struct{ client, stranger bool }
	expected := map[string]verdict{
		"PeerAuthentication/default":      {client: true},                 // STRICT
		"PeerAuthentication/web":          {client: true, stranger: true}, // the port is exempt
		"AuthorizationPolicy/web-callers": {client: true},
		"AuthorizationPolicy/readers":     {},                             // HTTP in an ALLOW policy
		"AuthorizationPolicy/trial":       {client: true, stranger: true}, // dry run
	}
	seen := map[string]bool{}
	name := regexp.MustCompile(`kind: (\w+)\nmetadata: \{name: ([\w-]+), namespace: shop`)
	for _, block := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		m := name.FindStringSubmatch(block[1])
		if m == nil {
			t.Fatalf("a policy of the page is not understood:\n%s", block[1])
		}
		key := m[1] + "/" + m[2]
		v, ok := expected[key]
		if !ok {
			t.Errorf("%s of the page has no line in this test", key)
			continue
		}
		seen[key] = true
		w.MustApply(block[1])
		becomes(w, client, web, v.client)
		becomes(w, outsider, web, v.stranger)
		w.MustDelete(m[1], "shop", m[2])
		w.BecomesAnswered(client, web)
		w.BecomesAnswered(outsider, web)
	}
	want(t, "policies of the page", len(seen), len(expected))
}

func becomes(w *rig.World, from lab.Where, to netip.AddrPort, answered bool) {
	if answered {
		w.BecomesAnswered(from, to)
		return
	}
	w.BecomesRefused(from, to)
}
