package scenario

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// plain is a service without HTTP that uses the waypoint.
const plain = `
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 9000, appProtocol: tcp}]}
`

// guard denies requests to front by path, method, host and header.
const guard = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guard, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: front}]
  action: DENY
  rules:
  - to: [{operation: {paths: ["/admin", "/admin/*", "/files/{*}/secret"]}}]
  - to: [{operation: {methods: [DELETE]}}]
  - to: [{operation: {hosts: [secret.example.com]}}]
  - when: [{key: "request.headers[x-role]", values: [admin]}]
`

// send writes the head of a request as it is, and returns the status and the body of
// the answer.
func send(c net.Conn, head string) (int, string, error) {
	resp, body, err := converse(c, head)
	if err != nil {
		return 0, "", err
	}
	return resp.StatusCode, body, nil
}

// converse is send that returns the whole answer.
func converse(c net.Conn, head string) (*http.Response, string, error) {
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "GET"})
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// TestGatewayPolicyChanges: a policy that comes holds for what is open already, one
// under trial is counted and refuses nothing.
func TestGatewayPolicyChanges(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: versions() + plain})
	policy := func(name, meta, spec string) string {
		return fmt.Sprintf("\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: shop, %s}\nspec: %s\n", name, meta, spec)
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		front, tcp := netip.AddrPortFrom(w.Service("shop", "front", v6), 80), netip.AddrPortFrom(w.Service("shop", "plain", v6), 9000)
		var requests net.Conn
		w.Eventually("the waypoint serves", func() error {
			requests = w.MustDial(far, front)
			status, _, err := send(requests, "GET /x HTTP/1.1\nHost: front")
			if status != 200 {
				_ = requests.Close()
				return fmt.Errorf("status %d, error %w", status, err)
			}
			return nil
		})
		held := w.MustHold(far, tcp)

		w.MustApply(policy("trial", `annotations: {istio.io/dry-run: "true"}`, `{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}], action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}`))
		at, err := gatewayPod(w)
		if err != nil {
			t.Fatal(err)
		}
		w.Eventually("the trial is counted", func() error {
			if status, _, err := send(requests, "GET /x HTTP/1.1\nHost: front"); status != 200 {
				t.Fatalf("a trial: status %d, error %v", status, err)
			}
			for _, s := range w.MetricsIn(at, "ambit_policy_verdicts_total") {
				if s.Labels["policy"] == "shop/trial" && s.Labels["verdict"] == "would_deny" && s.Value > 0 {
					return nil
				}
			}
			return fmt.Errorf("no series of the policy")
		})
		if err := held.Ping(); err != nil {
			t.Fatalf("a trial ends a connection: %v", err)
		}

		w.MustApply(policy("readers", "", `{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}], rules: [{from: [{source: {serviceAccounts: [far]}}], to: [{operation: {methods: [GET]}}]}]}`))
		// No connection shows a method, so the ALLOW allows none.
		if err := held.AwaitEnd(); err == nil {
			t.Error("the open connection goes on")
		}
		if status, _, err := send(requests, "GET /x HTTP/1.1\nHost: front"); status != 200 {
			t.Errorf("GET on the open connection: %d, error %v", status, err)
		}
		if status, body, err := send(requests, "POST /x HTTP/1.1\nHost: front\nContent-Length: 0"); status != 403 {
			t.Errorf("POST on the open connection: %d %q, error %v", status, body, err)
		}
		if _, err := w.Hold(far, tcp); err == nil {
			t.Error("a new connection without HTTP is carried")
		}
		w.Eventually("the status says where it acts", func() error {
			out, err := w.Ambit("status")
			if err != nil || !strings.Contains(out, "enforced by waypoint shop/waypoint") || !strings.Contains(out, "dry run: evaluated and counted") {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
		for _, name := range []string{"readers", "trial"} {
			w.MustDelete("AuthorizationPolicy", "shop", name)
		}
		w.Eventually("connections are carried again", func() error {
			_, err := w.Hold(far, tcp)
			return err
		})
	})
}

// TestPolicyFollowsItsService: a service that moves from one waypoint to another and
// back is never without its policy, neither for new connections nor for open ones.
func TestPolicyFollowsItsService(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: versions() + strings.Replace(managed, "name: waypoint,", "name: second,", 1) + guard})
	front := netip.AddrPortFrom(w.Service("shop", "front", false), 80)
	var open net.Conn
	ask := func(fresh bool, path string) int {
		if fresh || open == nil {
			c, err := w.Dial(t.Context(), far, "tcp", front.String())
			if err != nil {
				return 0
			}
			if open != nil {
				_ = open.Close()
			}
			open = c
		}
		status, _, err := send(open, "GET "+path+" HTTP/1.1\nHost: front")
		if err != nil {
			_ = open.Close()
			open = nil
		}
		return status
	}
	defer func() {
		if open != nil {
			_ = open.Close()
		}
	}()
	w.Eventually("the policy is in force", func() error {
		if status := ask(true, "/admin"); status != 403 {
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
	for i, name := range []string{"second", "waypoint", "second", "waypoint", "second"} {
		_, yaml, _ := strings.Cut(versions(), managed)
		w.MustApply(strings.Replace(yaml, "istio.io/use-waypoint: waypoint", "istio.io/use-waypoint: "+name, 1))
		w.Eventually("the service is served by "+name, func() error {
			for n := range 20 {
				if status := ask(n%4 == i%4, "/admin"); status == 200 {
					t.Fatalf("a denied request reached the service on its way to %s", name)
				}
			}
			if status := ask(true, "/"); status != 200 {
				return fmt.Errorf("status %d", status)
			}
			out, err := w.Ambit("status")
			if err != nil || !strings.Contains(out, "enforced by waypoint shop/"+name) {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
	}
}
