package scenario

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/sticky"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// sessions is a route that keeps the requests of a client on one endpoint: by a cookie, a
// header, a cookie for a time, and not at all.
const sessions = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: sessions, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /cookie}}]
    sessionPersistence: {sessionName: basket}
    backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /header}}]
    sessionPersistence: {type: Header, sessionName: x-basket}
    backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /while}}]
    sessionPersistence: {sessionName: basket, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
    backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]
`

// sessionAnswer is an answer to a request of a session.
type sessionAnswer struct {
	server, cookie, header string
}

// inSession makes a request from far with what the client has been given.
func inSession(w *rig.World, to netip.AddrPort, path, cookie, header string) (a sessionAnswer, err error) {
	head := "GET " + path + " HTTP/1.1\nHost: front"
	if cookie != "" {
		head += "\nCookie: other=1; " + cookie
	}
	if header != "" {
		head += "\nX-Basket: " + header
	}
	c, err := w.Dial(w.T().Context(), far, "tcp", to.String())
	if err != nil {
		return a, err
	}
	defer c.Close() //nolint:errcheck // the answer has come
	resp, body, err := converse(c, head)
	if err != nil {
		return a, err
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", resp.Status, body)
	}
	a.server, _, _ = strings.Cut(body, " ")
	a.cookie, a.header = resp.Header.Get("Set-Cookie"), resp.Header.Get("X-Basket")
	return a, nil
}

// TestSessions: a client that sends what it was given stays with its endpoint, also when
// another proxy of the waypoint reads it. What it makes up leads nowhere else.
func TestSessions(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: versions() + sessions +
		rig.ServerObject("shop", "v1b", "node2", "app: v1, tier: server") + rig.ServerObject("shop", "alone", "node2", "app: alone")})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		front := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		var first sessionAnswer
		w.Eventually("a session begins", func() (err error) {
			if first, err = inSession(w, front, "/cookie/a", "", ""); err == nil && first.cookie == "" {
				err = errors.New("there is no cookie")
			}
			return err
		})
		pair, attributes, _ := strings.Cut(first.cookie, ";")
		if !strings.HasPrefix(pair, "basket=") || attributes != " Path=/cookie; HttpOnly" || strings.Contains(first.cookie, "10.") || strings.Contains(first.cookie, "v1") {
			t.Errorf("cookie %q", first.cookie)
		}
		others := map[string]bool{}
		for range 60 {
			a, err := inSession(w, front, "/cookie/b", pair, "")
			if err != nil || a.server != first.server || a.cookie != "" {
				t.Fatalf("%+v, error %v; the session is with %s", a, err, first.server)
			}
			a, err = inSession(w, front, "/", pair, "") // a rule without sessions
			if err != nil || a.cookie != "" {
				t.Fatalf("%+v, error %v", a, err)
			}
			others[a.server] = true
		}
		// 60 draws of one of 3 endpoints miss one once in a thousand million.
		if len(others) < 3 {
			t.Errorf("without sessions %v answer", others)
		}
		h, err := inSession(w, front, "/header", "", "")
		if err != nil || h.header == "" {
			t.Fatalf("%+v, error %v", h, err)
		}
		for range 30 {
			a, err := inSession(w, front, "/header", "", h.header)
			if err != nil || a.server != h.server || a.header != h.header {
				t.Fatalf("%+v, error %v; the session is with %s", a, err, h.server)
			}
		}
		if a, err := inSession(w, front, "/while", "", ""); err != nil || !strings.HasSuffix(a.cookie, "; Path=/while; HttpOnly; Max-Age=3600") {
			t.Errorf("%+v, error %v", a, err)
		}
		// A value for an endpoint of another service, and values that mean nothing.
		raw := [16]byte{0x70}
		id := sticky.IDOf("shop/sessions", "shop/v1.shop.svc.cluster.local:80", "Kubernetes//Pod/shop/alone")
		copy(raw[4:], id[:])
		for _, forged := range []string{
			base64.RawURLEncoding.EncodeToString(raw[:]), strings.Repeat("A", 22), strings.Repeat("A", 4000), "10.0.0.1:8080", "", "\x7f", "%00", "\"x\"",
		} {
			for _, path := range []string{"/cookie", "/header"} {
				a, err := inSession(w, front, path, "basket="+forged, forged)
				if err == nil && (a.server == "alone" || a.cookie == "" && path == "/cookie") {
					t.Errorf("%q: %+v", forged, a)
				}
			}
		}
		if out, err := w.Ambit("waypoint-config routes", "waypoint.shop"); err != nil || contains(out, "sessions", "session by cookie basket, 1h0m0s") != nil {
			t.Errorf("%s, error %v", out, err)
		}
		r, _, err := why(w, "far.shop", front.String(), "--path", "/cookie", "--header", "cookie="+pair)
		if err != nil || !r.Allowed || !strings.Contains(fmt.Sprint(r.Hops), "in a session") {
			t.Errorf("why: %+v, error %v", r, err)
		}
		// Another proxy: it has seen nothing of the session.
		stop := kill(w)
		w.Eventually("the waypoint is gone", func() error {
			if a, err := inSession(w, front, "/cookie", pair, ""); err == nil {
				return fmt.Errorf("%+v", a)
			}
			return nil
		})
		stop()
		w.Eventually("another proxy keeps the session", func() error {
			a, err := inSession(w, front, "/cookie", pair, "")
			if err == nil && a.server != first.server {
				t.Errorf("the session has moved from %s to %s", first.server, a.server)
			}
			return err
		})
	})
	// The endpoint goes: so does the session, to another one.
	w := world.For(t)
	front := netip.AddrPortFrom(w.Service("shop", "front", false), 80)
	var a sessionAnswer
	w.Eventually("a session with v1b", func() (err error) {
		if a, err = inSession(w, front, "/cookie", "", ""); err == nil && a.server != "v1b" {
			err = fmt.Errorf("it is with %s", a.server)
		}
		return err
	})
	pair, _, _ := strings.Cut(a.cookie, ";")
	w.MustDelete("Pod", "shop", "v1b")
	w.Eventually("the session moves", func() error {
		b, err := inSession(w, front, "/cookie", pair, "")
		if err == nil && (b.server == "v1b" || b.cookie == "") {
			err = fmt.Errorf("%+v", b)
		}
		return err
	})
}
