package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/test/rig"
)

const ofAuthorizers = "envoy.filters.http.ext_authz"

// metadataProviders are providers of lines with the metadata of authorizers, and a second authorizer.
const metadataProviders = `
- name: second
  envoyExtAuthzGrpc: {service: authorizer.auth.svc.cluster.local, port: 8001}
- name: lines
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {text: 'TOLD %REQ(:PATH)% user="%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%" org=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:org:team)% all=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:org)% short=%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user):2%'}
- name: lines-json
  envoyFileAccessLog:
    path: /dev/stdout
    logFormat: {labels: {path: "%REQ(:PATH)%", told: "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%", score: "%DYNAMIC_METADATA(envoy.filters.http.ext_authz:score)%"}}
- name: other-namespace
  envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%DYNAMIC_METADATA(envoy.lb:x)%"}}
`

// TestMetadataOfAuthorizers: the metadata of an answer is in lines of the log,
// decides which requests have lines and what labels of metrics are; policies that follow
// decide by it, and the next authorizer gets it. An answer with too much of it allows nothing, and no value forges a line.
func TestMetadataOfAuthorizers(t *testing.T) {
	w, a, _ := startAuthorized(t, metadataProviders)
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	c := userAgent{w, netip.AddrPortFrom(w.Service("shop", "api", false), 80)}
	a.Answer(nil, func(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		wish := q.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-wish"]
		m := map[string]any{"user": "ann", "score": 0.5, "org": map[string]any{"team": "books"}}
		answer := &authv3.CheckResponse{Status: &status.Status{}}
		switch wish {
		case "denied":
			answer.Status.Code = 7
		case "bob":
			m["user"] = "bob"
		case "forged":
			m["user"] = "x\"\nTOLD /forged user=\"root\""
		case "large":
			m["user"] = strings.Repeat("x", 10_000)
		case "none":
			m = nil
		}
		if answer.DynamicMetadata, err = structpb.NewStruct(m); err != nil {
			return nil, err
		}
		return answer, nil
	})
	w.MustApply(asks("by-grpc", `[{}]`))
	w.MustApply(telemetry("logs", "  accessLogging: [{providers: [{name: lines}, {name: lines-json}]}]\n"))
	log := func() string { return w.Log("pod/shop/" + path.Base(string(at)) + "/" + deploy.Container) }
	n := 0
	// logs makes requests until the log has the lines of one.
	logs := func(what, wish string, status int, want ...string) {
		t.Helper()
		var paths []string
		w.Eventually(what, func() error {
			n++
			where := fmt.Sprintf("/told/%d", n)
			resp, body, err := c.do("GET " + where + " HTTP/1.1\nHost: api\nX-Wish: " + wish)
			if err != nil || resp.StatusCode != status {
				return fmt.Errorf("%v %s %w", resp, body, err)
			}
			paths = append(paths, where)
			lines := log()
			for _, p := range paths {
				found := 0
				for _, line := range want {
					if strings.Contains("\n"+lines, "\n"+strings.ReplaceAll(line, "PATH", p)+"\n") {
						found++
					}
				}
				if found == len(want) {
					return nil
				}
			}
			return fmt.Errorf("no request of %d has %q: %s", len(paths), want, lines[max(0, len(lines)-2000):])
		})
	}
	logs("lines with metadata", "ann", 200, `TOLD PATH user="ann" org=books all={\"team\":\"books\"} short=an`, `{"path":"PATH","score":"0.5","told":"ann"}`)
	logs("lines of a denial", "denied", 403, `TOLD PATH user="ann" org=books all={\"team\":\"books\"} short=an`)
	logs("lines without metadata", "none", 200, `TOLD PATH user="-" org=- all=- short=-`, `{"path":"PATH","score":null,"told":null}`)
	logs("a value that looks like a line", "forged", 200, `TOLD PATH user="x\"\x0aTOLD /forged user=\"root\"" org=books all={\"team\":\"books\"} short=x\"`)
	logs("an answer that is too large", "large", 403, `TOLD PATH user="-" org=- all=- short=-`)
	if strings.Contains(log(), "\nTOLD /forged") {
		t.Error("a line was forged")
	}

	// Filters and labels.
	w.MustApply(telemetry("logs", `  accessLogging:
  - providers: [{name: lines-json}]
    filter: {expression: "metadata.filter_metadata['`+ofAuthorizers+`'].user == 'bob'"}
  metrics:
  - overrides:
    - match: {metric: REQUEST_COUNT}
      tagOverrides: {told: {value: "metadata.filter_metadata['`+ofAuthorizers+`'].org.team"}}
`))
	w.Eventually("a label", func() error {
		if _, _, err := c.do("GET /filtered/ann HTTP/1.1\nHost: api"); err != nil {
			return err
		}
		if counted(w, at, "istio_requests_total", "told=books") == 0 {
			return fmt.Errorf("%v", w.MetricsIn(at, "istio_requests_total"))
		}
		return nil
	})
	before := len(log())
	c.must("GET /filtered/again HTTP/1.1\nHost: api")
	w.Eventually("the lines of some requests", func() error {
		if _, _, err := c.do("GET /filtered/bob HTTP/1.1\nHost: api\nX-Wish: bob"); err != nil {
			return err
		}
		if lines := log()[before:]; !strings.Contains(lines, "/filtered/bob") || strings.Contains(lines, "/filtered/again") {
			return fmt.Errorf("%s", lines)
		}
		return nil
	})

	// The next authorizer.
	w.MustApply(strings.Replace(asks("second", `[{}]`), "name: ask", "name: ask-again", 1))
	w.Eventually("the next authorizer gets it", func() error {
		a.Asked()
		if _, _, err := c.do("GET /both HTTP/1.1\nHost: api\nX-Wish: bob"); err != nil {
			return err
		}
		all := a.Asked()
		if len(all) != 2 {
			return fmt.Errorf("%d questions", len(all))
		}
		first, second := all[0].Check.GetAttributes().GetMetadataContext().GetFilterMetadata(), all[1].Check.GetAttributes().GetMetadataContext().GetFilterMetadata()
		if first[ofAuthorizers] != nil || second[ofAuthorizers].GetFields()["user"].GetStringValue() != "bob" {
			return fmt.Errorf("%v, %v", first, second)
		}
		return nil
	})
	w.MustDelete("AuthorizationPolicy", "shop", "ask-again")

	// Policies.
	const api = `targetRefs: [{group: "", kind: Service, name: api}], rules: `
	w.MustApply(rig.PolicyObject("shop", "told", "DENY", api+`[{when: [{key: "experimental.`+ofAuthorizers+`[user]", values: [bob]}]}]`))
	c.becomes(bare+"\nX-Wish: bob", 403)
	c.becomes(bare+"\nX-Wish: ann", 200)
	c.becomes(bare+"\nX-Wish: none", 200)
	w.MustApply(rig.PolicyObject("shop", "told", "ALLOW", api+`[{when: [{key: "experimental.`+ofAuthorizers+`[org][team]", values: [books]}]}]`))
	c.becomes(bare+"\nX-Wish: none", 403)
	c.becomes(bare+"\nX-Wish: bob", 200)
	// Without an authorizer there is no metadata.
	w.MustDelete("AuthorizationPolicy", "shop", "ask")
	c.becomes(bare+"\nX-Wish: bob", 403)
	if out, err := w.Ambit("status"); err != nil || strings.Contains(out, "told") && strings.Contains(out, "Invalid") {
		t.Errorf("%s, error %v", out, err)
	}
	w.MustApply(telemetry("logs", "  accessLogging: [{providers: [{name: other-namespace}]}]\n"))
	w.Eventually("another namespace is reported", func() error {
		out, err := w.Ambit("status")
		if err != nil || !strings.Contains(out, "other-namespace") {
			return fmt.Errorf("%s, error %w", out, err)
		}
		return nil
	})
}
