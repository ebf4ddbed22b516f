package both

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// providers are the authorizer of the namespace auth by both protocols, the same by another
// name, and one that cannot be used.
const providers = `
- name: $shop-http
  envoyExtAuthzHttp: {service: authorizer.$auth.svc.cluster.local, port: 8000, includeRequestHeadersInCheck: [x-token]}
- name: $shop-grpc
  envoyExtAuthzGrpc: {service: $auth/authorizer.$auth.svc.cluster.local, port: 8001}
- name: $shop-second
  envoyExtAuthzGrpc: {service: authorizer.$auth.svc.cluster.local, port: 8001}
- name: $shop-broken
  envoyExtAuthzGrpc: {service: authorizer.$auth.svc.cluster.local, port: 0}
`

var authorizer = world.Place{Namespace: "auth", Pod: "authorizer"}

// startAuthorized makes a world with the service api behind a waypoint, and an authorizer
// that only the waypoint may call.
func startAuthorized(t *testing.T, o world.Options, ports, more string) *world.World {
	t.Helper()
	w := start(t, o)
	w.Namespace("auth", true)
	w.MeshConfig("extensionProviders:\n" + providers + more)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + server("api", "app: api") + world.Waypoint("shop", 1, "") + frontOf("api", "app: api", ports) +
		rig.ServerObject("$auth", "authorizer", "node2", "app: authorizer", "-authorizer-http", ":8000", "-authorizer-grpc", ":8001") +
		rig.ServiceObject("$auth", "authorizer", "authorizer", "{name: http, port: 8000}, {name: grpc, port: 8001}") +
		rig.PolicyObject("$auth", "waypoint-only", "ALLOW", `rules: [{from: [{source: {principals: ["cluster.local/ns/$shop/sa/waypoint"]}}]}]`))
	w.ProxiesBecome("shop", 1)
	return w
}

const (
	// letIn is the header that the authorizer allows.
	letIn     = "x-token: letmein"
	onlyHTTP  = "{name: http, port: 80, targetPort: 8080, appProtocol: http}"
	inShop    = "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: %s, namespace: $shop}\nspec:\n%s"
	toService = `targetRefs: [{group: "", kind: Service, name: api}], rules: `
)

// telemetry is a Telemetry object of the shop.
func telemetry(name, spec string) string { return fmt.Sprintf(inShop, name, spec) }

// asks is a CUSTOM policy of the service api.
func asks(name, provider, rules string) string {
	return rig.PolicyObject("$shop", name, "CUSTOM", fmt.Sprintf("provider: {name: $shop-%s}, %s%s", provider, toService, rules))
}

// question is one that the authorizer was asked.
type question struct {
	By, Path, Body string
	Bytes          bool
	Headers        http.Header
	Metadata       struct {
		FilterMetadata map[string]map[string]any
	}
}

// asked returns the questions about a path.
func asked(w *world.World, path string) (all []question) {
	w.Helper()
	for line := range strings.Lines(w.PodLog(authorizer)) {
		var q question
		if json.Unmarshal([]byte(line), &q) == nil && q.Path == path {
			all = append(all, q)
		}
	}
	return all
}

// TestExternalAuthorization: requests that a CUSTOM policy matches get the answer of the
// authorizer, by HTTP and by gRPC, and no others are asked about. A policy whose authorizer
// cannot be used denies, and its status has the reason.
func TestExternalAuthorization(t *testing.T) {
	w := startAuthorized(t, world.Options{}, onlyHTTP, "")
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "api", 80, v6)
		for _, by := range []string{"http", "grpc"} {
			w.Apply(asks("ask", by, `[{to: [{operation: {paths: ["/private*"]}}]}]`))
			w.Becomes(401, far, to, "/private")
			w.Becomes(200, far, to, "/private/with", letIn)
			w.Becomes(401, far, to, "/private/guess", "x-token: guess")
			w.Becomes(200, far, to, "/public-"+by)
			w.Condition("AuthorizationPolicy", "shop", "ask", "WaypointAccepted", "True Accepted", "external authorizer $shop-"+by)
			w.Eventually("the authorizer is asked by "+by, func() error {
				for _, q := range asked(w, "/private/guess") {
					if q.By == by {
						return nil
					}
				}
				return errors.New("it is not")
			})
			if n := len(asked(w, "/public-"+by)); n > 0 {
				w.Errorf("the authorizer was asked %d times about what no rule matches", n)
			}
		}
		w.Apply(asks("ask", "broken", `[{to: [{operation: {paths: ["/private*"]}}]}]`))
		w.Becomes(403, far, to, "/private", letIn)
		w.Becomes(200, far, to, "/public")
		w.Condition("AuthorizationPolicy", "shop", "ask", "WaypointAccepted", `False Invalid`)
		w.Delete(asks("ask", "broken", "[]"))
		w.Becomes(200, far, to, "/private")
	})
}

