package interop

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// policy is one for the server of a node.
func policy(name, node, action, rules string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: shop}
spec: {action: %s, selector: {matchLabels: {app: server-%s}}, rules: [%s]}
`, name, action, node, rules)
}

func fromAccount(name string) string {
	return fmt.Sprintf(`{from: [{source: {principals: [cluster.local/ns/shop/sa/%s]}}]}`, name)
}

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
`

// TestPolicy: either side enforces what ambitd says about clients of the
// other, also on connections that are open.
func TestPolicy(t *testing.T) {
	world := start(t)
	for _, x := range append([]way{{peer, peer2}}, across...) {
		t.Run(strings.ReplaceAll(x.String(), " ", "_"), func(t *testing.T) {
			rig.Families(t, func(t *testing.T, v6 bool) { enforced(t, world.For(t), x, v6) })
		})
	}

	t.Run("STRICT", func(t *testing.T) {
		w := world.For(t)
		stranger := lab.InPod("street", "stranger")
		for _, node := range []string{ours, peer2} {
			for _, to := range (way{peer, node}).targets(w, false) {
				served(w, stranger, to.http)
			}
		}
		w.MustApply(strict)
		for _, node := range []string{ours, peer2} {
			for _, v6 := range []bool{false, true} {
				x := way{peer, node}
				for _, to := range x.targets(w, v6) {
					refused(w, stranger, to.http)
					served(w, x.client(), to.http)
				}
			}
		}
		w.MustDelete("PeerAuthentication", "shop", "strict")
		served(w, stranger, netip.AddrPortFrom(w.Pod("shop", "server-"+ours, false), 8080))
	})
}

// enforced goes through DENY and ALLOW for one client and one server.
func enforced(t *testing.T, w *rig.World, x way, v6 bool) {
	to := x.targets(w, v6)
	other := lab.InPod("shop", "client-"+x.to) // on the server's own node

	// What is denied is closed, and nothing else. The policy is there before,
	// and changes: to the peer, a connection has the policies of its beginning.
	change(w, x, policy("deny", x.to, "DENY", fromAccount("client-of-nobody")))
	held, kept := w.MustHold(x.client(), to[0].echo), w.MustHold(other, to[0].echo)
	w.MustApply(policy("deny", x.to, "DENY", fromAccount("client-"+x.from)))
	ends(w, held)
	for _, a := range to {
		refused(w, x.client(), a.http)
		served(w, other, a.http)
	}
	if err := kept.Ping(); err != nil {
		t.Errorf("a policy ended a connection that it does not deny: %v", err)
	}
	logged(w, x.to, `direction="inbound"`, fmt.Sprintf(`src.identity=%q`, account("client-"+x.from)), "error=", "shop/deny")
	w.MustDelete("AuthorizationPolicy", "shop", "deny")
	served(w, x.client(), to[0].http)

	change(w, x, policy("allow", x.to, "ALLOW", fromAccount("client-"+x.from)))
	held = w.MustHold(x.client(), to[1].echo)
	for _, a := range to {
		refused(w, other, a.http)
	}
	w.MustApply(policy("allow", x.to, "ALLOW", fromAccount("client-"+x.to)))
	ends(w, held)
	for _, a := range to {
		refused(w, x.client(), a.http)
		served(w, other, a.http)
	}
	w.MustDelete("AuthorizationPolicy", "shop", "allow")
	served(w, x.client(), to[0].http)

	if x.to == ours { // a policy that is new, too
		held = w.MustHold(x.client(), to[1].echo)
		w.MustApply(policy("new", x.to, "DENY", fromAccount("client-"+x.from)))
		ends(w, held)
		w.MustDelete("AuthorizationPolicy", "shop", "new")
		served(w, x.client(), to[0].http)
	}
}

// change applies a policy and waits until the server's node has the clients to which it
// belongs.
func change(w *rig.World, x way, yaml string) {
	w.T().Helper()
	w.MustApply(yaml)
	w.Eventually("the server has its policy", func() error {
		d, err := w.Dump(x.to)
		if err != nil {
			return err
		}
		for _, wl := range d.Workloads {
			if wl.Name == "server-"+x.to && len(wl.Policies) > 0 {
				return nil
			}
		}
		return errors.New("none")
	})
}

