package scenario

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// elsewhere is what no pod of the shop talks to.
const elsewhere = `
---
apiVersion: v1
kind: Namespace
metadata: {name: depot, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: crane, namespace: depot}
spec: {nodeName: node1, containers: [{name: shell}]}
`

// TestOnDemand: a proxy that asks for what it meets, instead of following the
// whole mesh, does the same for its pods, and knows only what they met.
func TestOnDemand(t *testing.T) {
	w := rig.Start(t, lab.Config{
		YAML: shop + elsewhere,
		Env:  map[string][]string{"ztunnel": {"XDS_ON_DEMAND=true"}},
	})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		for _, to := range []netip.AddrPort{vip, pod} {
			for name, from := range map[string]lab.Where{"near": near, "far": far} {
				if a := w.MustGet(from, to); a.Name != "web" || a.Caller != w.Pod("shop", name, v6) {
					t.Errorf("from %s to %s: %s answered and saw %s", name, to, a.Name, a.Caller)
				}
			}
			w.MustGet(stranger, to)
		}
		// Both ends know who the other one is, and which service was meant.
		for node, direction := range map[string]string{"node2": "outbound", "node1": "inbound"} {
			w.Logs(node, `direction="`+direction+`"`, `src.workload="far"`, `dst.workload="web"`,
				`src.identity="spiffe://cluster.local/ns/shop/sa/far"`, `dst.service="web.shop.svc.cluster.local"`, "dst.hbone_addr="+pod.String())
		}
		// Not in the mesh, and not unknown either.
		w.Logs("node1", `direction="inbound"`, "src.addr="+map[bool]string{true: "["}[v6]+w.Pod("street", "stranger", v6).String(), `src.workload="stranger"`)
	})
	d, err := w.Dump("node2")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, k := range d.Workloads {
		names = append(names, k.Namespace+"/"+k.Name)
	}
	slices.Sort(names)
	if !slices.Contains(names, "shop/web") || slices.Contains(names, "depot/crane") {
		t.Errorf("node2 knows %v", names)
	}

	// What was met is followed: policies, endpoints, leaving.
	to := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	w.MustApply(rig.PolicyObject("shop", "no-far", "DENY", `rules: [{from: [{source: {principals: ["cluster.local/ns/shop/sa/far"]}}]}]`))
	w.BecomesRefused(far, to)
	w.MustDelete("authorizationpolicy", "shop", "no-far")
	w.BecomesAnswered(far, to)
	w.MustApply(rig.ServerObject("shop", "web2", "node2", "app: web", "-first", ":9100"))
	w.Eventually("the new endpoint is used", func() error {
		if n := w.Answers(far, to, 20); n["web2"] == 0 {
			return fmt.Errorf("answers: %v", n)
		}
		return nil
	})
	w.MustDelete("pod", "shop", "web2")
	w.Eventually("the endpoint is not used any more", func() error {
		if n := w.Answers(far, to, 20); n["web"] != 20 {
			return fmt.Errorf("answers: %v", n)
		}
		return nil
	})
	// Without the control plane nobody says who is at a new address, and
	// plaintext may be wrong; what is known works.
	if err := w.Stop(t.Context(), lab.Ambitd, lab.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.Refused(far, netip.AddrPortFrom(w.Pod("depot", "crane", false), 8080))
	w.Logs("node2", `direction="outbound"`, `reason="UNKNOWN_DESTINATION"`)
	w.MustGet(far, to)
}
