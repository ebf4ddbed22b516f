package scenario

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestExternalAuthEndsConnections: a connection without HTTP ends when a route comes that
// has the requests of its port authorized: otherwise it would carry on what none is asked
// about. Those at a port that declares TCP, and of other services, stay.
func TestExternalAuthEndsConnections(t *testing.T) {
	yaml := strings.Replace(authorized(), ", appProtocol: http}]}", "}, {name: open, port: 81, targetPort: 8090}, {name: raw, port: 82, targetPort: 8090, appProtocol: tcp}]}", 1)
	w := rig.Start(t, lab.Config{YAML: yaml + granted + `
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: api}, ipFamilyPolicy: PreferDualStack, ports: [{name: open, port: 81, targetPort: 8090}]}
`})
	serveAPI(w)
	a := w.Authorizer(lab.InPod("auth", "authorizer"))
	a.Answer(nil, nil)
	l := w.Listen(lab.InPod("shop", "api"), ":8090")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		api, other := w.Service("shop", "api", v6), w.Service("shop", "other", v6)
		// echoes reports whether a connection carries bytes there and back.
		echoes := func(c net.Conn) error {
			const text = "\x01\x02hello"
			if _, err := io.WriteString(c, text); err != nil {
				return err
			}
			b := make([]byte, len(text))
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
				return fmt.Errorf("%q %w", b, err)
			}
			return nil
		}
		open := func(to netip.Addr, port uint16) (c net.Conn) {
			t.Helper()
			w.Eventually(fmt.Sprintf("a connection to port %d", port), func() (err error) {
				if c, err = w.Dial(t.Context(), far, "tcp", netip.AddrPortFrom(to, port).String()); err == nil {
					if err = echoes(c); err != nil {
						_ = c.Close()
					}
				}
				return err
			})
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		asked, declared, others := open(api, 81), open(api, 82), open(other, 81)
		w.MustApply(strings.ReplaceAll(asking(askAny), "path: {value: /private}", "path: {value: /elsewhere}"))
		w.Eventually("the connection ends", func() error {
			if err := echoes(asked); err == nil {
				return errors.New("it carries on")
			}
			return nil
		})
		for port, c := range map[string]net.Conn{"82, which declares TCP": declared, "81 of another service": others} {
			if err := echoes(c); err != nil {
				t.Errorf("the connection to port %s ended: %v", port, err)
			}
		}
		if c, err := w.Dial(t.Context(), far, "tcp", netip.AddrPortFrom(api, 81).String()); err == nil {
			if err := echoes(c); err == nil {
				t.Error("a new connection is accepted")
			}
			_ = c.Close()
		}
		// A change of the route that is no new question ends nothing.
		w.MustApply(asking(askAny))
		w.MustDelete("HTTPRoute", "shop", "ask")
		again := open(api, 81)
		for _, c := range []net.Conn{again, declared, others} {
			if err := echoes(c); err != nil {
				t.Error(err)
			}
		}
	})
}
