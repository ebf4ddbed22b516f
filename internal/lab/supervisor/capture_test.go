package supervisor

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
)

// TestCapture: without a mesh, an eavesdropper between the nodes reads all.
func TestCapture(t *testing.T) {
	l := startLab(t, lab.Config{Nodes: 2, YAML: demoYAML()})
	ctx := t.Context()
	// Pods on the other node than the client.
	yaml := "apiVersion: v1\nkind: Pod\nmetadata: {name: far, namespace: shop}\nspec: {nodeName: node1, containers: [{name: a, command: [" + echoPath + ", server], readinessProbe: {tcpSocket: {port: 9000}}}]}"
	if err := l.Apply(ctx, yaml); err != nil {
		t.Fatal(err)
	}
	st, err := l.WaitReady(ctx)
	if err != nil {
		t.Fatal(err)
	}
	far, _ := st.Pod("shop", "far")
	client, _ := st.Pod("shop", "client")
	c, err := l.Capture(ctx, "very-secret")
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range far.IPs {
		if _, err := l.Run(ctx, lab.InPod("shop", "client"), echoPath, "get", "-url", "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String()+"/very-secret"); err != nil {
			t.Fatal(err)
		}
	}
	r := c.Stop()
	flows := r.Between(addrs(client), addrs(far))
	if len(flows) != 2 || r.Dropped != 0 {
		t.Fatalf("report: %+v", r)
	}
	for _, f := range flows {
		// The request, and the answer that repeats its path.
		if f.Kind != trace.Plaintext || f.Marks != 2 || f.Server.Port() != 8080 {
			t.Errorf("flow: %+v", f)
		}
	}
}

func addrs(p lab.PodStatus) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.IPs {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}
