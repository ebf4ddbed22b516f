package scenario

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/rig"
)

const (
	ztunnel1, ztunnel2 = "ztunnel/node1", "ztunnel/node2"
	secret             = "my-card-number-is-4711"
)

// setAmbient labels the shop, or takes the label away.
func setAmbient(w *rig.World, on bool) {
	w.T().Helper()
	var v *string
	if on {
		ambient := "ambient"
		v = &ambient
	}
	if err := w.Label(w.T().Context(), "namespace", "", "shop", map[string]*string{"istio.io/dataplane-mode": v}); err != nil {
		w.T().Fatal(err)
	}
	w.Settled()
}

// TestEnrolment: a label puts running pods into the mesh, and takes them out,
// without one failed request; afterwards their namespaces are as before.
func TestEnrolment(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: strings.Replace(shop, "labels: {istio.io/dataplane-mode: ambient}", "labels: {}", 1)})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		before := dumps(w)
		load := w.StartLoad(far, vip, 200)
		want(t, "kinds of flows before", flows(w, far, v6), map[trace.Kind]bool{trace.Plaintext: true})

		setAmbient(w, true)
		load.Seconds(1)
		want(t, "kinds of flows in the mesh", flows(w, far, v6), map[trace.Kind]bool{trace.HBONE: true})
		for name, d := range dumps(w) {
			if d == before[name] {
				t.Errorf("the namespace of %s is the same in the mesh", name)
			}
		}

		setAmbient(w, false)
		load.Seconds(1)
		want(t, "kinds of flows afterwards", flows(w, far, v6), map[trace.Kind]bool{trace.Plaintext: true})
		load.Clean()
		w.Eventually("the namespaces are as before", func() error {
			for name, d := range dumps(w) {
				if d != before[name] {
					return fmt.Errorf("%s before:\n%s\nnow:\n%s", name, before[name], d)
				}
			}
			return nil
		})
	})
}

func dumps(w *rig.World) map[string]string {
	w.T().Helper()
	out := map[string]string{}
	for _, p := range []lab.Where{near, far, web} {
		d, err := nft.Dump(w.Netns(p))
		if err != nil {
			w.T().Fatal(err)
		}
		out[string(p)] = d
	}
	return out
}

// flows are the kinds of flows between the nodes in which new requests to web
// with the secret in them go, and whether the secret could be read in any.
func flows(w *rig.World, from lab.Where, v6 bool) map[trace.Kind]bool {
	t := w.T()
	t.Helper()
	c, err := w.Capture(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
	for range 3 {
		// The client of the load goes on meanwhile; its requests have no secret.
		w.MustRun(from, rig.Bin("echo"), "get", "-url", "http://"+to.String()+"/?"+secret)
	}
	r := c.Stop()
	if r.Dropped > 0 {
		t.Errorf("the capture lost %d frames", r.Dropped)
	}
	kinds := map[trace.Kind]bool{}
	for _, f := range r.Between([]netip.Addr{w.Pod("shop", "far", v6)}, []netip.Addr{w.Pod("shop", "web", v6)}) {
		if f.Marks > 0 {
			kinds[trace.Plaintext] = true
		}
		if f.Kind == trace.HBONE || f.Kind == trace.Opaque {
			kinds[trace.HBONE] = true
		}
	}
	return kinds
}

// TestOptOut: a pod that opts out of an enrolled namespace is left alone.
func TestOptOut(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + outlawPod})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		want(t, "caller", w.MustGet(outlaw, to).Caller, w.Pod("shop", "outlaw", v6))
		w.Logs("node1", `src.workload="outlaw"`, `dst.addr=`+to.String())
		d, err := nft.Dump(w.Netns(outlaw))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(d, nft.TableName) {
			t.Errorf("the pod's namespace is not left alone:\n%s", d)
		}
		for _, line := range w.AccessLines("node2", `src.workload="outlaw"`) {
			t.Errorf("its node's proxy carries it: %s", line)
		}
	})
}

// TestHandOver: a ztunnel is replaced by its next generation under load, and
// not one request fails, whichever side it is on.
func TestHandOver(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop, Env: map[string][]string{"ztunnel": {"CONNECTION_TERMINATION_DEADLINE=5s"}}})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		load := w.StartLoad(far, netip.AddrPortFrom(w.Service("shop", "web", v6), 80), 300)
		for _, c := range []string{ztunnel1, ztunnel2} {
			if err := w.Restart(t.Context(), c, lab.RestartGraceful); err != nil {
				t.Fatal(err)
			}
			load.Seconds(2)
		}
		load.Clean()
	})
}

// TestDrain: a ztunnel that is told to end takes nothing new in, carries what
// it has until the deadline, and then ends that, too.
func TestDrain(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop, Env: map[string][]string{"ztunnel": {"CONNECTION_TERMINATION_DEADLINE=2s"}}})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		echo := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
		from := map[string]*rig.Conn{"far": w.MustHold(far, echo), "near": w.MustHold(near, echo), "stranger": w.MustHold(stranger, echo)}
		stopped := make(chan error, 1)
		go func() { stopped <- w.Stop(t.Context(), ztunnel1, lab.SIGTERM) }()
		w.Eventually("nothing new is taken in", func() error {
			if _, err := w.Hold(far, echo); err == nil {
				return fmt.Errorf("it still is")
			}
			return nil
		})
		for name, c := range from {
			if err := c.Ping(); err != nil {
				t.Errorf("%s, before the deadline: %v", name, err)
			}
		}
		for name, c := range from {
			if c.AwaitEnd() == nil {
				t.Errorf("%s: still there after the deadline", name)
			}
		}
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		if err := w.Continue(t.Context(), ztunnel1); err != nil {
			t.Fatal(err)
		}
		w.Settled()
		for _, from := range []lab.Where{far, near, stranger} {
			w.MustHold(from, echo)
		}
	})
}