// TestAuthorizerOnTrial: a CUSTOM policy on trial asks no authorizer, refuses nothing, and
// is counted.
func TestAuthorizerOnTrial(t *testing.T) {
	w := startAuthorized(t, world.Options{}, onlyHTTP, "")
	enforced := asks("ask", "http", `[{to: [{operation: {paths: ["/private*"]}}]}]`)
	trial := strings.Replace(enforced, "metadata: {", `metadata: {annotations: {istio.io/dry-run: "true"}, `, 1)
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "api", 80, v6)
		w.Becomes(200, far, to, "/private/before")
		w.Apply(trial)
		counted := func() float64 {
			return w.Counted("shop", "ambit_policy_verdicts_total", "policy", "$shop/ask", "verdict", "would_ask")
		}
		before := counted()
		path := "/private/trial/" + fmt.Sprint(v6)
		w.Eventually("the trial is counted", func() error {
			if r := w.Request(far, to, path); r.Status != 200 {
				w.Errorf("a trial refuses: %+v", r)
			}
			if counted() == before {
				return errors.New("there is no verdict")
			}
			return nil
		})
		// Enforced, it is asked: the test could fail.
		w.Apply(enforced)
		w.Becomes(401, far, to, "/private/enforced/"+fmt.Sprint(v6))
		w.Eventually("the question is logged", func() error {
			if len(asked(w, "/private/enforced/"+fmt.Sprint(v6))) == 0 {
				return errors.New("it is not")
			}
			return nil
		})
		if n := len(asked(w, path)); n > 0 {
			w.Errorf("the authorizer was asked %d times during the trial", n)
		}
		w.Delete(enforced)
		w.Becomes(200, far, to, "/private/after")
	})
}

const ofAuthorizers = "envoy.filters.http.ext_authz"

// metadataProviders are providers of lines with the metadata of authorizers.
const metadataProviders = `
- name: $shop-lines
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {text: 'TOLD %REQ(:PATH)% user="%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%" org=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:org:team)% all=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:org)% short=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user):2%'}
- name: $shop-json
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {labels: {path: "%REQ(:PATH)%", told: "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%", score: "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:score)%"}}
- name: $shop-elsewhere
  envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%DYNAMIC_METADATA(envoy.lb:x)%"}}
`

// telling is the header that has the authorizer answer with metadata of a user.
func telling(user string) string {
	b, _ := json.Marshal(user)
	return fmt.Sprintf(`x-metadata: {"user": %s, "score": 0.5, "org": {"team": "books"}}`, b)
}

// TestMetadataOfAuthorizers: the metadata of an answer is in lines of the log, decides which
// requests have lines and what labels of metrics are; policies that follow decide by it, and
// the next authorizer gets it. An answer with too much of it allows nothing, and no value
// forges a line.
func TestMetadataOfAuthorizers(t *testing.T) {
	w := startAuthorized(t, world.Options{}, onlyHTTP, metadataProviders)
	w.Families(func(w *world.World, v6 bool) {
		t := metadataTest{w, fmt.Sprintf("/ipv6-%v", v6), v6}
		w.Apply(asks("ask", "grpc", `[{}]`) + telemetry("logs", "  accessLogging: [{providers: [{name: $shop-lines}, {name: $shop-json}]}]\n"))
		t.lines()
		t.filtersAndLabels()
		t.nextAuthorizer()
		t.policies()
		w.Delete(telemetry("logs", "  {}"))
	})
	// The metadata of others is not served, and the status has it.
	w.Apply(telemetry("logs", "  accessLogging: [{providers: [{name: $shop-elsewhere}]}]\n"))
	w.Says([]string{"$shop-elsewhere"}, "status", "-n", "$shop")
}

