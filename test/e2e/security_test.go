package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// directory asks for all addresses, with a token, and returns how many come.
func directory(ctx context.Context, conn *grpc.ClientConn, token string) (addresses int, err error) {
	ctx, cancel := context.WithTimeout(kit.Bearing(ctx, token), 20*time.Second)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return 0, err
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/istio.workload.Address"}); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	resp, err := stream.Recv()
	return len(resp.GetResources()), err
}

// Tokens are good for the identity of their own pod; a node proxy's also for
// those of the pods of its node.
func TestTokensAreGoodForTheirOwn(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "tokens", kit.Ambient())
	alice := n.Pod("alice", kit.OnNode(near))
	bob := n.Pod("bob", kit.OnNode(far))
	system := kit.SystemNamespace
	aliceID, bobID := kit.SPIFFE(n.Name, "alice"), kit.SPIFFE(n.Name, "bob")
	nearProxy := mesh.ProxyOn(t, near)
	aliceToken := mesh.Token(t, n.Name, "alice", alice, kit.Audience)
	bobToken := mesh.Token(t, n.Name, "bob", bob, kit.Audience)
	conn := mesh.ControlPlaneConn(t)

	for name, c := range map[string]struct{ token, other, want string }{
		"a pod's token for itself":                     {aliceToken, "", aliceID},
		"a pod's token for another pod":                {aliceToken, bobID, ""},
		"a pod's token for the node proxy":             {aliceToken, kit.SPIFFE(system, "ztunnel"), ""},
		"a node proxy's token for a pod of its node":   {mesh.Token(t, system, "ztunnel", nearProxy, kit.Audience), aliceID, aliceID},
		"a node proxy's token for another node's":      {mesh.Token(t, system, "ztunnel", nearProxy, kit.Audience), bobID, ""},
		"the other node proxy's token for the same":    {mesh.Token(t, system, "ztunnel", mesh.ProxyOn(t, far), kit.Audience), bobID, bobID},
		"a node proxy's token that no pod has":         {mesh.Token(t, system, "ztunnel", nil, kit.Audience), aliceID, ""},
		"the node agent's token for a pod of its node": {mesh.Token(t, system, "ambit-cni", nil, kit.Audience), aliceID, ""},
		"the control plane's token for a pod":          {mesh.Token(t, system, "istiod", nil, kit.Audience), aliceID, ""},
		"a node proxy's token for somebody who is not": {mesh.Token(t, system, "ztunnel", nearProxy, kit.Audience), kit.SPIFFE(n.Name, "nobody"), ""},
		"a token for the API server":                   {mesh.Token(t, n.Name, "alice", alice), "", ""},
		"a node proxy's token for the API server":      {mesh.Token(t, system, "ztunnel", nearProxy), aliceID, ""},
		"no token":                 {"", "", ""},
		"a token that was made up": {"eyJhbGciOiJub25lIn0.e30.", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := kit.Certificate(t, conn, c.token, c.other)
			switch {
			case c.want == "":
				kit.RefusedBy(t, "a certificate", err)
			case err != nil:
				t.Error(err)
			case b.Identity.String() != c.want:
				t.Errorf("the certificate is for %s", b.Identity)
			}
		})
	}

	if sent, err := directory(t.Context(), conn, mesh.Token(t, system, "ztunnel", nearProxy, kit.Audience)); err != nil || sent == 0 {
		t.Errorf("xDS for a node proxy: %d addresses, %v", sent, err)
	}
	if sent, err := directory(t.Context(), conn, aliceToken); status.Code(err) != codes.PermissionDenied || sent > 0 {
		t.Errorf("xDS for a pod: %d addresses, %v", sent, err)
	}
	for name, token := range map[string]string{
		"no token": "", "a token for the API server": mesh.Token(t, n.Name, "alice", alice),
	} {
		_, err := directory(t.Context(), conn, token)
		kit.RefusedBy(t, "xDS with "+name, err)
	}
	if sent, err := directory(t.Context(), conn, mesh.Token(t, system, "ztunnel", nil, kit.Audience)); status.Code(err) != codes.PermissionDenied || sent > 0 {
		t.Errorf("xDS with a node proxy's token that no pod has: %d addresses, %v", sent, err)
	}

	// A token that was stolen is worth nothing when its pod is gone.
	if _, err := kit.Certificate(t, conn, bobToken, ""); err != nil {
		t.Errorf("bob's own token: %v", err)
	}
	if err := mesh.Kube.CoreV1().Pods(n.Name).Delete(t.Context(), "bob", metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "a token is refused when its pod is gone", func(context.Context) error {
		_, cerr := kit.Certificate(t, conn, bobToken, "")
		_, xerr := directory(t.Context(), conn, bobToken)
		// The token itself, and not only what its account may have.
		for _, err := range []error{cerr, xerr} {
			if status.Code(err) != codes.Unauthenticated {
				return fmt.Errorf("a certificate: %w; xDS: %w", cerr, xerr)
			}
		}
		return nil
	})
}