// TestServerShutdown: when the server's program ends, its connections do, and
// when it is back, new ones work.
func TestServerShutdown(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		echo := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
		held := []*rig.Conn{w.MustHold(far, echo), w.MustHold(near, echo), w.MustHold(stranger, echo)}
		w.MustRun(web, "sh", "-c", "for p in /proc/[0-9]*; do "+
			`[ "$(readlink $p/exe)" = `+rig.Bin("echo")+` ] && [ "$(readlink $p/ns/net)" = "$(readlink /proc/self/ns/net)" ] && kill -9 ${p#/proc/}; done; true`)
		for _, c := range held {
			if c.AwaitEnd() == nil {
				t.Error("a connection to a program that is gone")
			}
		}
		w.Eventually("the program is back", func() error { _, err := w.Hold(far, echo); return err })
		for _, from := range []lab.Where{near, stranger} {
			w.MustHold(from, echo)
		}
	})
}

// TestFailClosed: without its ztunnel, a pod in the mesh reaches nobody and
// nobody reaches it; nothing goes in the clear instead.
func TestFailClosed(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		w.MustGet(far, vip)
		w.MustGet(stranger, vip)
		for stopped, victims := range map[string][]lab.Where{
			ztunnel2: {far},                 // its own client
			ztunnel1: {far, near, stranger}, // the server's
		} {
			if err := w.Stop(t.Context(), stopped, lab.SIGKILL); err != nil {
				t.Fatal(err)
			}
			c, err := w.Capture(t.Context(), secret)
			if err != nil {
				t.Fatal(err)
			}
			for _, from := range victims {
				for _, to := range []netip.AddrPort{pod, vip} {
					if b, err := w.Lab.Get(t.Context(), from, "http://"+to.String()+"/?"+secret); err == nil {
						t.Errorf("without %s, %s is answered: %s", stopped, from, b)
					}
				}
			}
			for _, f := range c.Stop().Flows {
				if f.Marks > 0 {
					t.Errorf("without %s, in the clear: %+v", stopped, f)
				}
			}
			if err := w.Continue(t.Context(), stopped); err != nil {
				t.Fatal(err)
			}
			w.Settled()
			for _, from := range victims {
				w.BecomesAnswered(from, vip)
			}
		}
	})
}

// TestBrokenFile: what cannot be read is reported with its place, and what it
// said before stays in force.
func TestBrokenFile(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		enforce(w, rig.PolicyObject("shop", "no-far", "DENY", `rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/far]}}]}]`), "node1", "no-far")
		w.BecomesRefused(far, to)
		path := filepath.Join(w.StateDir(), "config", "authorizationpolicy.shop.no-far.yaml")
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ name, text, says string }{
			{"not YAML", "apiVersion: v1\nkind: [\n", ":"},
			{"unknown field", strings.Replace(string(good), "principals", "principles", 1), "principles"},
			{"unknown action", strings.Replace(string(good), "DENY", "DENYY", 1), "DENYY"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := world.For(t)
				write(t, path, c.text)
				w.Eventually("the file is reported", func() error {
					out := w.MustRun(lab.LAN, rig.Bin("ambit"), "status", "--address", "127.0.0.1:8080")
					_, problems, _ := strings.Cut(out, "Problems")
					return contains(problems, path, c.says)
				})
				w.Refused(far, to)
				w.MustGet(near, to)
				var s []struct{ Kind, Name string }
				b, err := w.Admin(t.Context(), lab.Ambitd, "/debug/problems")
				if err == nil {
					err = json.Unmarshal(b, &s)
				}
				if err != nil || len(s) == 0 {
					t.Errorf("/debug/problems: %s, %v", b, err)
				}
				write(t, path, string(good))
				w.Eventually("nothing is reported any more", func() error {
					if out := w.MustRun(lab.LAN, rig.Bin("ambit"), "status", "--address", "127.0.0.1:8080"); strings.Contains(out, "Problems") {
						return fmt.Errorf("%s", out)
					}
					return nil
				})
				w.Refused(far, to)
			})
		}
		w.MustDelete("AuthorizationPolicy", "shop", "no-far")
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// TestCertificates: the certificates of a node's pods are there before the
// first connection, and nobody else's are.
func TestCertificates(t *testing.T) {
	t.Parallel() // it waits, mostly
	w := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "short-lived", "node1", "")})
	w.Eventually("certificates of the pods of each node", func() error {
		for node, ids := range map[string][]string{
			"node1": {"near", "short-lived", "web"},
			"node2": {"far"},
		} {
			if got := certificates(w, node); strings.Join(got, " ") != strings.Join(ids, " ") {
				return fmt.Errorf("%s has certificates of %v, and not %v", node, got, ids)
			}
		}
		return nil
	})
	w.MustDelete("Pod", "shop", "short-lived")
	// They are remembered for a while, for the pod's successor.
	deadline := time.Now().Add(2 * time.Minute)
	for strings.Join(certificates(w, "node1"), " ") != "near web" {
		if time.Now().After(deadline) {
			t.Fatalf("node1 has certificates of %v", certificates(w, "node1"))
		}
		time.Sleep(time.Second)
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		world := w.For(t)
		world.MustGet(near, netip.AddrPortFrom(world.Pod("shop", "web", v6), 8080))
	})
}
