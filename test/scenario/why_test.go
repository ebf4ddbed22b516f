package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
)

// whyWorld has something for each kind of decision: services with a waypoint, whose
// routes and policies allow, refuse, redirect or lead nowhere, and pods without one.
func whyWorld() string {
	y := versions() + split + plain + guard
	for _, name := range []string{"solo", "locked"} {
		y += rig.ServerObject("shop", name, "node1", "app: "+name) + rig.ServiceObject("shop", name, name, "{name: http, port: 80, targetPort: 8080, appProtocol: http}")
	}
	y += rig.PodObject("shop", "near", "node1", "") +
		rig.NamespaceObject("street", false) + rig.PodObject("street", "stranger", "node2", "") + rig.ServerObject("street", "shed", "node2", "app: shed")
	y += rig.PolicyObject("shop", "not-far", "DENY", `selector: {matchLabels: {app: solo}}, rules: [{from: [{source: {namespaces: [nowhere]}}]}, {from: [{source: {principals: ["cluster.local/ns/shop/sa/far"]}}]}]`)
	y += rig.PolicyObject("shop", "only-near", "ALLOW", `selector: {matchLabels: {app: locked}}, rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/near"]}}]}]`)
	y += `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: solo, namespace: shop}
spec: {selector: {matchLabels: {app: solo}}, mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: narrow, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: narrow, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: narrow}]
  rules:
  - matches: [{path: {type: Exact, value: /only}, method: GET}]
    backendRefs: [{name: narrow, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /only}, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /broken}}]
    backendRefs: [{name: absent, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /empty}}]
    backendRefs: [{name: empty, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {selector: {app: nothing}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: v2}, ipFamilyPolicy: PreferDualStack, ports: [{name: data, port: 9000}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-near, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: guarded}]
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/near"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: narrow-readers, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: narrow}]
  action: ALLOW
  rules: [{to: [{operation: {methods: [GET, HEAD]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  targetRefs: [{group: "", kind: Service, name: narrow}]
  action: DENY
  rules: [{}]
`
	return y
}

// told is what `ambit why -o json` prints, as far as the test needs it.
type told struct {
	Allowed bool
	Reason  string
	Status  int
	Command string
	Hops    []struct {
		Proxy, Role string
		Steps       []struct {
			Object, Rule, Says string
			Decides            bool
		}
	}
}

// decided returns the last step that decided, as "object, rule".
func (r *told) decided() string {
	out := ""
	for _, h := range r.Hops {
		for _, s := range h.Steps {
			if s.Decides {
				if out = s.Object; s.Rule != "" {
					out += ", " + s.Rule
				}
			}
		}
	}
	return out
}

// why asks, and returns the answer and the exit code.
func why(w *rig.World, args ...string) (told, int, error) {
	var r told
	out, err := w.Ambit("why -o json", args...)
	var exit *exec.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		return r, -1, err
	}
	if code == 2 {
		return r, code, err
	}
	return r, code, json.Unmarshal([]byte(out), &r)
}

