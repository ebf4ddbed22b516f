package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// rate of requests on every way that there is load on, by the second.
const rate = 100

// A label enrols pods that run, and taking it away gives them back, while
// requests go on between all makers.
func enrolment(t *testing.T, m *mesh) {
	n := m.town(t, "enrol", nil)
	all := n.load(rate)
	n.Enrol(true)
	n.enrolled(true, loads(m)...)
	for _, x := range m.ways() {
		n.crosses(x)
	}
	for _, l := range all {
		l.Seconds(3)
	}
	n.Enrol(false)
	n.enrolled(false, loads(m)...)
	for _, l := range all {
		l.Seconds(3)
	}
	clean(t, all)
	for _, x := range m.ways() {
		n.bypasses(x)
	}
}

// bypasses makes sure that a connection is none of the mesh's.
func (n *town) bypasses(x way) {
	n.t.Helper()
	time.Sleep(time.Second) // logs are asked for by the second
	since := time.Now()
	n.MustGet(x.client(), n.url(x))
	time.Sleep(time.Second)
	for _, node := range []string{x.from, x.to} {
		log, err := n.Logs(n.t.Context(), kit.SystemNamespace, n.m.ProxyOn(n.t, node).Name, "", since)
		if err != nil {
			n.t.Fatal(err)
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, kit.SPIFFE(n.Name, x.client())) && strings.Contains(line, n.servers[x.to].Name) {
				n.t.Errorf("the proxy on %s knows of a connection outside the mesh: %s", node, line)
			}
		}
	}
}

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

