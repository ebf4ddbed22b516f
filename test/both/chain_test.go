package both

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// bank is a namespace with a waypoint of its own. Routes of the shop's service front lead
// there. The bank's waypoint rewrites, admits the shop's waypoint alone, and refuses one path.
func bank() string {
	return rig.ServerObject("$bank", "vault", "node1", "app: vault", "-name", "vault") + world.Waypoint("bank", 1, "") +
		strings.ReplaceAll(frontOf("vault", "app: vault", "{name: http, port: 80, targetPort: 8080, appProtocol: http}, {name: tcp, port: 9000, appProtocol: tcp}"), "$shop", "$bank") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: shop, namespace: $bank}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: $shop}, {group: gateway.networking.k8s.io, kind: TCPRoute, namespace: $shop}]
  to: [{group: "", kind: Service, name: vault}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /bank}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{namespace: $bank, name: vault, port: 80}]
  - backendRefs: [{name: v1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: raw, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw, port: 9000}]
  rules: [{backendRefs: [{namespace: $bank, name: vault, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: raw, namespace: $shop}
spec:
  parentRefs: [{group: "", kind: Service, name: raw, port: 9000}]
  hostnames: [a.example.com]
  rules: [{backendRefs: [{name: absent, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: vault, namespace: $bank}
spec:
  parentRefs: [{group: "", kind: Service, name: vault, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /safe}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /inside}}}]
    backendRefs: [{name: vault, port: 80}]
  - backendRefs: [{name: vault, port: 80}]
` + rig.PolicyObject("$bank", "shop-only", "ALLOW", `targetRefs: [{group: "", kind: Service, name: vault}], rules: [{from: [{source: {principals: ["cluster.local/ns/$shop/sa/waypoint"]}}]}]`) +
		rig.PolicyObject("$bank", "no-secrets", "DENY", `targetRefs: [{group: "", kind: Service, name: vault}], rules: [{to: [{operation: {paths: ["/secret"]}}]}]`)
}

// TestChain: a route leads to a service with another waypoint. Its requests pass both, and
// each decides by its own routes and policies. `ambit why` follows. Routes of connections
// have a status too.
func TestChain(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("bank", true)
	w.Apply(versions() + frontOf("raw", "tier: server", "{name: tcp, port: 9000, appProtocol: tcp}") + bank())
	for kind, name := range map[string]string{"HTTPRoute": "front", "TCPRoute": "raw", "TLSRoute": "raw"} {
		w.Condition(kind, "shop", name, "Accepted", "True Accepted")
	}
	w.Families(func(w *world.World, v6 bool) {
		front, vault := w.Service("shop", "front", 80, v6), w.Service("bank", "vault", 80, v6)
		w.Eventually("a request passes both waypoints", func() error {
			r := w.Request(far, front, "/bank/safe/x")
			a, err := r.Answer()
			if err != nil || a.Name != "vault" || !strings.HasSuffix(r.Body, "GET /inside/x\n") {
				return fmt.Errorf("%+v, error %w", r, err)
			}
			return w.Through("bank", a.Caller)
		})
		// Keep-alive connections between the waypoints are shared; each request is judged.
		for range 5 {
			for path, want := range map[string]int{"/bank/y": 200, "/bank/secret": 403} {
				all, err := w.Requests(5, far, front, path)
				for _, r := range all {
					if r.Status != want {
						w.Errorf("%s gets %+v", path, r)
					}
				}
				if err != nil {
					w.Fatal(err)
				}
			}
		}
		if err := w.AnsweredBy("v1", 5, far, front, "/"); err != nil {
			w.Error(err)
		}
		// The second waypoint's policy sees the first one, and no client of the first.
		if r := w.Request(far, vault, "/y"); r.Status != 403 {
			w.Errorf("the client itself gets %+v", r)
		}
		for _, tt := range []struct {
			path         string
			want         reason.Reason
			hops, status int
			by           string
		}{
			{"/bank/safe/x", reason.OK, 4, 0, ""},
			{"/bank/secret", reason.PolicyDenied, 3, 403, "AuthorizationPolicy $bank/no-secrets"},
			{"/", reason.OK, 3, 0, ""},
		} {
			w.Eventually("why follows "+tt.path, func() error {
				out, err := w.Ambit("why", "far.$shop", front.String(), "--path", tt.path, "-o", "json")
				var told struct {
					Reason string
					Status int
					Hops   []json.RawMessage
				}
				if json.Unmarshal([]byte(out), &told) != nil || told.Reason != tt.want.String() || told.Status != tt.status || len(told.Hops) != tt.hops || !strings.Contains(out, w.Text(tt.by)) {
					return fmt.Errorf("%s, error %w", out, err)
				}
				return nil
			})
		}
		w.Says([]string{"another waypoint stands before it"}, "why", "far.$shop", w.Service("shop", "raw", 9000, v6).String(), "--tcp")
		// The log of the second waypoint names the first as the client.
		w.Eventually("the log of the second waypoint", func() error {
			if want := w.Text(`src.identity="spiffe://cluster.local/ns/$shop/sa/waypoint"`); !strings.Contains(w.WaypointLog("bank"), want) {
				return fmt.Errorf("no line has %s", want)
			}
			return nil
		})
	})
}

// TestTelemetry: a Telemetry object gives some requests of a service lines in Istio's
// default format, and its metrics a label of each request, until it goes. Its status names
// what is not honoured.
func TestTelemetry(t *testing.T) {
	const front = "  targetRefs: [{group: \"\", kind: Service, name: front}]\n"
	w := start(t, world.Options{})
	w.Apply(versions())
	w.ProxiesBecome("shop", 1)
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "front", 80, v6)
		w.Apply(telemetry("front", front+`  accessLogging:
  - providers: [{name: envoy}]
    filter: {expression: "request.headers['x-log'] == 'yes'"}
  metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {choice: {value: "request.headers['x-choice']"}}}]}]
