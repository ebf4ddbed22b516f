package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var (
	policyBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```\n(.*?)(?:\n## |```yaml|$)")
	requestRow  = regexp.MustCompile("(?m)^\\| `([A-Z]+) (\\S+)`(?: with `([^`]+)`)? \\| (\\d+) \\|$")
	metaLine    = regexp.MustCompile(`kind: AuthorizationPolicy\nmetadata: \{name: ([\w-]+), namespace: shop`)
)

// TestAuthorizationPage: every policy of docs/authorization.md, applied to the shop of
// the quick start, answers the requests of the table that follows as it says.
func TestAuthorizationPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	w := rig.Start(t, lab.Config{YAML: yaml + managed})
	web := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	ask := func(method, path, header string) (int, error) {
		c, err := w.Dial(t.Context(), lab.InPod("shop", "client"), "tcp", web.String())
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:errcheck // the answer has come
		head := method + " " + path + " HTTP/1.1\nHost: web\nContent-Length: 0"
		if header != "" {
			head += "\n" + header
		}
		status, _, err := send(c, head)
		return status, err
	}
	policies, rows := 0, 0
	rest := string(page)
	for {
		m := policyBlock.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		block, after := rest[m[2]:m[3]], rest[m[4]:m[5]]
		rest = rest[m[5]:]
		name := metaLine.FindStringSubmatch(block)
		requests := requestRow.FindAllStringSubmatch(after, -1)
		if name == nil || len(requests) == 0 {
			t.Fatalf("a policy of the page has no name or no requests:\n%s", block)
		}
		policies++
		w.MustApply(block)
		rows += len(requests)
		w.Eventually("the answers of "+name[1], func() error { // all of them at one moment
			for _, r := range requests {
				if status, err := ask(r[1], r[2], r[3]); err != nil || fmt.Sprint(status) != r[4] {
					return fmt.Errorf("%s: status %d, error %w", r[0], status, err)
				}
			}
			return nil
		})
		w.MustDelete("AuthorizationPolicy", "shop", name[1])
		w.Eventually("the policy is gone", func() error {
			if status, err := ask("PUT", "/", ""); status != 200 {
				return fmt.Errorf("status %d, error %w", status, err)
			}
			return nil
		})
	}
	if policies != 5 || rows != 19 {
		t.Errorf("%d policies and %d requests of the page were tried", policies, rows)
	}
}