// tunnel asks a pod for a connection through HBONE from the nodes' LAN, as
// whoever the bundle says; nil is nobody. It returns the status and the
// identity that the server showed.
func tunnel(t *testing.T, pod *corev1.Pod, as *tls.Certificate, authority string) (status int, server string, err error) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(pod.Status.PodIP), wellknown.PortHBONE)
	conn, err := mesh.Own.Dial("lan", to, 20*time.Second)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, //nolint:gosec // the identity is looked at by the test
	}
	if as != nil {
		conf.Certificates = []tls.Certificate{*as}
	}
	tc := tls.Client(conn, conf)
	if err := tc.HandshakeContext(t.Context()); err != nil {
		return 0, "", err
	}
	cs := tc.ConnectionState()
	id, err := mtls.PeerIdentity(&cs)
	if err != nil {
		return 0, "", err
	}
	h, err := (&http2.Transport{}).NewClientConn(tc) //nolint:staticcheck // deprecated only in favour of newer functions of net/http
	if err != nil {
		return 0, id.String(), err
	}
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	resp, err := h.RoundTrip(&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: http.Header{}, Body: r, ContentLength: -1})
	if err != nil {
		return 0, id.String(), err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, id.String(), nil
}

func needsOwnCluster(t *testing.T) {
	t.Helper()
	if mesh.Own == nil {
		t.Fatal("only on the project's own cluster (test/cluster) is there a way into the nodes' network")
	}
}

// A client with a valid certificate of the wrong identity, with one of nobody's
// authority, or with none, does not get through a policy by speaking HBONE.
func TestHBONEUnderTheWrongIdentity(t *testing.T) {
	needsOwnCluster(t)
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "hbone", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	friend := n.Pod("friend", kit.OnNode(far))
	foe := n.Pod("foe", kit.OnNode(far))
	n.Service("server")
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/friend]}}]}]
`)
	n.MustRefuse("foe", n.URL("server"))
	n.MustGet("friend", n.URL("server"))

	conn := mesh.ControlPlaneConn(t)
	bundle := func(pod *corev1.Pod) *tls.Certificate {
		t.Helper()
		b, err := kit.Certificate(t, conn, mesh.Token(t, n.Name, pod.Name, pod, kit.Audience), "")
		if err != nil {
			t.Fatal(err)
		}
		return &b.Cert
	}
	at := net.JoinHostPort(server.Status.PodIP, "8080")
	code, shown, err := tunnel(t, server, bundle(friend), at)
	if err != nil || code != http.StatusOK {
		t.Fatalf("as the friend: %d, %v: this test is none", code, err)
	}
	if want := kit.SPIFFE(n.Name, "server"); shown != want {
		t.Errorf("the server is %s, and not %s", shown, want)
	}
	if code, _, err = tunnel(t, server, bundle(foe), at); err != nil || code == http.StatusOK {
		t.Errorf("as the foe: %d, %v", code, err)
	}
	// The server's proxy opens no way to anybody else, nor to itself.
	for _, other := range []string{
		net.JoinHostPort(foe.Status.PodIP, "8080"), net.JoinHostPort("127.0.0.1", "8080"),
		net.JoinHostPort(server.Status.PodIP, "15001"), net.JoinHostPort(server.Status.PodIP, "15006"), net.JoinHostPort(server.Status.PodIP, "15008"),
	} {
		if code, _, err := tunnel(t, server, bundle(friend), other); err == nil && code == http.StatusOK {
			t.Errorf("a friend gets from the server to %s", other)
		}
	}
	forged := selfSigned(t, kit.SPIFFE(n.Name, "friend"))
	for name, cert := range map[string]*tls.Certificate{"nobody": nil, "a friend by his own word": forged} {
		if code, _, err := tunnel(t, server, cert, at); err == nil {
			t.Errorf("as %s: %d", name, code)
		}
	}
}

func selfSigned(t *testing.T, id string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The proxy's ports are nobody's way around policies: not from outside, not
// from the mesh, not from the pod itself.
func TestProxyPortsGiveNothing(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "ports", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Pod("alice", kit.OnNode(far))
	n.Pod("neighbour", kit.OnNode(near))
	plain := mesh.Namespace(t, "plain", nil)
	plain.Pod("stranger", kit.OnNode(far))
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	n.MustGet("alice", "http://"+net.JoinHostPort(server.Status.PodIP, "8080")+"/")
	plain.MustRefuse("stranger", "http://"+net.JoinHostPort(server.Status.PodIP, "8080")+"/")
	for _, port := range []string{"15001", "15006", "15008"} {
		at := "http://" + net.JoinHostPort(server.Status.PodIP, port) + "/"
		plain.MustRefuse("stranger", at)
		n.MustRefuse("alice", at)
		n.MustRefuse("neighbour", at)
		n.MustRefuse("server", at)
		n.MustRefuse("server", "http://"+net.JoinHostPort("127.0.0.1", port)+"/")
	}
	n.MustGet("alice", "http://"+net.JoinHostPort(server.Status.PodIP, "8080")+"/")
}

// A pod that is probed in plaintext at the port of its service is open there
// to the kubelet, and to no client to which kube-proxy lends the node's address.
func TestNodePortAtAProbedPortIsStrict(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "probed", kit.Ambient())
	n.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`)
	probes := map[string]corev1.ProbeHandler{
		"tcp":  {TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
		"http": {HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080), Path: "/"}},
	}
	outside := mesh.Namespace(t, "outside", nil)
	outside.Pod("far", kit.OnNode(far))
	outside.Pod("near", kit.OnNode(near))
	for name, probe := range probes {
		n.Create(name, kit.OnNode(near), func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, ProbeHandler: probe}
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 5, ProbeHandler: probe}
		})
	}
	for name := range probes {
		t.Run(name, func(t *testing.T) {
			n.Ready(name)
			n.Redirected(name, true)
			doors := nodePort(t, n, name)
			for _, node := range []string{near, far} {
				for _, door := range doors(node) {
					for _, from := range []string{"far", "near"} {
						kit.Eventually(t, fmt.Sprintf("%s is led to the proxy by %s, and refused there", from, door), func(context.Context) error {
							err := outside.MustRefuse(from, "http://"+door.String()+"/")
							if strings.Contains(err.Error(), "no route") || strings.Contains(err.Error(), "connection refused") {
								return err // kube-proxy has not heard of the Service
							}
							return nil
						})
					}
					refusedWithAllHops(t, door)
				}
			}
			outside.MustRefuse("far", n.URL(name))
			outside.MustRefuse("near", n.URL(name))
			time.Sleep(5 * time.Second) // several rounds of liveness probes
			if r := n.Ready(name).Status.ContainerStatuses[0].RestartCount; r > 0 {
				t.Errorf("the pod was restarted %d times by its own probe", r)
			}
		})
	}
}