func (n *town) remove(policy string) {
	n.t.Helper()
	if err := n.m.Dynamic.Resource(policies).Namespace(n.Name).Delete(n.t.Context(), policy, metav1.DeleteOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

const denyClients = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-clients}
spec:
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/$NS/sa/client-*"]}}]}]
`

const friendsOnly = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends-only}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/$NS/sa/friend"]}}]
    to: [{operation: {ports: ["8080"]}}]
`

// Every maker's proxy enforces what every control plane sends, by identity and
// port, on clients of the other maker.
func policy(t *testing.T, m *mesh) {
	n := m.town(t, "policy", kit.Ambient())
	friends := map[string]string{} // a pod on each node
	for i, node := range m.nodes {
		name := fmt.Sprintf("friend-%d", i)
		friends[node] = name
		n.Account("friend")
		n.Pod(name, kit.OnNode(node), func(p *corev1.Pod) { p.Spec.ServiceAccountName = "friend" })
	}
	everybody := func() {
		t.Helper()
		for _, x := range m.ways() {
			n.MustGet(x.client(), n.url(x))
			n.MustGet(friends[x.from], n.url(x))
		}
	}
	everybody()

	since := time.Now()
	n.MustApply(denyClients)
	for _, x := range m.ways() {
		n.MustRefuse(x.client(), n.url(x))
		n.MustGet(friends[x.from], n.url(x))
		n.Logged(n.servers[x.to], since, "explicitly denied by: "+n.Name+"/deny-clients", "/sa/"+x.client()+`"`)
	}
	n.remove("deny-clients")
	everybody()

	since = time.Now()
	n.MustApply(friendsOnly)
	for _, x := range m.ways() {
		n.MustRefuse(x.client(), n.url(x))
		n.MustGet(friends[x.from], n.url(x))
		n.Logged(n.servers[x.to], since, "allow policies exist, but none allow", "/sa/"+x.client()+`"`)
		// Another port than the policy's.
		n.MustRefuse(friends[x.from], "http://"+net.JoinHostPort(n.servers[x.to].Status.PodIP, "9000")+"/")
		n.Logged(n.servers[x.to], since, "allow policies exist, but none allow", `/sa/friend"`, ":9000")
	}
	n.remove("friends-only")
	everybody()
}

// Where mutual TLS is required, nobody gets in without it.
func strict(t *testing.T, m *mesh) {
	n := m.town(t, "strict", kit.Ambient())
	plain := m.Namespace(t, "plain", nil)
	for _, node := range m.nodes {
		plain.Pod("stranger-"+node, kit.OnNode(node))
	}
	for _, x := range m.ways() {
		plain.MustGet("stranger-"+x.from, n.url(x))
	}
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	for _, x := range m.ways() {
		plain.MustRefuse("stranger-"+x.from, n.url(x))
		n.MustGet(x.client(), n.url(x))
	}
}

// The authority gives a node's proxy certificates for the pods of its node, and
// for no others.
func certificates(t *testing.T, m *mesh) {
	n := m.town(t, "certs", kit.Ambient())
	conn := m.ControlPlaneConn(t)
	for i, node := range m.nodes {
		other := m.nodes[(i+1)%len(m.nodes)]
		t.Run(node, func(t *testing.T) {
			proxy := m.ProxyOn(t, node)
			token := m.Token(t, kit.SystemNamespace, proxy.Spec.ServiceAccountName, proxy, kit.Audience)
			mine, others := kit.SPIFFE(n.Name, "server-"+node), kit.SPIFFE(n.Name, "server-"+other)
			if b, err := kit.Certificate(t, conn, token, mine); err != nil {
				t.Errorf("for a pod of its node: %v", err)
			} else if b.Identity.String() != mine {
				t.Errorf("the certificate is for %s", b.Identity)
			}
			_, err := kit.Certificate(t, conn, token, others)
			kit.RefusedBy(t, "for a pod of another node", err)
			_, err = kit.Certificate(t, conn, token, kit.SPIFFE(n.Name, "nobody"))
			kit.RefusedBy(t, "for nobody", err)
		})
	}
}

// The command line knows every proxy, whoever made it.
func commandLine(t *testing.T, m *mesh) {
	n := m.town(t, "cli", kit.Ambient())
	for _, x := range m.ways() {
		n.crosses(x)
	}
	for _, node := range m.nodes {
		for what, want := range map[string][]string{
			"workload":    {"server-" + m.nodes[0], "server-" + m.nodes[1], "HBONE"},
			"service":     {"server-" + m.nodes[0]},
			"certificate": {kit.SPIFFE(n.Name, "server-"+node), "Available"},
		} {
			out, err := m.Ambit(t.Context(), "ztunnel-config", what, "--node", node)
			if err != nil {
				t.Error(err)
			}
			for _, text := range want {
				if !strings.Contains(out, text) {
					t.Errorf("ztunnel-config %s of %s (%s) has no %s:\n%s", what, node, m.who(node), text, out)
				}
			}
		}
	}
	out, err := m.Ambit(t.Context(), "proxy-status")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range m.nodes {
		if name := m.ProxyOn(t, node).Name; !strings.Contains(out, name) {
			t.Errorf("proxy-status has no %s:\n%s", name, out)
		}
	}
}

// The control plane is killed under load: nothing fails, and what is configured
// afterwards reaches everybody.
func controlPlaneRestarted(t *testing.T, m *mesh) {
	n := m.town(t, "restart", kit.Ambient())
	for _, x := range m.ways() {
		n.crosses(x)
	}
	all := n.load(rate)
	pods, err := m.Ambitds(t.Context())
	if err != nil || len(pods) != 1 {
		t.Fatalf("want one pod of the control plane, there are %d: %v", len(pods), err)
	}
	m.Kill(t, pods[0].Name)
	m.ControlPlane(t, 1)
	n.works("late")
	clean(t, all)
}

// works shows that configuration arrives and that new pods join the mesh.
func (n *town) works(late string) {
	n.t.Helper()
	// The API server's way to the webhook is a Service, whose new endpoint nodes
	// learn of in their own time.
	kit.Eventually(n.t, "a policy is accepted", func(ctx context.Context) error {
		return n.Apply(ctx, n.Name, strings.ReplaceAll(denyClients, "$NS", n.Name))
	})
	for _, x := range n.m.ways() {
		n.MustRefuse(x.client(), n.url(x))
	}
	n.remove("deny-clients")
	for _, x := range n.m.ways() {
		n.crosses(x)
	}
	for i, x := range n.m.ways() {
		name := fmt.Sprintf("%s-%d", late, i)
		pod := n.Pod(name, kit.OnNode(x.to))
		n.Service(name)
		n.Tunnelled(x.client(), n.URL(name), pod)
	}
}

// Node proxies and agents are replaced under load.
func nodesRolled(t *testing.T, m *mesh) {
	n := m.town(t, "rolled", kit.Ambient())
	for _, x := range m.ways() {
		n.crosses(x)
	}
	all := n.load(rate)
	for _, name := range append(m.proxies(), "ambit-cni") {
		m.Roll(t, name)
	}
	n.works("late")
	clean(t, all)
}

// Istio's control plane makes way for ambitd under load: the authority stays,
// and so does every certificate.
func exchanged(t *testing.T, m *mesh) {
	n := m.town(t, "exchanged", kit.Ambient())
	for _, x := range m.ways() {
		n.crosses(x)
	}
	root := m.RootCertificates(t)
	all := n.load(rate)
	if err := m.Install(t.Context(), "--force"); err != nil {
		t.Fatal(err)
	}
	if err := m.Kube.AppsV1().Deployments(kit.SystemNamespace).Delete(t.Context(), "istiod", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	m.ControlPlane(t, 1)
	pods, err := m.Ambitds(t.Context())
	if err != nil || len(pods) != 1 || !strings.HasPrefix(pods[0].Name, "ambitd-") {
		t.Fatalf("this is not ambitd: %v, %v", pods, err)
	}
	kit.Eventually(t, "all proxies are ambitd's", func(ctx context.Context) error {
		followers, err := m.Followers(ctx, pods[0].Name)
		if err == nil && len(followers) != len(m.nodes) {
			err = fmt.Errorf("%d follow it", len(followers))
		}
		return err
	})
	n.works("late")
	clean(t, all)
	if !bytes.Equal(root, m.RootCertificates(t)) {
		t.Error("the root is another")
	}
}
