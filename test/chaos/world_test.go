// Package chaos ends the programs of the mesh one at a time, while traffic
// runs, and damages what they rely on. Each test says what must go on without
// one failed request, what must fail closed, and that recovery needs no hand.
package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// rate is of each load, in requests per second: enough that a gap of 10 ms is
// seen, little enough for two cores that other tests use as well. The client
// opens a new connection every 20 requests.
const rate = 150

// secret is what a capture looks for between the nodes.
const secret = "nobody-may-read-this"

// town is where faults happen.
const town = rig.Shop

const (
	server1 = "ztunnel/node1" // where web is
	server2 = "ztunnel/node2" // where far is
	agent2  = "ambit-cni/node2"
)

var near, far, stranger = rig.Near, rig.Far, rig.Stranger

// latePod is a client on node2 that comes later, with an identity of its own.
func latePod(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: shop}
spec: {nodeName: node2, serviceAccountName: %s, containers: [{name: shell}]}
`, name, name)
}

// deny refuses an account of the shop at web.
func deny(account string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-%s, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/%s]}}]
`, account, account)
}

// http and echo are ways to web.
func http(w *rig.World, v6 bool) netip.AddrPort {
	return netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
}

func echo(w *rig.World, v6 bool) netip.AddrPort {
	return netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
}

// traffic is what must not notice: requests from both nodes at a constant
// rate, and connections that live through everything.
type traffic struct {
	w     *rig.World
	loads []*rig.Load
	held  map[string]*rig.Conn
}

func startTraffic(w *rig.World) *traffic {
	w.T().Helper()
	t := &traffic{w: w, held: map[string]*rig.Conn{}}
	t.loads = []*rig.Load{w.StartLoad(far, http(w, false), rate), w.StartLoad(near, http(w, true), rate)}
	for _, v6 := range []bool{false, true} {
		t.held[fmt.Sprintf("from far, IPv6=%v", v6)] = w.MustHold(far, echo(w, v6))
		t.held[fmt.Sprintf("from near, IPv6=%v", v6)] = w.MustHold(near, echo(w, v6))
	}
	return t
}

// alive makes sure that the connections of before are still in use.
func (t *traffic) alive(when string) {
	t.w.T().Helper()
	for name, c := range t.held {
		if err := c.Ping(); err != nil {
			t.w.T().Errorf("%s: the connection %s: %v", when, name, err)
		}
	}
}

// pass lets some time go by, measured in what the clients report.
func (t *traffic) pass(seconds int) {
	t.w.T().Helper()
	for _, l := range t.loads {
		l.Seconds(seconds)
	}
}

// unharmed ends the traffic, of which nothing may have failed.
func (t *traffic) unharmed() {
	t.w.T().Helper()
	t.alive("at the end")
	for _, l := range t.loads {
		r := l.Clean()
		t.w.T().Logf("%d requests, %d failed", r.Sent, r.Failed)
	}
	for _, c := range t.held {
		_ = c.Close()
	}
}

// stop takes a component down and keeps it there.
func stop(w *rig.World, component string) {
	w.T().Helper()
	if err := w.Stop(w.T().Context(), component, lab.SIGKILL); err != nil {
		w.T().Fatal(err)
	}
}

// resume lets the supervisor start it again.
func resume(w *rig.World, component string) {
	w.T().Helper()
	if err := w.Continue(w.T().Context(), component); err != nil {
		w.T().Fatal(err)
	}
}