// refusedWithAllHops has a client on the nodes' LAN, which sends packets with
// as many hops left as a host's own have, ask for a page.
func refusedWithAllHops(t *testing.T, at netip.AddrPort) {
	t.Helper()
	if mesh.Own == nil {
		return
	}
	lan, err := mesh.Own.Netns("lan")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lan.Close() }()
	const most = 255
	conn, err := netnstest.Dial(lan, netip.Addr{}, at, func(fd int) error {
		if at.Addr().Is6() {
			return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, most)
		}
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TTL, most)
	})
	if err != nil {
		return // refused at once
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	if answer, err := io.ReadAll(io.LimitReader(conn, 1024)); len(answer) > 0 {
		t.Errorf("%s answers a stranger with all hops: %q, %v", at, answer, err)
	}
}

// Who is in a pod cannot undo its redirection, unless the pod was given
// NET_ADMIN. The nft program is the node's.
func TestRulesAreOutOfThePodsReach(t *testing.T) {
	needsOwnCluster(t)
	n := mesh.Namespace(t, "reach", kit.Ambient())
	n.Pod("ordinary", withPrograms)
	n.Pod("admin", withPrograms, func(p *corev1.Pod) {
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}
	})
	for _, name := range []string{"ordinary", "admin"} {
		n.Redirected(name, true)
	}
	for _, argv := range [][]string{
		{"/usr/sbin/nft", "delete", "table", "inet", "ambit"},
		{"/usr/sbin/nft", "flush", "ruleset"},
		{"/usr/bin/ip", "rule", "del", "priority", "32764"},
		{"/usr/bin/unshare", "--user", "--map-root-user", "/usr/sbin/nft", "delete", "table", "inet", "ambit"},
	} {
		out, err := mesh.Exec(t.Context(), n.Name, "ordinary", argv...)
		if err == nil || !strings.Contains(err.Error(), "not permitted") {
			t.Errorf("%q: %q, %v", argv, out, err)
		}
	}
	// The same, where it is allowed: the agent puts the rules back.
	if out, err := mesh.Exec(t.Context(), n.Name, "admin", "/usr/sbin/nft", "delete", "table", "inet", "ambit"); err != nil {
		t.Fatalf("with NET_ADMIN: %q, %v: this test is none", out, err)
	}
	kit.Eventually(t, "the rules are written anew", func(ctx context.Context) error {
		_, err := mesh.Exec(ctx, n.Name, "admin", "/usr/sbin/nft", "list", "table", "inet", "ambit")
		return err
	})
}
