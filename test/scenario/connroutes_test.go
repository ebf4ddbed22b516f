package scenario

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
)

// connectionRoutes are routes of connections: of TLS by name, of anything by weight, one
// that leads behind another waypoint, and one that lost to an older one.
const connectionRoutes = `
---
apiVersion: v1
kind: Service
metadata: {name: secure, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: tls, port: 443, targetPort: 8443, appProtocol: tls}, {name: both, port: 444, targetPort: 8443, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: data, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {tier: server}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 9000, appProtocol: tcp}, {name: far, port: 9001, appProtocol: tcp}, {name: broken, port: 9002, appProtocol: tcp}, {name: undeclared, port: 9003}, {name: http, port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1-raw, namespace: shop}
spec: {selector: {app: v1}, ipFamilyPolicy: PreferDualStack, ports: [{name: tls, port: 8443, appProtocol: tls}, {name: tcp, port: 9000, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2-raw, namespace: shop}
spec: {selector: {app: v2}, ipFamilyPolicy: PreferDualStack, ports: [{name: tls, port: 8443, appProtocol: tls}, {name: tcp, port: 9000, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bank, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: vault}, ipFamilyPolicy: PreferDualStack, ports: [{name: tcp, port: 9000, appProtocol: tcp}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: ledger, namespace: bank}
spec:
  from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: shop}]
  to: [{group: "", kind: Service, name: ledger}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: one, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: secure}]
  hostnames: [one.example.org]
  rules: [{backendRefs: [{name: v1-raw, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: wild, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: secure}]
  hostnames: ["*.example.org"]
  rules: [{backendRefs: [{name: v2-raw, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: younger, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: secure}]
  hostnames: [one.example.org, other.example.com]
  rules: [{backendRefs: [{name: v2-raw, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: both, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: secure, port: 444}]
  rules: [{backendRefs: [{name: v2-raw, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: data, port: 9000}, {group: "", kind: Service, name: data, port: 9003}, {group: "", kind: Service, name: data, port: 80}]
  rules: [{backendRefs: [{name: v1-raw, port: 9000, weight: 3}, {name: v2-raw, port: 9000}, {name: absent, port: 9000, weight: 4}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: beyond, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: data, port: 9001}]
  rules: [{backendRefs: [{namespace: bank, name: ledger, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: stolen, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: data, port: 9002}]
  rules: [{backendRefs: [{namespace: bank, name: vault, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: zz-loser, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: data, port: 9001}]
  rules: [{backendRefs: [{name: v1-raw, port: 9000}]}]
`

// secureServer serves TLS in a pod: it answers each connection with its name and that
// which the client wanted.
func secureServer(w *rig.World, pod string) {
	w.T().Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.T().Fatal(err)
	}
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		w.T().Fatal(err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
	l := w.Listen(lab.InPod("shop", pod), "[::]:8443")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				t := tls.Server(c, cfg)
				defer t.Close() //nolint:errcheck // the answer is out
				_ = t.SetDeadline(time.Now().Add(time.Minute))
				if t.Handshake() == nil {
					_, _ = fmt.Fprintf(t, "%s for %s\n", pod, t.ConnectionState().ServerName)
				}
			}()
		}
	}()
}