// kill ends a component and waits until the supervisor has brought it back.
func kill(w *rig.World, component string) {
	w.T().Helper()
	before := pid(w, component)
	if err := w.Kill(w.T().Context(), component, lab.SIGKILL); err != nil {
		w.T().Fatal(err)
	}
	w.Eventually(component+" is back by itself", func() error {
		s, err := w.Status(w.T().Context())
		if err != nil {
			return err
		}
		if c, _ := s.Component(component); c.PID == before || !c.Ready {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

func pid(w *rig.World, component string) int {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	c, _ := s.Component(component)
	return c.PID
}

// connected waits until both proxies follow ambitd and have all it has for
// them.
func connected(w *rig.World) {
	w.T().Helper()
	w.Eventually("both proxies follow ambitd", func() error {
		b, err := w.Admin(w.T().Context(), lab.Ambitd, admin.PathFollowers)
		if err != nil {
			return err
		}
		var clients []admin.Follower
		if err := json.Unmarshal(b, &clients); err != nil {
			return err
		}
		if len(clients) != 2 {
			return fmt.Errorf("%d clients", len(clients))
		}
		for _, c := range clients {
			if len(c.Detail) == 0 {
				return fmt.Errorf("nothing sent yet: %s", b)
			}
			for _, d := range c.Detail {
				if !d.Synced {
					return fmt.Errorf("not in sync: %s", b)
				}
			}
		}
		return nil
	})
}

// unreadable makes sure that between two pods nothing of an application was
// seen on the links of the nodes.
func unreadable(w *rig.World, r trace.Report, a, b string) {
	w.T().Helper()
	if r.Dropped > 0 {
		w.T().Fatalf("the capture is incomplete: %d frames lost", r.Dropped)
	}
	addrs := func(pod string) []netip.Addr {
		return []netip.Addr{w.Pod("shop", pod, false), w.Pod("shop", pod, true)}
	}
	for _, f := range r.Between(addrs(a), addrs(b)) {
		if f.Plaintext || f.Marks > 0 {
			w.T().Errorf("on the link between the nodes: %s to %s, %s: %s", f.Client, f.Server, f.Kind, f.Excerpt)
		}
	}
}

// capture begins to look for plaintext.
func capture(w *rig.World) *lab.Capture {
	w.T().Helper()
	c, err := w.Capture(w.T().Context(), secret)
	if err != nil {
		w.T().Fatal(err)
	}
	return c
}

// tell makes a request that carries the secret.
func tell(w *rig.World, from lab.Where, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(w.T().Context(), callTimeout)
	defer cancel()
	_, err := w.Lab.Get(ctx, from, "http://"+to.String()+"/"+secret)
	return err
}

// becomesDenied waits until requests from a pod are refused.
func becomesDenied(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s is refused", from), func() error {
		if tell(w, from, to) == nil {
			return fmt.Errorf("still answered")
		}
		return nil
	})
}

// becomesServed waits until requests from a pod are answered.
func becomesServed(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	w.Eventually(fmt.Sprintf("%s is served", from), func() error { return tell(w, from, to) })
}

// certificates are the serial numbers of what a node's proxy holds, by
// identity.
func certificates(w *rig.World, node string) map[string]string {
	w.T().Helper()
	dump, err := w.Dump(node)
	if err != nil {
		w.T().Fatal(err)
	}
	out := map[string]string{}
	for _, c := range dump.Certificates {
		if len(c.CertChain) > 0 {
			out[c.Identity] = c.CertChain[0].SerialNumber
		}
	}
	if !strings.Contains(fmt.Sprint(out), "spiffe://") {
		w.T().Fatalf("no certificates in the dump of %s", node)
	}
	return out
}

// received is how many bytes a node's proxy got from ambitd, by type.
func received(w *rig.World, node string) map[string]float64 {
	w.T().Helper()
	out := map[string]float64{}
	for _, s := range w.Metrics(node, "istio_xds_message_bytes_total") {
		out[fmt.Sprint(s.Labels)] = s.Value
	}
	if len(out) == 0 {
		w.T().Fatalf("%s counts no bytes of xDS", node)
	}
	return out
}

func rootOf(w *rig.World) string {
	w.T().Helper()
	b, err := os.ReadFile(filepath.Join(w.StateDir(), "ambitd", "root-cert.pem"))
	if err != nil {
		w.T().Fatal(err)
	}
	return string(b)
}

func contains(s string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return fmt.Errorf("no %q in %s", p, s)
		}
	}
	return nil
}

// runs waits until the program of a pod of the shop runs, captured or not.
func runs(w *rig.World, name string) lab.Where {
	w.T().Helper()
	ctx, cancel := context.WithTimeout(w.T().Context(), 20*time.Second)
	defer cancel()
	if _, err := w.Wait(ctx, func(s *lab.Status) bool { p, _ := s.Pod("shop", name); return len(p.PIDs) > 0 }); err != nil {
		w.T().Fatalf("the program of %s does not start: %v", name, err)
	}
	return lab.InPod("shop", name)
}

// gone waits until nothing redirects in a pod any more.
func gone(w *rig.World, ns *netns.NS) {
	w.T().Helper()
	w.Eventually("the rules are taken away", func() error {
		there, err := nft.Present(ns)
		if err == nil && there {
			err = errors.New("they are there")
		}
		return err
	})
}