// TestWhyAgrees: for each kind of connection and request, what `ambit why` says is what
// happens when it is made.
func TestWhyAgrees(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: whyWorld()})
	far, near, stranger := lab.InPod("shop", "far"), lab.InPod("shop", "near"), lab.InPod("street", "stranger")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		service := func(name string, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(w.Service("shop", name, v6), port)
		}
		pod := func(ns, name string) netip.AddrPort { return netip.AddrPortFrom(w.Pod(ns, name, v6), 8080) }
		const get = "GET / HTTP/1.1"
		for _, tt := range []struct {
			name string
			from lab.Where
			to   netip.AddrPort
			head string   // "": a connection without HTTP
			ask  []string // flags that describe the request
			want reason.Reason
			by   string // what decides; "" is not looked at
			hops int
		}{
			{"allowed by a waypoint", far, service("front", 80), get, []string{"--path", "/"}, reason.OK, "", 3},
			{"by a header to another version", far, service("front", 80), get + "\nX-Version: 2", []string{"--header", "x-version=2"}, reason.OK, "", 3},
			{"a path that a policy of the waypoint denies", far, service("front", 80), "GET /admin/x?y HTTP/1.1", []string{"--path", "/admin/x?y"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 0", 2},
			{"a method that it denies", far, service("front", 80), "DELETE / HTTP/1.1", []string{"--method", "DELETE"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 1", 2},
			{"a host that it denies", far, service("front", 80), get + "\nHost: secret.example.com", []string{"--host", "secret.example.com"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 2", 2},
			{"a header that it denies", far, service("front", 80), get + "\nX-Role: user, admin", []string{"--header", "x-role=user, admin"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 3", 2},
			{"a path in two ways", far, service("front", 80), "GET /x/..%2Fadmin HTTP/1.1", []string{"--path", "/x/..%2Fadmin"}, reason.MalformedRequest, "", 2},
			{"an encoded path", far, service("front", 80), "GET /%61dmin HTTP/1.1", []string{"--path", "/%61dmin"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 0", 2},
			{"a route that fits", far, service("narrow", 80), "GET /only HTTP/1.1", []string{"--path", "/only"}, reason.OK, "", 3},
			{"no route", far, service("narrow", 80), "GET /none HTTP/1.1", []string{"--path", "/none"}, reason.NoRoute, "", 2},
			{"a policy before the missing route", far, service("narrow", 80), "PUT /none HTTP/1.1", []string{"--path", "/none", "--method", "PUT"}, reason.NotAllowed, "", 2},
			{"a redirect", far, service("narrow", 80), "GET /old/x HTTP/1.1", []string{"--path", "/old/x"}, reason.OK, "HTTPRoute shop/narrow, rule 1", 2},
			{"a backend that is missing", far, service("narrow", 80), "GET /broken HTTP/1.1", []string{"--path", "/broken"}, reason.NoBackend, "HTTPRoute shop/narrow, rule 2", 2},
			{"a backend without endpoints", far, service("narrow", 80), "GET /empty HTTP/1.1", []string{"--path", "/empty"}, reason.NoHealthyUpstream, "Service shop/empty", 2},
			{"without HTTP, through the waypoint", far, service("plain", 9000), "", []string{"--tcp"}, reason.OK, "", 3},
			{"a pod behind the waypoint, by its own address", far, pod("shop", "v1"), get, nil, reason.OK, "", 3},
			{"the same, and a policy of its service denies it", far, pod("shop", "v1"), "GET /admin HTTP/1.1", []string{"--path", "/admin"}, reason.PolicyDenied, "AuthorizationPolicy shop/guard, rule 0", 2},
			{"around the waypoint, to a pod", stranger, pod("shop", "v1"), get, nil, reason.WaypointRequired, "Gateway shop/waypoint", 2},
			{"around the waypoint, without an identity", stranger, service("front", 80), get, nil, reason.WaypointRequired, "Gateway shop/waypoint", 2},
			{"without a waypoint", near, service("solo", 80), get, nil, reason.OK, "", 2},
			{"denied by the node proxy of the destination", far, service("solo", 80), get, nil, reason.PolicyDenied, "AuthorizationPolicy shop/not-far, rule 1", 2},
			{"denied by it for want of an identity", stranger, service("solo", 80), get, nil, reason.PolicyDenied, "PeerAuthentication (mode STRICT)", 2},
			{"not allowed by it", far, service("locked", 80), get, nil, reason.NotAllowed, "", 2},
			{"allowed by it", near, service("locked", 80), get, nil, reason.OK, "AuthorizationPolicy shop/only-near, rule 0", 2},
			{"a service without endpoints", far, service("empty", 80), get, nil, reason.NoHealthyUpstream, "", 1},
			{"a port that the service does not have", far, service("solo", 81), get, nil, reason.NoHealthyUpstream, "", 1},
			{"a port that the service with a waypoint does not have", far, service("front", 81), get, nil, reason.NoHealthyUpstream, "", 2},
			{"without HTTP on a port that declares it", far, service("front", 80), "\x00", []string{"--tcp"}, reason.MalformedRequest, "", 2},
			{"without HTTP, denied", near, service("guarded", 9000), "", []string{"--tcp"}, reason.PolicyDenied, "AuthorizationPolicy shop/no-near, rule 0", 2},
			{"without HTTP, and others are allowed", far, service("guarded", 9000), "", []string{"--tcp"}, reason.OK, "", 3},
			{"a call of gRPC without a route", far, service("narrow", 80), "GET /none HTTP/1.1\nContent-Type: application/grpc", []string{"--path", "/none", "--header", "content-type=application/grpc"}, reason.NoRoute, "", 2},
			{"a preflight request", far, service("narrow", 80), "OPTIONS /only HTTP/1.1", []string{"--path", "/only", "--method", "OPTIONS"}, reason.NotAllowed, "", 2},
			{"a pod outside the mesh", far, pod("street", "shed"), get, nil, reason.OK, "", 2},
			{"both outside the mesh", stranger, pod("street", "shed"), get, nil, reason.OK, "", 2},
		} {
			t.Run(tt.name, func(t *testing.T) {
				_, source, _ := strings.Cut(string(tt.from), "/")
				ns, name, _ := strings.Cut(source, "/")
				args := append([]string{name + "." + ns, tt.to.String()}, tt.ask...)
				w.Eventually("why and what happens agree", func() error {
					r, code, err := why(w, args...)
					if err != nil {
						return err
					}
					if r.Reason != tt.want.String() || r.Allowed != (tt.want == reason.OK) || code != map[bool]int{true: 0, false: 1}[r.Allowed] {
						return fmt.Errorf("why: %+v, exit code %d; want %s", r, code, tt.want)
					}
					if got := r.decided(); tt.by != "" && got != tt.by || len(r.Hops) != tt.hops {
						return fmt.Errorf("why: decided by %q after %d proxies, want %q after %d: %+v", got, len(r.Hops), tt.by, tt.hops, r)
					}
					status, err := really(w, tt.from, tt.to, tt.head)
					switch want := r.Status; {
					case r.Allowed && want == 0 && tt.head == "" && err == nil:
					case r.Allowed && want == 0 && status == 200:
					case want != 0 && status == want:
					case !r.Allowed && want == 0 && err != nil:
					default:
						return fmt.Errorf("why: allowed %v, status %d; really: status %d, error %w", r.Allowed, want, status, err)
					}
					return nil //nolint:nilerr // an error can be what was expected
				})
			})
		}
	})
}

// really makes a request, or a connection without HTTP, and returns what came of it.
func really(w *rig.World, from lab.Where, to netip.AddrPort, head string) (int, error) {
	if head == "\x00" { // no request line has it
		c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:errcheck // the answer has come
		status, _, err := send(c, head)
		return status, err
	}
	if head == "" {
		c, err := w.Hold(from, to)
		if err == nil {
			_ = c.Close()
		}
		return 0, err
	}
	c, err := w.Dial(w.T().Context(), from, "tcp", to.String())
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // the answer has come
	if !strings.Contains(head, "\nHost: ") {
		host := to.Addr().String()
		if to.Addr().Is6() {
			host = "[" + host + "]"
		}
		if to.Port() != 80 {
			host = net.JoinHostPort(to.Addr().String(), fmt.Sprint(to.Port()))
		}
		head += "\nHost: " + host
	}
	status, _, err := send(c, head+"\nContent-Length: 0\nConnection: close")
	return status, err
}

// TestWhy: names as clients write them, pods of an account, what has no answer, and that
// a question leaves no trace in metrics and logs.
func TestWhy(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: whyWorld()})
	w.Eventually("the waypoint serves", func() error {
		_, code, err := why(w, "far.shop", "http://front/x")
		if code != 0 {
			return fmt.Errorf("exit code %d, error %w", code, err)
		}
		status, err := really(w, lab.InPod("shop", "far"), netip.AddrPortFrom(w.Service("shop", "front", false), 80), "GET /x HTTP/1.1")
		if status != 200 {
			return fmt.Errorf("status %d, error %w", status, err)
		}
		return nil
	})
	at, err := gatewayPod(w)
	if err != nil {
		t.Fatal(err)
	}
	_, waypoint, _ := strings.Cut(string(at), "/")
	traces := func() string {
		s := ""
		for _, name := range []string{"istio_requests_total", "istio_tcp_connections_opened_total", "istio_tcp_connections_failed_total", "ambit_policy_verdicts_total"} {
			s += fmt.Sprintln(w.MetricsIn(at, name), w.Metrics("node1", name), w.Metrics("node2", name))
		}
		return s + fmt.Sprint(len(w.AccessLines("node1")), len(w.AccessLines("node2")))
	}
	before := traces()
	for _, tt := range []struct {
		args []string
		code int
		says string // of the error
	}{
		{[]string{"pod/far.shop", "front"}, 0, ""},
		{[]string{"pod/far.shop", "front.shop"}, 0, ""},
		{[]string{"sa/far.shop", "svc/front.shop"}, 0, ""},
		{[]string{"far", "svc/front.shop.svc.cluster.local:80", "-n", "shop"}, 0, ""},
		{[]string{"far.shop", "http://front.shop.svc/admin"}, 1, ""},
		{[]string{"far.shop", "front", "--path", "/admin"}, 1, ""},
		{[]string{"far.shop", "pod/v1.shop", "--port", "8080"}, 0, ""},
		{[]string{"far.shop", "narrow", "--path", "/only"}, 0, ""}, // a dry run is not counted
		{[]string{"far.shop", "192.0.2.1:80"}, 0, ""},
		{[]string{"far.shop", "nothing"}, 2, "no service or pod of the mesh has this name"},
		{[]string{"far.shop", "pod/v1.shop"}, 2, "has no port"},
		{[]string{"far.shop", "pod/nothing.shop:80"}, 2, "no service or pod of the mesh has this name"},
		{[]string{"nobody.shop", "front"}, 2, "there is no pod shop/nobody"},
		{[]string{"sa/nobody.shop", "front"}, 2, "no running pod of service account shop/nobody"},
		{[]string{"deploy/far.shop", "front"}, 2, "there are pod/NAME.NAMESPACE and sa/NAME.NAMESPACE"},
		{[]string{"far.shop", "ftp://front"}, 2, "there are http:// and https://"},
		{[]string{"far.shop", "front", "--header", "x"}, 2, "is not NAME=VALUE"},
		{[]string{"far.shop", "front", "--header", "x y=z"}, 2, "x y"},
		{[]string{"far.shop", "front", "--method", "G T"}, 2, "method"},
		{[]string{"far.shop", "front", "--tcp", "--path", "/x"}, 2, "--tcp"},
		{[]string{"far.shop", "front:99999"}, 2, "is not a port"},
		{[]string{"far.shop"}, 2, "see `ambit why --help`"},
		{[]string{"far.shop", "front", "--nothing"}, 2, "see `ambit why --help`"},
	} {
		_, code, err := why(w, tt.args...)
		if code != tt.code || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%v: exit code %d, error %v", tt.args, code, err)
		}
	}
	if after := traces(); after != before {
		t.Errorf("questions have left traces:\n%s\nbefore:\n%s", after, before)
	}
	r, _, err := why(w, "far.shop", "http://front/admin")
	if err != nil || r.Command != "ambit waypoint-config policies waypoint.shop --state-dir "+w.StateDir() {
		t.Errorf("next command %q, error %v", r.Command, err)
	}
	if len(r.Hops) != 2 || r.Hops[1].Proxy != "waypoint "+waypoint {
		t.Errorf("%+v", r.Hops)
	}
	out, err := w.Ambit("why", "far.shop", "http://front/x")
	if bad := holds(out, "pod/far.shop: GET http://front/x", "HTTPRoute shop/split, rule 1", "gets 90 of 100", "allowed: pod shop/v1 gets it on"); bad != nil || err != nil {
		t.Errorf("%v, error %v", bad, err)
	}
}

// TestWhyOnDemand: a node proxy that has met nothing yet requests what the question is
// about, as the connection would.
func TestWhyOnDemand(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: whyWorld(), Env: map[string][]string{"ztunnel": {"XDS_ON_DEMAND=true"}}})
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"far.shop", "http://front/x"}, 0, "OK"},
		{[]string{"far.shop", "solo"}, 1, "POLICY_DENIED"},
		{[]string{"near.shop", "svc/solo.shop"}, 0, "OK"},
		{[]string{"far.shop", netip.AddrPortFrom(w.Pod("shop", "v1", false), 8080).String()}, 0, "OK"},
		{[]string{"far.shop", "nothing"}, 2, ""},
	} {
		w.Eventually(strings.Join(tt.args, " to "), func() error {
			r, code, err := why(w, tt.args...)
			if code != tt.code || r.Reason != tt.want {
				return fmt.Errorf("code %d, %+v, error %w", code, r, err)
			}
			return nil
		})
	}
}