`))
		w.Condition("Telemetry", "shop", "front", "WaypointAccepted", "True Accepted", "honoured by waypoint $shop/waypoint")
		tries := 0
		choice := fmt.Sprint("blue-", v6)
		w.Eventually("lines of the requests that are chosen", func() error {
			tries++
			lines := map[string][]string{}
			for _, log := range []string{"no", "yes"} {
				path := fmt.Sprintf("/%s/%v/%d", log, v6, tries)
				if r := w.Request(far, to, path, "x-log: "+log, "x-choice: "+choice); r.Status != 200 {
					return fmt.Errorf("%+v", r)
				}
				for line := range strings.Lines(w.WaypointLog("shop")) {
					if strings.Contains(line, `"GET `+path+` HTTP/1.1"`) {
						lines[log] = append(lines[log], line)
					}
				}
			}
			if all := lines["yes"]; len(all) != 1 || !strings.Contains(all[0], `HTTP/1.1" 200 - via_upstream - "-" `) || strings.Contains(all[0], "src.workload") || len(lines["no"]) > 0 {
				return fmt.Errorf("%q", lines)
			}
			return nil
		})
		counted := func() float64 { return w.Counted("shop", "istio_requests_total", "choice", choice) }
		w.Eventually("a label of the request", func() error {
			if r := w.Request(far, to, "/", "x-choice: "+choice); r.Status != 200 || counted() == 0 {
				return fmt.Errorf("%+v, and no series", r)
			}
			return nil
		})
		w.Delete(telemetry("front", front))
		w.Eventually("the label goes", func() error {
			before := counted()
			if r := w.Request(far, to, "/", "x-choice: "+choice); r.Status != 200 || counted() > before {
				return fmt.Errorf("%+v, and %v requests with the label", r, counted())
			}
			return nil
		})
		w.Apply(telemetry("front", front+"  metrics: [{overrides: [{match: {mode: CLIENT}, disabled: true}]}]\n"))
		w.Condition("Telemetry", "shop", "front", "WaypointAccepted", "False UnsupportedValue", "spec.metrics[0].overrides[0].match.mode")
		w.Delete(telemetry("front", front))
	})
}
