package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// told is a service behind a waypoint that says who calls.
const told = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, annotations: {ambient.istio.io/xfcc-include-client-identity: "true"}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: told, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8088, appProtocol: http}]}
`

// heard is a request as a program got it.
type heard struct {
	Headers http.Header
	Body    string
}

// TestForgedHeaders: a client says that it is another one, in every header by which
// proxies say who calls, and in those of its tunnel. The program hears who it is.
func TestForgedHeaders(t *testing.T) {
	t.Parallel()
	world := start(t, told)
	l := world.Listen(rig.Web, ":8088")
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_ = json.NewEncoder(rw).Encode(heard{r.Header, string(b)})
	})}
	s.SetKeepAlivesEnabled(false) // a line is written when its connection ends
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	const (
		waypointID = "spiffe://cluster.local/ns/shop/sa/waypoint"
		thiefID    = "spiffe://cluster.local/ns/market/sa/thief2"
	)
	forge := func(h http.Header) {
		for k, v := range map[string]string{
			"X-Forwarded-For": "10.9.9.9", "x-Forwarded-client-cert": "By=x;URI=spiffe://cluster.local/ns/shop/sa/far", "X-Envoy-External-Address": "10.9.9.9",
			"x-envoy-peer-metadata": "e30=", "X-Envoy-Decorator-Operation": "forged", "X-ENVOY-ATTEMPT-COUNT": "7", "X-Ambit-Identity": "far", "x-ambit-reason": "OK",
		} {
			h[k] = []string{v}
		}
	}
	check := func(t *testing.T, got heard, client netip.Addr) {
		t.Helper()
		want := "10.9.9.9," + client.String()
		if v := got.Headers.Values("X-Forwarded-For"); len(v) != 1 || v[0] != want {
			t.Errorf("X-Forwarded-For %q, want %q", v, want)
		}
		if v := got.Headers.Values("X-Forwarded-Client-Cert"); len(v) != 1 || v[0] != "By="+waypointID+";URI="+thiefID {
			t.Errorf("X-Forwarded-Client-Cert %q", v)
		}
		for k := range got.Headers {
			if l := strings.ToLower(k); strings.HasPrefix(l, "x-envoy-") || strings.HasPrefix(l, "x-ambit-") {
				t.Errorf("%s came through: %q", k, got.Headers[k])
			}
		}
		if got.Headers.Get("X-Request-Id") == "" || got.Headers.Get("X-Forwarded-Proto") != "http" {
			t.Errorf("%v", got.Headers)
		}
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "told", v6), 80)
		t.Run("request", func(t *testing.T) {
			client := w.HTTP(thief2)
			defer client.CloseIdleConnections()
			w.For(t).Eventually("the program is told who calls", func() error {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+to.String()+"/", nil)
				if err != nil {
					return err
				}
				forge(req.Header)
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close() //nolint:errcheck // read to the end
				var got heard
				if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusOK {
					return fmt.Errorf("%s: %w", resp.Status, err)
				}
				check(t, got, w.Pod("market", "thief2", v6))
				return nil
			})
			// The node proxy of the program shows the client as well.
			w.For(t).Logs("node1", "dst.service=\"told.shop.svc.cluster.local\"", "forwarded.for="+w.Pod("market", "thief2", v6).String()+" ", waypointID)
		})
		t.Run("tunnel", func(t *testing.T) {
			gw := waypointPod(w.For(t))
			at := netip.AddrPortFrom(w.Pod("shop", path.Base(string(gw)), v6), wellknown.PortHBONE)
			tun := w.For(t).MustTunnel(rig.Stranger, at, w.Bundle(thiefID), waypointID)
			stream, status, err := tun.Open(http.MethodConnect, to.String(), http.Header{
				"Forwarded": {`for="10.9.9.9:1";host=web.shop.svc.cluster.local`}, "Baggage": {"k8s.namespace.name=shop,k8s.deployment.name=forged"},
				"X-Forwarded-For": {"10.9.9.9"}, "X-Forwarded-Client-Cert": {"By=x;URI=spiffe://cluster.local/ns/shop/sa/far"},
			})
			if err != nil || status != http.StatusOK {
				t.Fatal(status, err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://told/", nil)
			if err != nil {
				t.Fatal(err)
			}
			forge(req.Header)
			if err := req.Write(stream); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(stream), req)
			if err != nil {
				t.Fatal(err)
			}
			var got heard
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			check(t, got, w.Pod("street", "stranger", v6))
			b, err := w.Lab.Get(context.WithoutCancel(t.Context()), gw, "http://127.0.0.1:15020/stats/prometheus")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(b), "forged") || !strings.Contains(string(b), `source_principal="`+thiefID+`"`) {
				t.Errorf("metrics say what the client said of itself, or not who it is:\n%s", b)
			}
		})
	})
}

// waypointPod returns the place of the waypoint's only proxy.
func waypointPod(w *rig.World) lab.Where {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	for _, p := range s.Pods {
		if p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") {
			return lab.InPod(p.Namespace, p.Name)
		}
	}
	w.T().Fatal("the waypoint has no pod")
	return ""
}
