package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

// closed reports whether a control plane serves no client.
func closed(a *app) bool {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 200 * time.Millisecond}, Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := d.Dial("tcp", a.addr().String())
	if err == nil {
		_ = conn.Close()
	}
	return err != nil
}

// waits checks that a control plane waits for the keys: it says what for, and
// serves nothing.
func (c *onCluster) waits(a *app, log *notebook, what, why string) {
	c.t.Helper()
	c.eventually("the log says what is waited for", func() bool {
		s := log.String()
		return strings.Contains(s, "waiting for the keys of the certificate authority") && strings.Contains(s, what) && strings.Contains(s, why)
	})
	c.eventually("readiness says so too", func() bool {
		code, text := readiness(a)
		return code == http.StatusInternalServerError && strings.Contains(text, what) && strings.Contains(text, why)
	})
	if !closed(a) {
		c.t.Error("xDS is served before it is known what to serve")
	}
	resp, err := http.Get("http://" + a.listeners["admin"].Addr().String() + "/debug/ca")
	if err != nil {
		c.t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		c.t.Errorf("/debug/ca without a CA: %s", resp.Status)
	}
}

// TestAPIServerAwayAtStart: a control plane that starts without the API server
// waits for it, and is then what it was before, under the same root.
func TestAPIServerAwayAtStart(t *testing.T) {
	c := newCluster(t)
	before, stop := c.launch(io.Discard)
	roots := c.serves(before)
	stop()
	c.api.Stop()
	log := &notebook{}
	a, _ := c.launch(log)
	c.waits(a, log, "Secret istio-system/istio-ca-secret", "connection refused")
	c.api.Restart()
	if now := c.serves(a); now != roots {
		t.Error("another root after a start without the API server")
	}
	if d := c.follow(a).next(); len(d.Updated) == 0 {
		t.Error("nothing is served")
	}
	if err := c.certificate(a, "ztunnel-1", "web"); err != nil {
		t.Error(err)
	}
	if s := log.String(); !strings.Contains(s, "no longer waiting for the keys") {
		t.Errorf("the log does not say that the wait is over: %s", s)
	}
}

// TestNoWayToTheAPIServer: what waiting cannot heal ends the program at once.
func TestNoWayToTheAPIServer(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("apiVersion: v1\nkind: Config\ncurrent-context: none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(dir, "missing"), broken} {
		cfg, err := parseFlags([]string{"--kubernetes", "--kubeconfig", file, "--listen", "127.0.0.1:0", "--monitor", "127.0.0.1:0", "--admin", "", "--webhook-listen", ""}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		logs, err := logging.New(io.Discard, logging.Plain, "info")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newApp(cfg, logs); err == nil || !strings.Contains(err.Error(), "find the Kubernetes API") {
			t.Errorf("with kubeconfig %s: %v", file, err)
		}
	}
}

// TestKeysOutOfReach: a Secret that cannot be read is not one that is not
// there. No root is made until it is known that there is none.
func TestKeysOutOfReach(t *testing.T) {
	for name, tt := range map[string]struct {
		secret    string
		code      int
		what, why string
	}{
		"keys, no permission":       {"istio-ca-secret", http.StatusForbidden, "Secret istio-system/istio-ca-secret", "service account needs the permission"},
		"keys, a server that fails": {"istio-ca-secret", http.StatusServiceUnavailable, "Secret istio-system/istio-ca-secret", "cannot be read or written now"},
		"a plugged-in CA perhaps":   {"cacerts", http.StatusServiceUnavailable, "Secret istio-system/cacerts", "cannot be read or written now"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			var healed atomic.Bool
			c.api.OnObject(func(verb, resource, name string) int {
				if verb != "get" || resource != "secrets" || name != tt.secret || healed.Load() {
					return 0
				}
				return tt.code
			})
			log := &notebook{}
			a, _ := c.launch(log)
			c.waits(a, log, tt.what, tt.why)
			made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio-ca-secret"}}
			if c.api.Get(made) {
				t.Error("a root was made without knowing whether there is one")
			}
			healed.Store(true)
			c.serves(a)
		})
	}
}