type metadataTest struct {
	*world.World
	prefix string // of paths
	v6     bool
}

// lines checks what the log has of the metadata of an answer.
func (t metadataTest) lines() {
	to := t.Service("shop", "api", 80, t.v6)
	n := 0
	for _, c := range []struct {
		what    string
		status  int
		headers []string
		want    []string
	}{
		{"lines with metadata", 200, []string{letIn, telling("ann")}, []string{`TOLD PATH user="ann" org=books all={\"team\":\"books\"} short=an`, `{"path":"PATH","score":"0.5","told":"ann"}`}},
		{"lines of a denial", 401, []string{telling("ann")}, []string{`TOLD PATH user="ann" org=books all={\"team\":\"books\"} short=an`}},
		{"lines without metadata", 200, []string{letIn}, []string{`TOLD PATH user="-" org=- all=- short=-`, `{"path":"PATH","score":null,"told":null}`}},
		{
			"a value that looks like a line", 200, []string{letIn, telling("x\"\nTOLD /forged user=\"root\"")},
			[]string{`TOLD PATH user="x\"\x0aTOLD /forged user=\"root\"" org=books all={\"team\":\"books\"} short=x\"`},
		},
		{"an answer that is too large", 403, []string{letIn, telling(strings.Repeat("x", 10_000))}, []string{`TOLD PATH user="-" org=- all=- short=-`}},
	} {
		var paths []string
		t.Eventually(c.what, func() error {
			n++
			path := fmt.Sprintf("%s/told/%d", t.prefix, n)
			if r := t.Request(far, to, path, c.headers...); r.Status != c.status {
				return fmt.Errorf("%+v", r)
			}
			paths = append(paths, path)
			lines := "\n" + t.WaypointLog("shop")
			for _, p := range paths {
				found := 0
				for _, line := range c.want {
					if strings.Contains(lines, "\n"+strings.ReplaceAll(line, "PATH", p)+"\n") {
						found++
					}
				}
				if found == len(c.want) {
					return nil
				}
			}
			return fmt.Errorf("no request of %d has %q: %s", len(paths), c.want, lines[max(0, len(lines)-2000):])
		})
	}
	if strings.Contains(t.WaypointLog("shop"), "\nTOLD /forged") {
		t.Error("a line was forged")
	}
}

// filtersAndLabels checks what Telemetry objects read of the metadata.
func (t metadataTest) filtersAndLabels() {
	to := t.Service("shop", "api", 80, t.v6)
	t.Apply(telemetry("logs", `  accessLogging:
  - providers: [{name: $shop-json}]
    filter: {expression: "metadata.filter_metadata['`+ofAuthorizers+`'].user == 'bob'"}
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides: {told: {value: "metadata.filter_metadata['`+ofAuthorizers+`'].org.team"}}
`))
	t.Eventually("a label", func() error {
		if r := t.Request(far, to, t.prefix+"/filtered/ann", letIn, telling("ann")); r.Status != 200 {
			return fmt.Errorf("%+v", r)
		}
		if t.Counted("shop", "istio_requests_total", "told", "books") == 0 {
			return errors.New("no series has it")
		}
		return nil
	})
	t.Becomes(200, far, to, t.prefix+"/filtered/again", letIn, telling("ann"))
	t.Eventually("the lines of some requests", func() error {
		if r := t.Request(far, to, t.prefix+"/filtered/bob", letIn, telling("bob")); r.Status != 200 {
			return fmt.Errorf("%+v", r)
		}
		lines := t.WaypointLog("shop")
		if !strings.Contains(lines, t.prefix+"/filtered/bob") || strings.Contains(lines, t.prefix+"/filtered/again") {
			return errors.New(lines[max(0, len(lines)-2000):])
		}
		return nil
	})
}

