package both

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// startAPI makes a world with the service api behind a waypoint.
func startAPI(t *testing.T) *world.World {
	t.Helper()
	w := start(t, world.Options{})
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + server("api", "app: api") + world.Waypoint("shop", 1, "") + frontOf("api", "app: api", onlyHTTP))
	w.ProxiesBecome("shop", 1)
	return w
}

// statuses makes requests with these heads at one moment, and returns their statuses.
func statuses(w *world.World, from world.Place, to netip.AddrPort, heads ...string) (all []int, err error) {
	list, err := w.Raw(from, to, heads...)
	for _, r := range list {
		all = append(all, r.Status)
	}
	return all, err
}

// TestFieldsOfPolicies: each field of a source lets in the client that it names and no
// other, or the other way round; and so do the fields of a condition.
func TestFieldsOfPolicies(t *testing.T) {
	w := startAPI(t)
	w.Namespace("else", true)
	w.Apply(rig.PodObject("$else", "other", "node1", ""))
	w.Families(func(w *world.World, v6 bool) {
		other := world.Place{Namespace: "else", Pod: "other"}
		to := w.Service("shop", "api", 80, v6)
		ip, elsewhere := w.Pod(far, v6), w.Pod(other, v6)
		whole := func(a netip.Addr) string { return fmt.Sprintf("%q", netip.PrefixFrom(a, a.BitLen())) }
		shop := w.Text("$shop")
		policy := func(rules string) string {
			return rig.PolicyObject("$shop", "fields", "ALLOW", toService+"["+rules+"]")
		}
		const head = "GET %s HTTP/1.1\nHost: api\nX-Team: %s\nX-Forwarded-For: %s"
		become := func(what, path, team string, want ...int) {
			w.Helper()
			w.Eventually(what, func() error {
				for i, from := range []world.Place{far, other} {
					if got, err := statuses(w, from, to, fmt.Sprintf(head, path, team, ip)); err != nil || got[0] != want[i] {
						return fmt.Errorf("%s gets %v, error %w", from, got, err)
					}
				}
				return nil
			})
		}
		for i, tt := range []struct {
			rule       string
			far, other int
		}{
			{`from: [{source: {principals: [cluster.local/ns/$shop/sa/far]}}]`, 200, 403},
			{`from: [{source: {notPrincipals: [cluster.local/ns/$shop/sa/far]}}]`, 403, 200},
			{`from: [{source: {namespaces: [$shop]}}]`, 200, 403},
			{`from: [{source: {notNamespaces: ["` + shop[:len(shop)-1] + `*"]}}]`, 403, 200},
			{`from: [{source: {serviceAccounts: [far]}}]`, 200, 403},
			{`from: [{source: {serviceAccounts: [$else/other]}}]`, 403, 200},
			{`from: [{source: {notServiceAccounts: [$shop/far]}}]`, 403, 200},
			{`from: [{source: {ipBlocks: ["` + ip.String() + `"]}}]`, 200, 403},
			{`from: [{source: {notIpBlocks: [` + whole(ip) + `]}}]`, 403, 200},
			{`from: [{source: {remoteIpBlocks: ["` + elsewhere.String() + `"]}}]`, 403, 200},
			{`from: [{source: {notRemoteIpBlocks: [` + whole(elsewhere) + `]}}]`, 200, 403},
			{`from: [{source: {trustDomains: [cluster.local], namespaces: [$shop]}}]`, 200, 403},
			{`from: [{source: {trustDomains: [example.org]}}]`, 403, 403},
			{`from: [{source: {notTrustDomains: [example.org], namespaces: [$else]}}]`, 403, 200},
			{`from: [{source: {notTrustDomains: [cluster.local]}}]`, 403, 403},
			{`when: [{key: "request.headers[x-team]", values: [books]}]`, 200, 403},
			{`when: [{key: "request.headers[x-team]", notValues: [books]}]`, 403, 200},
			{`when: [{key: source.namespace, values: [$else]}]`, 403, 200},
			{`when: [{key: source.ip, notValues: ["` + elsewhere.String() + `"]}]`, 200, 403},
		} {
			// All is refused in between, so that no answer is by the policy before.
			w.Apply(policy("{to: [{operation: {methods: [NONE]}}]}"))
			become("all is refused before "+tt.rule, "/", "books", 403, 403)
			// A path of its own shows that the policy is in force.
			sign := fmt.Sprintf("/in-force/%d", i)
			w.Apply(policy("{" + tt.rule + "}, {to: [{operation: {paths: [" + sign + "]}}]}"))
			become(tt.rule+" is in force", sign, "none", 200, 200)
			a, err := statuses(w, far, to, fmt.Sprintf(head, "/", "books", elsewhere))
			if err != nil {
				w.Fatal(err)
			}
			b, err := statuses(w, other, to, fmt.Sprintf(head, "/", "maps", ip))
			if err != nil || a[0] != tt.far || b[0] != tt.other {
				w.Errorf("%s: %d %d, error %v; want %d %d", tt.rule, a, b, err, tt.far, tt.other)
			}
		}
	})
}