// wants makes a connection of TLS for a name, and returns what the server says.
func wants(w *rig.World, to netip.AddrPort, name string, edit func(net.Conn) net.Conn) (string, error) {
	c, err := w.Dial(w.T().Context(), far, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // the answer has come
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if edit != nil {
		c = edit(c)
	}
	t := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // the server signs for itself
	b, err := io.ReadAll(t)
	if len(b) > 0 {
		err = nil // it ends with the connection
	}
	return string(b), err
}

// drip writes each byte by itself.
type drip struct{ net.Conn }

func (d drip) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := d.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// echoed makes one exchange with a server's echo port, and returns the server's name.
func echoed(w *rig.World, to netip.AddrPort) (string, error) {
	c, err := w.Dial(w.T().Context(), far, "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // the answer has come
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// TestConnectionRoutes: connections without HTTP go where TLSRoutes and TCPRoutes say, and
// nowhere else.
func TestConnectionRoutes(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: versions() + bank() + connectionRoutes})
	secureServer(world, "v1")
	secureServer(world, "v2")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := func(service string, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(w.Service("shop", service, v6), port)
		}
		secure := at("secure", 443)
		w.Eventually("the routes are in effect", func() error {
			for name, want := range map[string]string{"one.example.org": "v1", "two.example.org": "v2", "a.b.example.org": "v2", "ONE.example.org": "v1", "other.example.com": "v2"} {
				got, err := wants(w, secure, name, nil)
				if err != nil || !strings.EqualFold(got, want+" for "+name+"\n") {
					return fmt.Errorf("%s: %q, error %w", name, got, err)
				}
			}
			return nil
		})
		w.Eventually("the waypoint's log has the name and the route", func() error {
			pods, err := podsOf(w, "shop")
			if err != nil {
				return err
			}
			return contains(w.Log("pod/shop/"+pods[0]+"/"+deploy.Container), `one.example.org "TLSRoute shop/one, rule 0"`)
		})
		t.Run("a hello in many parts", func(t *testing.T) {
			if got, err := wants(w, secure, "one.example.org", func(c net.Conn) net.Conn { return drip{c} }); err != nil || got != "v1 for one.example.org\n" {
				t.Errorf("%q, error %v", got, err)
			}
		})
		t.Run("no route", func(t *testing.T) {
			for _, name := range []string{"example.org", "one.example.org.evil.com", "", "xexample.org"} {
				if got, err := wants(w, secure, name, nil); err == nil {
					t.Errorf("%q: %q", name, got)
				}
			}
			if got, err := echoed(w, secure); err == nil {
				t.Errorf("without TLS: %q", got)
			}
		})
		t.Run("TLS and others on one port", func(t *testing.T) {
			both := at("secure", 444)
			if got, err := wants(w, both, "one.example.org", nil); err != nil || got != "v1 for one.example.org\n" {
				t.Errorf("%q, error %v", got, err)
			}
			if got, err := wants(w, both, "example.com", nil); err == nil {
				t.Errorf("TLS without a route took another: %q", got)
			}
			if _, err := echoed(w, both); err != nil {
				t.Errorf("without TLS: %v", err)
			}
		})
		for _, port := range []uint16{9000, 9003} {
			t.Run(fmt.Sprint("weights on ", port), func(t *testing.T) {
				const n = 160
				answered := 0
				for range n {
					if _, err := echoed(w, at("data", port)); err == nil {
						answered++
					}
				}
				// The backend that does not exist has half of the connections: fewer than 40 or
				// more than 120 of 160 come once in a thousand million runs.
				if answered < 40 || answered > 120 {
					t.Errorf("%d of %d were answered", answered, n)
				}
			})
		}
		t.Run("behind another waypoint", func(t *testing.T) {
			if _, err := echoed(w, at("data", 9001)); err != nil {
				t.Errorf("%v", err)
			}
			r, _, err := why(w, "far.shop", at("data", 9001).String(), "--tcp")
			if err != nil || !r.Allowed || len(r.Hops) != 4 {
				t.Errorf("why: %+v, error %v", r, err)
			}
		})
		t.Run("without a grant", func(t *testing.T) {
			if got, err := echoed(w, at("data", 9002)); err == nil {
				t.Errorf("%q", got)
			}
		})
		for _, tt := range []struct {
			name string
			args []string
			want reason.Reason
		}{
			{"one.example.org", []string{secure.String(), "--sni", "one.example.org"}, reason.OK},
			{"no route", []string{secure.String(), "--sni", "example.com"}, reason.NoRoute},
			{"without TLS", []string{secure.String(), "--tcp"}, reason.NoRoute},
			{"without a grant", []string{at("data", 9002).String(), "--tcp"}, reason.NoBackend},
		} {
			r, _, err := why(w, append([]string{"far.shop"}, tt.args...)...)
			if err != nil || r.Reason != tt.want.String() {
				t.Errorf("why %s: %+v, error %v", tt.name, r, err)
			}
		}
	})
	t.Run("status", func(t *testing.T) {
		w := world.For(t)
		out, err := w.Ambit("waypoint-config routes", "waypoint.shop")
		if err != nil || contains(out, "wild", "TLS to *.example.org", "v2-raw") != nil || contains(out, "beyond", "connections without TLS", "ledger") != nil {
			t.Errorf("%s, error %v", out, err)
		}
		w.Eventually("every route has its conditions", func() error {
			out, err := w.Ambit("status")
			if err != nil {
				return err
			}
			for object, parts := range map[string][]string{
				"TLSRoute one":      {"Accepted", "True"},
				"TLSRoute younger":  {"Accepted", "TLSRoute shop/one, which is older, has one.example.org of port 443"},
				"TCPRoute zz-loser": {"Accepted", "False", "Conflicted", "TCPRoute shop/beyond, which is older, has port 9001"},
				"TCPRoute stolen":   {"ResolvedRefs", "False", "RefNotPermitted"},
				"TCPRoute split":    {"ResolvedRefs", "False", "BackendNotFound", "without effect on port 80, which is declared to carry HTTP"},
			} {
				for _, part := range parts {
					found := false
					for line := range strings.Lines(out) {
						kind, name, _ := strings.Cut(object, " ")
						if f := strings.Fields(line); len(f) > 2 && f[0] == kind && f[2] == name && strings.Contains(line, part) {
							found = true
						}
					}
					if !found {
						return errors.New(object + " has no " + part + ":\n" + out)
					}
				}
			}
			return nil
		})
	})
}