func ends(w *rig.World, c *rig.Conn) {
	w.T().Helper()
	if c.AwaitEnd() == nil {
		w.T().Error("a connection lives on that a policy denies")
	}
}

// TestEnrolment: pods on the peer's node leave and join while it runs.
func TestEnrolment(t *testing.T) {
	world := start(t)
	w := world.For(t)
	none := wellknown.DataplaneModeNone
	set := func(value *string) {
		for _, pod := range []string{"server-" + peer, "client-" + peer} {
			if err := w.Label(t.Context(), "pod", "shop", pod, map[string]*string{wellknown.LabelDataplaneMode: value}); err != nil {
				t.Fatal(err)
			}
		}
		w.Settled()
	}
	in, out := way{ours, peer}, way{peer, ours}
	check := func(plaintext bool) {
		t.Helper()
		for _, x := range []way{in, out} {
			for _, v6 := range []bool{false, true} {
				c, err := w.Capture(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				for _, to := range x.targets(w, v6) {
					if a := w.MustGet(x.client(), to.http); a.Caller != w.Pod("shop", "client-"+x.from, v6) {
						t.Errorf("%s: the server saw %s", x, a.Caller)
					}
				}
				a, b := w.Pod("shop", "client-"+x.from, v6), w.Pod("shop", "server-"+x.to, v6)
				flows := c.Stop().Between([]netip.Addr{a}, []netip.Addr{b})
				if len(flows) == 0 {
					t.Errorf("%s: nothing was seen between the nodes", x)
				}
				for _, f := range flows {
					if f.Plaintext != plaintext {
						t.Errorf("%s: %s to %s is %s", x, f.Client, f.Server, f.Kind)
					}
				}
			}
		}
	}
	check(false)
	load := w.StartLoad(in.client(), in.targets(w, false)[1].http, 100)
	for range 2 {
		set(&none)
		load.Seconds(1)
		set(nil)
		load.Seconds(1)
	}
	load.Clean()
	set(&none)
	check(true)
	set(nil)
	check(false)
}

// TestCommandLine: `ambit ztunnel-config` reads the peer's dump like ours.
func TestCommandLine(t *testing.T) {
	w := start(t)
	w.MustApply(policy("nobody", peer, "DENY", fromAccount("client-of-nobody")))
	for _, x := range across {
		w.MustHold(x.client(), x.targets(w, false)[1].echo)
	}
	pod := w.Pod("shop", "server-"+peer, false).String()
	vip := w.Service("shop", "server-"+peer, false).String()
	for _, node := range []string{ours, peer} {
		for _, want := range []struct {
			view   string
			header []string
			row    string // of what must be there, as a pattern
		}{
			{"workload", []string{"NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"}, `^shop +server-node2 +` + pod + ` +node2 +None +HBONE$`},
			{"service", []string{"NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"}, `^shop +server-node2 +` + vip + `\S* +None +1/1$`},
			{"policy", []string{"NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"}, `^shop +nobody +Deny +WorkloadSelector$`},
			{"certificate", []string{"CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"}, `^` + account("client-"+node) + ` +Leaf +Available +true +\S+ +\S+Z +\S+Z$`},
			{"connections", []string{"WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"}, `^client-` + node + `\S* +Outbound +.*HBONE`},
		} {
			t.Run(node+" "+want.view, func(t *testing.T) {
				out, err := cli(w, want.view, "--node", node)
				if err != nil {
					t.Fatal(err)
				}
				lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
				if got := regexp.MustCompile(` {2,}|\b | \b`).ReplaceAllString(lines[0], " "); strings.Join(strings.Fields(got), " ") != strings.Join(want.header, " ") {
					t.Errorf("columns %q, want %q", lines[0], want.header)
				}
				row := regexp.MustCompile(want.row)
				if !slices.ContainsFunc(lines[1:], func(l string) bool { return row.MatchString(strings.TrimRight(l, " ")) }) {
					t.Errorf("no row like %s in\n%s", row, out)
				}
			})
		}
	}
}