// TestWaypointConfig: the tables have what the waypoint executes and carries.
func TestWaypointConfig(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: whyWorld()})
	held := (*rig.Conn)(nil)
	w.Eventually("a connection is held", func() (err error) {
		held, err = w.Hold(lab.InPod("shop", "far"), netip.AddrPortFrom(w.Service("shop", "plain", false), 9000))
		return err
	})
	for _, tt := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"routes", "waypoint.shop"}, []string{"split", "90 v1.shop:80, 10 v2.shop:80", "GET and path /only", "redirect", "not usable"}},
		{[]string{"backends", "waypoint", "-n", "shop", "--service", "v1"}, []string{"v1.shop.svc.cluster.local 80", "HTTP/1.1 1/1"}},
		{[]string{"policies", "waypoint.shop"}, []string{"guard", "DENY", "front.shop", "DENY (dry run)"}},
		{[]string{"connections", "waypoint.shop", "--service", "plain"}, []string{"shop/far", "plain.shop", "9000", "TCP", "shop/v1"}},
		{[]string{"all", "-n", "shop", "-o", "yaml"}, []string{"routes:", "backends:", "policies:", "connections:"}},
	} {
		w.Eventually(strings.Join(tt.args, " "), func() error {
			out, err := w.Ambit("waypoint-config "+tt.args[0], tt.args[1:]...)
			if err != nil {
				return err
			}
			return holds(out, tt.parts...)
		})
	}
	if err := held.Ping(); err != nil {
		t.Error(err)
	}
	if _, err := w.Ambit("waypoint-config routes", "nothing.shop"); err == nil || !strings.Contains(err.Error(), `no pod and no waypoint "nothing" runs in namespace shop`) {
		t.Errorf("error %v", err)
	}
}

// holds returns an error for the first part that a text does not have.
func holds(text string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return fmt.Errorf("%q is not in\n%s", p, text)
		}
	}
	return nil
}