// nextAuthorizer checks that an authorizer gets the metadata of the one before.
func (t metadataTest) nextAuthorizer() {
	to := t.Service("shop", "api", 80, t.v6)
	again := asks("ask-again", "second", `[{}]`)
	t.Apply(again)
	n := 0
	t.Eventually("the next authorizer gets it", func() error {
		n++
		path := fmt.Sprintf("%s/both/%d", t.prefix, n)
		if r := t.Request(far, to, path, letIn, telling("bob")); r.Status != 200 {
			return fmt.Errorf("%+v", r)
		}
		all := asked(t.World, path)
		if len(all) != 2 {
			return fmt.Errorf("%d questions", len(all))
		}
		if first, second := all[0].Metadata.FilterMetadata[ofAuthorizers], all[1].Metadata.FilterMetadata[ofAuthorizers]; len(first) > 0 || second["user"] != "bob" {
			return fmt.Errorf("%v, %v", first, second)
		}
		return nil
	})
	t.Delete(again)
}

// policies checks that policies decide by the metadata, of which there is none without an
// authorizer.
func (t metadataTest) policies() {
	to := t.Service("shop", "api", 80, t.v6)
	t.Apply(rig.PolicyObject("$shop", "told", "DENY", toService+`[{when: [{key: "experimental.`+ofAuthorizers+`[user]", values: [bob]}]}]`))
	t.Becomes(403, far, to, "/", letIn, telling("bob"))
	t.Becomes(200, far, to, "/", letIn, telling("ann"))
	t.Becomes(200, far, to, "/", letIn)
	allow := rig.PolicyObject("$shop", "told", "ALLOW", toService+`[{when: [{key: "experimental.`+ofAuthorizers+`[org][team]", values: [books]}]}]`)
	t.Apply(allow)
	t.Becomes(403, far, to, "/", letIn)
	t.Becomes(200, far, to, "/", letIn, telling("bob"))
	t.Condition("AuthorizationPolicy", "shop", "told", "WaypointAccepted", "True ")
	t.Delete(asks("ask", "grpc", `[{}]`))
	t.Becomes(403, far, to, "/", letIn, telling("bob"))
	t.Delete(allow)
	t.Becomes(200, far, to, "/")
}

// asking is a route of api: the authorizer is asked about requests below a path.
func asking(path string) string {
	return `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ask, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: api}]
  rules:
  - matches: [{path: {value: ` + path + `}}]
    filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: authorizer, namespace: $auth, port: 8000}, http: {}}}]
    backendRefs: [{name: api, port: 80}]
  - backendRefs: [{name: api, port: 80}]
`
}

// TestExternalAuthEndsConnections: a connection without HTTP ends when a route comes that
// has the requests of its port authorized: otherwise it would carry on what none is asked
// about. Those at a port that declares TCP, and of other services, stay.
func TestExternalAuthEndsConnections(t *testing.T) {
	const open = "{name: open, port: 81, targetPort: 9000}"
	w := startAuthorized(t, world.Options{Experimental: true}, "{name: http, port: 80, targetPort: 8080}, "+open+", {name: raw, port: 82, targetPort: 9000, appProtocol: tcp}", "")
	w.Apply(frontOf("other", "app: api", open) + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: routes, namespace: $auth}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: $shop}]
  to: [{group: "", kind: Service}]
`)
	w.Families(func(w *world.World, v6 bool) {
		api, other := w.Service("shop", "api", 81, v6), w.Service("shop", "other", 81, v6)
		asked, declared, others := w.Hold(far, api), w.Hold(far, w.Service("shop", "api", 82, v6)), w.Hold(far, other)
		w.Apply(asking("/elsewhere"))
		w.Eventually("the connection ends", func() error {
			if asked.Carries() == nil {
				return errors.New("it carries on")
			}
			return nil
		})
		for port, c := range map[string]*world.Held{"82, which declares TCP": declared, "81 of another service": others} {
			if err := c.Carries(); err != nil {
				w.Errorf("the connection to port %s: %v", port, err)
			}
		}
		if out, err := w.Exec(far, "ECHO", "hold", "-addr", api.String(), "-text", "\x01\x02hello"); strings.Contains(out, `"event":"echo"`) {
			w.Errorf("a new connection is accepted: %s, error %v", out, err)
		}
		// A change of the route that is no new question ends nothing.
		w.Apply(asking("/private"))
		w.Delete(asking("/private"))
		again := w.Hold(far, api)
		for _, c := range []*world.Held{again, declared, others} {
			if err := c.Carries(); err != nil {
				w.Error(err)
			}
		}
	})
}
