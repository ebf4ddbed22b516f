package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// captures sets whether the look-ups of a pod are captured.
func captures(yes string) kit.Option {
	return func(p *corev1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[wellknown.AnnotationDNSCapture] = yes
	}
}

// refusedFor waits for a line of the log of a node's proxy that refuses a pod, with texts.
func refusedFor(t *testing.T, node, pod string, since time.Time, texts ...string) {
	t.Helper()
	texts = append(texts, `src.workload="`+pod+`"`, `reason="EGRESS_DENIED"`)
	kit.Eventually(t, fmt.Sprintf("the log on %s has %q", node, texts), func(ctx context.Context) error {
		proxy, err := mesh.ZtunnelOn(ctx, node)
		if err != nil {
			return err
		}
		log, err := mesh.Logs(ctx, kit.SystemNamespace, proxy, "", since)
		if err != nil {
			return err
		}
		for line := range strings.Lines(log) {
			found := true
			for _, text := range texts {
				found = found && strings.Contains(line, text)
			}
			if found {
				return nil
			}
		}
		return fmt.Errorf("no line of %d bytes", len(log))
	})
}

// TestEgressHosts: a pod whose policy allows a host reaches it once the cluster's name server
// has given it the host's address, by HTTP and by TLS that names the host. Its address without a
// look-up, another name in TLS, and pods without captured look-ups are refused.
func TestEgressHosts(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "hosts", kit.Ambient())
	host := outsider(t, near, "18083", "-tcp", ":19003", "-first", ":19103", "-tls", ":18443")
	name := lookedUpName(host, host.Status.HostIP)
	byAddress, byName := "http://"+net.JoinHostPort(host.Status.HostIP, "18083")+"/", "http://"+name+":18083/"
	n.Pod("client", kit.OnNode(far), captures("true"))
	n.Pod("blind", kit.OnNode(far), captures("false"))
	for _, pod := range []string{"client", "blind"} {
		n.MustGet(pod, byAddress)
	}
	since := time.Now()
	n.MustApply(`
apiVersion: ambit.mesh/v1alpha1
kind: EgressPolicy
metadata: {name: partner}
spec: {to: [{hosts: ["` + name + `"], ports: [18083, 18443]}]}
`)
	for _, pod := range []string{"client", "blind"} {
		n.MustRefuse(pod, byAddress)
	}
	refusedFor(t, far, "client", since, "dst.addr="+net.JoinHostPort(host.Status.HostIP, "18083"), n.Name+"/partner")
	n.MustGet("client", byName)
	get := func(args ...string) error {
		out, err := mesh.Exec(t.Context(), n.Name, "client", append([]string{"/echo", "get"}, args...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := get("-insecure", "-url", "https://"+name+":18443/"); err != nil {
		t.Errorf("TLS that names the host: %v", err)
	}
	since = time.Now()
	if err := get("-insecure", "-sni", "evil.example", "-url", "https://"+name+":18443/"); err == nil {
		t.Error("TLS with another name is answered")
	}
	refusedFor(t, far, "client", since, "evil.example")
	since = time.Now()
	if err := get("-url", "http://"+name+":19103/"); err == nil {
		t.Error("another port is answered")
	}
	refusedFor(t, far, "client", since, "dst.addr="+net.JoinHostPort(host.Status.HostIP, "19103"))
	// Without the capture no answer is known.
	since = time.Now()
	n.MustRefuse("blind", byName)
	refusedFor(t, far, "blind", since, "capture of look-ups")
	out, err := mesh.Ambit(t.Context(), "analyze", "-n", n.Name)
	if !strings.Contains(out, "AMB0042") {
		t.Errorf("ambit analyze does not warn of pods without captured look-ups: %s, %v", out, err)
	}
}

// TestEgressUDP: with udp: Refuse, the programs of a pod send no UDP, so that a pod without
// captured look-ups finds no names, from its start on, also while no agent runs. Captured
// look-ups and TCP pass. Without the policy, everything does again.
func TestEgressUDP(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "udp", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Pod("captured", kit.OnNode(far), captures("true"))
	n.Pod("blind", kit.OnNode(far), captures("false"))
	byName, byAddress := n.URL("server"), "http://"+net.JoinHostPort(server.Status.PodIP, "8080")+"/"
	for _, pod := range []string{"captured", "blind"} {
		n.MustGet(pod, byName)
	}
	const policy = "{apiVersion: ambit.mesh/v1alpha1, kind: EgressPolicy, metadata: {name: udp}, spec: {to: [{}], udp: Refuse}}"
	n.MustApply(policy)
	refused := func(pod string) {
		t.Helper()
		err := n.MustRefuse(pod, byName)
		if !strings.Contains(err.Error(), "lookup") {
			t.Errorf("%s is refused otherwise than by its look-up: %v", pod, err)
		}
	}
	refused("blind")
	n.Pod("later", kit.OnNode(far), captures("false"))
	refused("later")
	n.MustGet("captured", byName)
	for _, pod := range []string{"captured", "blind", "later"} {
		n.MustGet(pod, byAddress)
	}
	mesh.Kill(t, mesh.AgentOn(t, far))
	if out, err := n.Get(t.Context(), "blind", byName); err == nil {
		t.Errorf("a look-up passes while the agent is away: %s", out)
	}
	if err := mesh.Delete(t.Context(), n.Name, policy); err != nil {
		t.Fatal(err)
	}
	for _, pod := range []string{"captured", "blind", "later"} {
		n.MustGet(pod, byName)
	}
}
