package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var (
	anyMeta   = regexp.MustCompile(`(?m)^kind: (\w+)\nmetadata: \{name: ([\w-]+), namespace: shop`)
	tokenName = regexp.MustCompile(`\b(ANN|BOB|EXPIRED|OTHERS|FORGED)\b`)
)

// TestAuthenticationPage: every example of docs/authentication.md, applied to the shop of
// the quick start, answers the requests of the table that follows as it says.
func TestAuthenticationPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/authentication.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	w := rig.Start(t, lab.Config{YAML: yaml + managed})
	issuer, other := w.Issuer("https://issuer.example"), w.Issuer("https://issuer.example")
	issuer.Serve()
	token := func(i *rig.Issuer, sub string, more map[string]any) string {
		claims := map[string]any{"sub": sub, "aud": "shop"}
		for k, v := range more {
			claims[k] = v
		}
		return i.Token(claims)
	}
	tokens := map[string]string{
		"ANN":     token(issuer, "ann", map[string]any{"groups": []string{"staff", "admins"}, "scope": "read write"}),
		"BOB":     token(issuer, "bob", nil),
		"EXPIRED": token(issuer, "ann", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}),
		"OTHERS":  token(issuer, "ann", map[string]any{"aud": "bank"}),
		"FORGED":  token(other, "ann", nil),
	}
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
		head = tokenName.ReplaceAllStringFunc(head, func(name string) string { return tokens[name] })
		status, _, err := send(c, head)
		return status, err
	}
	examples, rows := 0, 0
	rest := string(page)
	for {
		m := policyBlock.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		block, after := rest[m[2]:m[3]], rest[m[4]:m[5]]
		rest = rest[m[5]:]
		objects, requests := anyMeta.FindAllStringSubmatch(block, -1), requestRow.FindAllStringSubmatch(after, -1)
		if len(objects) == 0 || len(requests) == 0 {
			t.Fatalf("an example of the page has no name or no requests:\n%s", block)
		}
		examples++
		rows += len(requests)
		w.MustApply(strings.ReplaceAll(block, "https://issuer.example/keys", issuer.URI))
		w.Eventually("the answers of "+objects[0][2], func() error { // all of them at one moment
			for _, r := range requests {
				if status, err := ask(r[1], r[2], r[3]); err != nil || fmt.Sprint(status) != r[4] {
					return fmt.Errorf("%s: status %d, error %w", r[0], status, err)
				}
			}
			return nil
		})
		for _, o := range objects {
			w.MustDelete(o[1], "shop", o[2])
		}
		w.Eventually("the example is gone", func() error {
			for _, header := range []string{"", "Authorization: Bearer FORGED", "X-Token: Token FORGED"} {
				if status, err := ask("PUT", "/", header); status != 200 {
					return fmt.Errorf("status %d, error %w", status, err)
				}
			}
			return nil
		})
	}
	if examples != 4 || rows != 22 {
		t.Errorf("%d examples and %d requests of the page were tried", examples, rows)
	}
}