// TestFieldsOfTokens: the program gets the token, and headers of its claims, where the rule
// has that; and a policy reads the values of a claim that are parted by spaces.
func TestFieldsOfTokens(t *testing.T) {
	const issuer = "https://issuer.example"
	own := jwttest.New(t, issuer, "k", jose.RS256)
	w := startAPI(t)
	token := func(groups string) string {
		return "Authorization: Bearer " + own.Token(map[string]any{"sub": "ann", "org": map[string]any{"group": "staff"}, "groups": groups, "exp": time.Now().Add(time.Hour).Unix()})
	}
	accepts := func(more string) string {
		return fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: $shop}
spec: {targetRefs: [{group: "", kind: Service, name: api}], jwtRules: [{issuer: %q, jwks: '%s'%s}]}
`, issuer, jwttest.Set(own), more)
	}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "api", 80, v6)
		w.Apply(accepts("") + rig.PolicyObject("$shop", "groups", "DENY", toService+`[{to: [{operation: {paths: [/users/headers]}}], when: [{key: "request.auth.claims[groups]", notValues: [users]}]}]`))
		both := token("admins users")
		w.Becomes(401, far, to, "/", "Authorization: Bearer none")
		w.Becomes(403, far, to, "/users/headers", both)
		got := func(path string, headers ...string) http.Header {
			w.Helper()
			h, err := w.Request(far, to, path, headers...).Request()
			if err != nil {
				w.Error(err)
			}
			return h
		}
		if h := got("/headers", both); h["Authorization"] != nil {
			w.Errorf("the program got %v", h)
		}
		w.Apply(accepts(", forwardOriginalToken: true, spaceDelimitedClaims: [groups], outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-user, claim: sub}, {header: x-group, claim: org.group}]"))
		w.Becomes(200, far, to, "/users/headers", both)
		_, want, _ := strings.Cut(both, ": ")
		if h := got("/headers", both, "X-User: root", "x_group: root"); h.Get("Authorization") != want || h.Get("X-User") != "ann" || h.Get("X-Group") != "staff" || h["X_group"] != nil ||
			h.Get("X-Payload") != strings.Split(want, ".")[1] {
			w.Errorf("the program got %v", h)
		}
		if h := got("/headers", "X-User: root", "X-Payload: e30", "x-group: root"); h["X-User"] != nil || h["X-Payload"] != nil || h["X-Group"] != nil {
			w.Errorf("headers that a client forged: %v", h)
		}
		if r := w.Request(far, to, "/users/headers", token("admins users-of-others")); r.Status != 403 {
			w.Errorf("another group: %+v", r)
		}
	})
}

// guard denies in four ways what attackers request of front.
const guard = `targetRef: {group: "", kind: Service, name: front}, rules: [
  {to: [{operation: {paths: ["/admin", "/admin/*", "/files/{*}/secret"]}}]},
  {to: [{operation: {methods: [DELETE]}}]},
  {to: [{operation: {hosts: [secret.example.com]}}]},
  {when: [{key: "request.headers[x-role]", values: [admin]}]}]`

const toFront = `targetRefs: [{group: "", kind: Service, name: front}], rules: `

// TestGatewayPolicies: a waypoint lets nothing through that a policy denies, however it
// is written, and everything else.
func TestGatewayPolicies(t *testing.T) {
	w := start(t, world.Options{})
	w.Apply(versions() + rig.PolicyObject("$shop", "guard", "DENY", guard))
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Becomes(403, far, to, "/admin")
		w.Becomes(200, far, to, "/")
		for _, tt := range []struct {
			what  string
			good  func(status int, body string) bool
			heads []string
		}{
			{"what no policy denies", func(status int, _ string) bool { return status == 200 }, []string{
				"GET / HTTP/1.1\nHost: front", "GET /admins HTTP/1.1\nHost: front", "GET /Admin HTTP/1.1\nHost: front", "GET /a?/admin HTTP/1.1\nHost: front",
				"GET /files/secret HTTP/1.1\nHost: front", "POST / HTTP/1.1\nHost: front\nContent-Length: 0", "GET / HTTP/1.1\nHost: example.com", "GET / HTTP/1.1\nHost: front\nX-Role: user",
				"GET / HTTP/1.1\nHost: front\nX-Roles: admin",
			}},
			{"what the policy denies", func(status int, body string) bool { return status == 403 && body == "RBAC: access denied" }, []string{
				"GET /admin HTTP/1.1\nHost: front", "GET /admin/users?x HTTP/1.1\nHost: front", "GET /admin/ HTTP/1.1\nHost: front", "GET /%61dmin HTTP/1.1\nHost: front",
				"GET http://front/admin HTTP/1.1\nHost: front", "GET /files/7/secret HTTP/1.1\nHost: front", "DELETE / HTTP/1.1\nHost: front", "delete / HTTP/1.1\nHost: front",
				"GET / HTTP/1.1\nHost: secret.example.com", "GET / HTTP/1.1\nHost: Secret.EXAMPLE.com", "GET / HTTP/1.1\nHost: secret.example.com:8080", "GET / HTTP/1.1\nHost: secret.example.com.",
				"GET http://secret.example.com/ HTTP/1.1\nHost: secret.example.com", "GET / HTTP/1.1\nHost: front\nX-Role: admin", "GET / HTTP/1.1\nHost: front\nx-rOLE:   admin  ",
				"GET / HTTP/1.1\nHost: front\nX-Role: user\nX-Role: admin", "GET / HTTP/1.1\nHost: front\nX-Role: admin\nX-Role: user", "GET / HTTP/1.1\nHost: front\nX-Role: user, admin",
				"GET / HTTP/1.1\nHost: front\nX_Role: admin",
			}},
			{"what can be read in two ways", func(status int, _ string) bool { return status >= 400 }, []string{
				"GET /x/..%2Fadmin HTTP/1.1\nHost: front", "GET //admin HTTP/1.1\nHost: front", "GET /./admin HTTP/1.1\nHost: front", "GET /x/../admin HTTP/1.1\nHost: front",
				`GET /\admin HTTP/1.1` + "\nHost: front", "GET /admin;x HTTP/1.1\nHost: front", "GET /%2561dmin HTTP/1.1\nHost: front", "GET /admin%2Fusers HTTP/1.1\nHost: front",
				"GET /%5Cadmin HTTP/1.1\nHost: front", "GET /%2e/admin HTTP/1.1\nHost: front", "GET /admin%00 HTTP/1.1\nHost: front", "GET /admin#x HTTP/1.1\nHost: front",
				"GET http://front/x HTTP/1.1\nHost: secret.example.com", "GET / HTTP/1.1\nHost: front\nHost: secret.example.com", "GET / HTTP/1.1\nHost: front\nX-Role : admin", "GET / HTTP/1.1\nHost: front\nX-Role:\n admin",
			}},
		} {
			all, err := w.Raw(far, to, tt.heads...)
			if err != nil {
				w.Fatal(err)
			}
			for i, r := range all {
				if r.Error != "" || !tt.good(r.Status, r.Body) {
					w.Errorf("%s, %q: %+v", tt.what, tt.heads[i], r)
				}
			}
		}
	})
}
