package scenario

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestFieldsOfPolicies: each field of a source lets in the client that it names and no
// other, or the other way round; and so do the fields of a condition.
func TestFieldsOfPolicies(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: api() + rig.NamespaceObject("else", true) + rig.PodObject("else", "other", "node1", "")})
	serveAPI(w)
	to := netip.AddrPortFrom(w.Service("shop", "api", false), 80)
	ask := func(from lab.Where, head string) (int, error) {
		c, err := w.Dial(t.Context(), from, "tcp", to.String())
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:errcheck // the answer has come
		status, _, err := send(c, head)
		return status, err
	}
	other := lab.InPod("else", "other")
	ip, elsewhere := w.Pod("shop", "far", false).String(), w.Pod("else", "other", false).String()
	for i, tt := range []struct{ rule, far, other string }{
		{`from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]`, "200", "403"},
		{`from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/far]}}]`, "403", "200"},
		{`from: [{source: {namespaces: [shop]}}]`, "200", "403"},
		{`from: [{source: {notNamespaces: ["sh*"]}}]`, "403", "200"},
		{`from: [{source: {serviceAccounts: [far]}}]`, "200", "403"},
		{`from: [{source: {serviceAccounts: [else/other]}}]`, "403", "200"},
		{`from: [{source: {notServiceAccounts: [shop/far]}}]`, "403", "200"},
		{`from: [{source: {ipBlocks: [` + ip + `]}}]`, "200", "403"},
		{`from: [{source: {notIpBlocks: [` + ip + `/32]}}]`, "403", "200"},
		{`from: [{source: {remoteIpBlocks: [` + elsewhere + `]}}]`, "403", "200"},
		{`from: [{source: {notRemoteIpBlocks: [` + elsewhere + `/32]}}]`, "200", "403"},
		{`from: [{source: {trustDomains: [cluster.local], namespaces: [shop]}}]`, "200", "403"},
		{`from: [{source: {trustDomains: [example.org]}}]`, "403", "403"},
		{`from: [{source: {notTrustDomains: [example.org], namespaces: [else]}}]`, "403", "200"},
		{`from: [{source: {notTrustDomains: [cluster.local]}}]`, "403", "403"},
		{`when: [{key: "request.headers[x-team]", values: [books]}]`, "200", "403"},
		{`when: [{key: "request.headers[x-team]", notValues: [books]}]`, "403", "200"},
		{`when: [{key: source.namespace, values: [else]}]`, "403", "200"},
		{`when: [{key: source.ip, notValues: [` + elsewhere + `]}]`, "200", "403"},
	} {
		// All is refused in between, so that no answer is by the policy before.
		w.MustApply(rig.PolicyObject("shop", "fields", "ALLOW", `targetRefs: [{kind: Service, group: "", name: api}], rules: [{to: [{operation: {methods: [NONE]}}]}]`))
		w.Eventually("all is refused before "+tt.rule, func() error {
			for _, from := range []lab.Where{far, other} {
				for _, team := range []string{"books", "maps"} {
					if status, err := ask(from, bare+"\nX-Team: "+team); err != nil || status != 403 {
						return fmt.Errorf("%d %w", status, err)
					}
				}
			}
			return nil
		})
		// A path of its own shows that the policy is in force.
		sign := fmt.Sprintf("/in-force/%d", i)
		w.MustApply(rig.PolicyObject("shop", "fields", "ALLOW", `targetRefs: [{kind: Service, group: "", name: api}], rules: [{`+tt.rule+`}, {to: [{operation: {paths: [`+sign+`]}}]}]`))
		w.Eventually(tt.rule+" is in force", func() error {
			for _, from := range []lab.Where{far, other} {
				if status, err := ask(from, "GET "+sign+" HTTP/1.1\nHost: api\nX-Team: none"); err != nil || status != 200 {
					return fmt.Errorf("%d %w", status, err)
				}
			}
			return nil
		})
		a, err := ask(far, bare+"\nX-Team: books\nX-Forwarded-For: "+elsewhere)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ask(other, bare+"\nX-Team: maps\nX-Forwarded-For: "+ip)
		if got := fmt.Sprint(a, " ", b); err != nil || got != tt.far+" "+tt.other {
			t.Errorf("%s: %s, error %v; want %s %s", tt.rule, got, err, tt.far, tt.other)
		}
	}
}

// TestFieldsOfTokens: the program gets the token where the rule has that, and a policy reads
// the values of a claim that are parted by spaces.
func TestFieldsOfTokens(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: api(), Args: map[string][]string{lab.Ambitd: {"--jwks-refresh", "1s"}}})
	issuer := w.Issuer("https://issuer.example")
	issuer.Serve()
	serveAPI(w)
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	token := issuer.Token(map[string]any{"sub": "ann", "groups": "admins users"})
	w.MustApply(accepts(issuer, "") + `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: groups, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: api}]
  action: DENY
  rules: [{to: [{operation: {paths: [/users]}}], when: [{key: "request.auth.claims[groups]", notValues: [users]}]}]
`)
	const users = "GET /users HTTP/1.1\nHost: api\nAuthorization: Bearer "
	c.becomes(bearing("none"), 401)
	c.becomes(users+token, 403)
	if s := c.got(bearing(token)); s.Header.Get("Authorization") != "" {
		t.Errorf("the program got %v", s.Header)
	}
	w.MustApply(accepts(issuer, ", forwardOriginalToken: true, spaceDelimitedClaims: [groups]"))
	c.becomes(users+token, 200)
	if s := c.got(bearing(token)); s.Header.Get("Authorization") != "Bearer "+token {
		t.Errorf("the program got %v", s.Header)
	}
	if resp, _ := c.must(users + issuer.Token(map[string]any{"sub": "ann", "groups": "admins users-of-others"})); resp.StatusCode != 403 {
		t.Errorf("another group: %d", resp.StatusCode)
	}
}
