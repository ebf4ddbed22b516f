package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// onCluster is a cluster with control planes.
type onCluster struct {
	t      *testing.T
	api    *kubetest.Server
	dir    string
	tokens map[string]string // by name
}

func pod(ns, name, uid, account, node, ip string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid)}}
	p.Spec.ServiceAccountName, p.Spec.NodeName = account, node
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	return p
}

// holder is the subject that the API server has for a token: service account, pod, its
// UID, node, and the audience.
type holder [5]string

var holders = map[string]holder{
	"ztunnel-1": {"istio-system:ztunnel", "ztunnel-1", "z1", "node1", "istio-ca"},
	"ztunnel-2": {"istio-system:ztunnel", "ztunnel-2", "z2", "node2", "istio-ca"},
	"stale":     {"istio-system:ztunnel", "ztunnel-1", "z0", "node1", "istio-ca"},
	"moved":     {"istio-system:ztunnel", "ztunnel-1", "z1", "node2", "istio-ca"},
	"gone":      {"istio-system:ztunnel", "ztunnel-0", "z9", "node1", "istio-ca"},
	"unbound":   {"istio-system:ztunnel", "", "", "", "istio-ca"},
	"no-uid":    {"istio-system:ztunnel", "ztunnel-1", "", "node1", "istio-ca"},
	"borrowed":  {"istio-system:ztunnel", "other", "o1", "node1", "istio-ca"},
	"web":       {"shop:web", "web", "w1", "node1", "istio-ca"},
	"waypoint":  {"shop:waypoint", "waypoint-1", "p1", "node1", "istio-ca"},
	"audience":  {"istio-system:ztunnel", "ztunnel-1", "z1", "node1", "api"},
}

func (h holder) status() authenticationv1.TokenReviewStatus {
	s := authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{h[4]}}
	s.User.Username = "system:serviceaccount:" + h[0]
	s.User.Extra = map[string]authenticationv1.ExtraValue{}
	for i, k := range []string{"pod-name", "pod-uid", "node-name"} {
		if h[i+1] != "" {
			s.User.Extra["authentication.kubernetes.io/"+k] = authenticationv1.ExtraValue{h[i+1]}
		}
	}
	return s
}

func newCluster(t *testing.T, objs ...runtime.Object) *onCluster {
	t.Helper()
	t.Setenv("POD_NAMESPACE", "")
	t.Setenv("CLUSTER_ID", "")
	objs = append(objs,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system", Labels: map[string]string{corev1.LabelMetadataName: "istio-system"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"mesh": "yes"}}},
		pod("istio-system", "ztunnel-1", "z1", "ztunnel", "node1", "10.0.1.1"),
		pod("istio-system", "ztunnel-2", "z2", "ztunnel", "node2", "10.0.2.1"),
		pod("istio-system", "other", "o1", "other", "node1", "10.0.1.9"),
		pod("shop", "web", "w1", "web", "node1", "10.0.1.2"),
		pod("shop", "db", "d1", "db", "node2", "10.0.2.2"),
	)
	c := &onCluster{t: t, api: kubetest.Start(t, objs...), dir: t.TempDir(), tokens: map[string]string{}}
	known := map[string]authenticationv1.TokenReviewStatus{}
	ends := time.Now().Add(time.Hour).Unix()
	for name, h := range holders {
		// Shaped so that the end can be read, as those of Kubernetes are.
		claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, ends))
		c.tokens[name] = "h." + claims + "." + name
		known[c.tokens[name]] = h.status()
	}
	c.tokens["unknown"] = "h.e30.unknown"
	c.api.OnTokenReview(func(r *authenticationv1.TokenReview) { r.Status = known[r.Spec.Token] })
	return c
}

func (c *onCluster) write(name, text string) (path string) {
	c.t.Helper()
	path = filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *onCluster) token(name string) string { return c.write("token-"+name, c.tokens[name]) }

func (c *onCluster) roots() string { return filepath.Join(c.dir, "roots.pem") }

// replica starts a control plane and waits until it is ready.
func (c *onCluster) replica(args ...string) *app {
	c.t.Helper()
	a, _ := c.launch(io.Discard, args...)
	c.serves(a)
	return a
}

// serves waits until a control plane is ready, and remembers its roots.
func (c *onCluster) serves(a *app) (roots string) {
	c.t.Helper()
	c.eventually("ready", func() bool { return ready(a) })
	bundle, _ := a.authority.Bundle()
	c.write("roots.pem", string(bundle))
	return string(bundle)
}

// notebook is what a program has logged.
type notebook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (n *notebook) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(p)
}

func (n *notebook) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.String()
}

// launch starts a control plane that logs to out.
func (c *onCluster) launch(out io.Writer, args ...string) (a *app, stop func()) {
	c.t.Helper()
	cfg, err := parseFlags(append([]string{
		"--kubernetes", "--kubeconfig", c.api.Kubeconfig(),
		"--listen", "127.0.0.1:0", "--monitor", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--webhook-listen", "127.0.0.1:0",
	}, args...), io.Discard)
	if err != nil {
		c.t.Fatal(err)
	}
	logs, err := logging.New(out, logging.Plain, "info")
	if err != nil {
		c.t.Fatal(err)
	}
	a, err = newApp(cfg, logs)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.run(ctx); err != nil {
			c.t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	c.t.Cleanup(stop)
	return a, stop
}

func ready(a *app) bool {
	code, _ := readiness(a)
	return code == http.StatusOK
}

func readiness(a *app) (code int, text string) {
	resp, err := http.Get("http://" + a.listeners["monitor"].Addr().String() + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (c *onCluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// certificate asks for a certificate of a service account of namespace shop.
func (c *onCluster) certificate(a *app, token, account string) error {
	c.t.Helper()
	return c.certificateClaiming(a, token, "Kubernetes", account)
}

// certificateClaiming does so as a caller that claims to be of a cluster.
func (c *onCluster) certificateClaiming(a *app, token, cluster, account string) error {
	c.t.Helper()
	client, err := certs.NewCAClient(certs.CAConfig{
		Server: controlplane.Server{Address: "https://" + a.addr().String(), RootCAFile: c.roots(), TokenFile: c.token(token), ClusterID: cluster},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	_, err = client.Sign(ctx, identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: account},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0)
	return err
}

func TestImpersonation(t *testing.T) {
	c := newCluster(t)
	a := c.replica()
	for _, tt := range []struct {
		name, token, account string
		ok                   bool
	}{
		{"a pod of its node", "ztunnel-1", "web", true},
		{"a pod of another node", "ztunnel-1", "db", false},
		{"that node's own", "ztunnel-2", "db", true},
		{"nobody", "ztunnel-1", "nobody", false},
		{"the UID of a pod that went", "stale", "web", false},
		{"a node that is not its pod's", "moved", "db", false},
		{"a pod that is not there", "gone", "web", false},
		{"not bound to a pod", "unbound", "web", false},
		{"bound without a UID", "no-uid", "web", false},
		{"bound to a pod of another account", "borrowed", "web", false},
		{"not a node proxy", "web", "web", false},
		{"a token for somebody else", "audience", "web", false},
		{"a token of nobody", "unknown", "web", false},
	} {
		if err := c.certificate(a, tt.token, tt.account); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func (c *onCluster) follow(a *app) *proxy {
	c.t.Helper()
	return c.followAs(a, "ztunnel-1")
}

// followAs has a client ask for addresses: for those names, or for all without.
func (c *onCluster) followAs(a *app, token string, names ...string) *proxy {
	c.t.Helper()
	px := &proxy{t: c.t, deltas: make(chan xds.Delta, 64)}
	meta, err := structpb.NewStruct(map[string]any{"NODE_NAME": "node1", "ISTIO_VERSION": "v1.2.3"})
	if err != nil {
		c.t.Fatal(err)
	}
	client, err := xds.NewClient(xds.ClientConfig{
		Server: controlplane.Server{Address: "https://" + a.addr().String(), RootCAFile: c.roots(), TokenFile: c.token(token)},
		Node:   &core.Node{Id: "ztunnel~10.0.1.1~ztunnel-1.istio-system~istio-system.svc.cluster.local", Metadata: meta},
		Types: []xds.TypeConfig{{TypeURL: wellknown.TypeAddress, OnDemand: len(names) > 0, Apply: func(d xds.Delta) []xds.Rejection {
			px.deltas <- d
			return nil
		}}},
		Logger: logging.Discard(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = client.Run(ctx) })
	for _, name := range names {
		running.Go(func() { _ = client.Demand(ctx, wellknown.TypeAddress, name) })
	}
	c.t.Cleanup(func() { cancel(); running.Wait() })
	return px
}

// TestAPIServerAway: what was known is served, callers that are known get
// certificates and others none, and readiness does not change.
func TestAPIServerAway(t *testing.T) {
	c := newCluster(t)
	a := c.replica()
	px := c.follow(a)
	px.next()
	if err := c.certificate(a, "ztunnel-1", "web"); err != nil {
		t.Fatal(err)
	}
	if got := syncz(a.xds.Clients(), "Kubernetes"); len(got) != 1 || got[0].Version != "v1.2.3" || got[0].Name != "ztunnel-1.istio-system" {
		t.Errorf("proxies: %+v", got)
	}
	c.api.Stop()
	if err := c.certificate(a, "ztunnel-1", "web"); err != nil {
		t.Errorf("a caller that is known: %v", err)
	}
	if err := c.certificate(a, "ztunnel-2", "db"); err == nil {
		t.Error("a caller that nobody can judge got a certificate")
	}
	if d := c.follow(a).next(); len(d.Updated) == 0 {
		t.Error("nothing is served")
	}
	if !ready(a) {
		t.Error("not ready without the API server")
	}
	c.api.Restart()
	c.api.Add(pod("shop", "late", "l1", "late", "node1", "10.0.1.7"))
	if d := px.next(); len(d.Updated) != 1 || workload(t, d.Updated[0]).GetName() != "late" {
		t.Errorf("after the API server came back: %+v", d)
	}
}

// TestReplicas: two share one root; what one decides holds for both, and pods
// are told.
func TestReplicas(t *testing.T) {
	c := newCluster(t)
	a, b := c.replica(), c.replica()
	first, _ := a.authority.Bundle()
	if second, _ := b.authority.Bundle(); string(first) != string(second) {
		t.Fatal("two roots")
	}
	roots := func() string {
		cm, err := c.api.Client().Kube.CoreV1().ConfigMaps("shop").Get(t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
		if err != nil {
			return ""
		}
		return cm.Data["root-cert.pem"]
	}
	c.eventually("the namespace has the roots", func() bool { return roots() == string(first) })
	leader, other := a, b
	c.eventually("one leads", func() bool {
		if b.authority.Status().Leads {
			leader, other = b, a
		}
		return leader.authority.Status().Leads
	})
	if err := leader.authority.StartRotation(); err != nil {
		t.Fatal(err)
	}
	c.eventually("the other has both roots", func() bool { return other.authority.Status().Roots == 2 })
	c.eventually("the namespace has both roots", func() bool { return strings.Count(roots(), "BEGIN") == 2 })
}

// TestStatusWritten: from an object to its status.
func TestStatusWritten(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{wellknown.LabelUseWaypoint: "wp"}}}
	svc.Spec.ClusterIP = "10.96.0.1"
	c := newCluster(t, svc)
	c.replica()
	c.eventually("the condition is there", func() bool {
		s, err := c.api.Client().Kube.CoreV1().Services("shop").Get(t.Context(), "web", metav1.GetOptions{})
		return err == nil && len(s.Status.Conditions) == 1 && s.Status.Conditions[0].Type == "istio.io/WaypointBound" &&
			s.Status.Conditions[0].Status == metav1.ConditionFalse && !s.Status.Conditions[0].LastTransitionTime.IsZero()
	})
}

func TestMeshConfig(t *testing.T) {
	c := newCluster(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "outside"}}, pod("outside", "x", "x1", "x", "node1", "10.0.1.8"))
	path := c.write("mesh", "discoverySelectors: [{matchLabels: {mesh: 'yes'}}]\ntrustDomain: example.org\n")
	a := c.replica("--mesh-config", path)
	if a.cfg.trustDomain != "example.org" {
		t.Errorf("trust domain %q", a.cfg.trustDomain)
	}
	px := c.follow(a)
	seen := map[string]bool{}
	for _, r := range px.next().Updated {
		seen[workload(t, r).GetName()] = true
	}
	if !seen["web"] || !seen["ztunnel-1"] || seen["x"] {
		t.Errorf("seen: %v", seen)
	}
	c.write("mesh", "trustDomain: example.org\n")
	if d := px.next(); len(d.Updated) != 1 || workload(t, d.Updated[0]).GetName() != "x" {
		t.Errorf("without selectors: %+v", d)
	}
}

// TestEntriesOfGuests: what the mesh configuration says of ServiceEntries holds,
// is in their status, and may change. What cannot be used changes nothing.
func TestEntriesOfGuests(t *testing.T) {
	entry := func(name, address string) *networkingv1.ServiceEntry {
		e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		e.Spec.Hosts, e.Spec.Addresses = []string{name + ".example.com"}, []string{address}
		return e
	}
	db, late := entry("db", "192.0.2.9"), entry("late", "192.0.2.10")
	c := newCluster(t, db)
	c.write("mesh", "serviceEntryVisibility: {policies: [{visibility: NAMESPACE, matchingRules: [{namespaceSelector: {matchLabels: {mesh: 'yes'}}}]}]}\n")
	log := &notebook{}
	a, _ := c.launch(log, "--mesh-config", filepath.Join(c.dir, "mesh"))
	c.serves(a)
	visible := func(e *networkingv1.ServiceEntry) (reason string) {
		c.api.Get(e)
		for _, c := range e.Status.Conditions {
			if c.Type == "istio.io/VisibilityApplied" {
				reason = c.Reason
			}
		}
		return reason
	}
	c.eventually("the namespace alone sees it", func() bool { return visible(db) == "Namespace" })
	c.write("mesh", "serviceEntryVisibility: {defaultVisibility: PUBLIC}\n")
	c.eventually("everybody sees it", func() bool { return visible(db) == "Public" })
	c.write("mesh", "serviceEntryVisibility: {defaultVisibility: NOBODY}\n")
	c.eventually("the log says what cannot be used", func() bool {
		return strings.Contains(log.String(), "the mesh configuration cannot be used")
	})
	c.api.Add(late)
	c.eventually("everybody sees one that is new, too", func() bool { return visible(late) == "Public" })
	if got := visible(db); got != "Public" {
		t.Errorf("with a mesh configuration that cannot be used, the entry is visible to %q", got)
	}
	c.write("mesh", "trustDomain: cluster.local\n")
	c.eventually("nobody says anything", func() bool { return visible(db) == "" && visible(late) == "" })
}

func TestKubernetesFlags(t *testing.T) {
	for _, bad := range [][]string{
		{"--kubernetes", "--config-dir", "x"}, {"--kubernetes", "--state-dir", "x"},
		{"--config-dir", "x", "--state-dir", "y", "--untaint", "z"},
	} {
		if _, err := parseFlags(bad, io.Discard); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	t.Setenv("POD_NAMESPACE", "mesh")
	cfg, err := parseFlags([]string{"--kubernetes", "--revision", "canary"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.trustedNodeAccounts.String(); got != "mesh/ztunnel" {
		t.Errorf("trusted: %s", got)
	}
	if names := cfg.serverNames.String(); !strings.Contains(names, "istiod-canary.mesh.svc") || !strings.Contains(names, "istiod.mesh.svc,") {
		t.Errorf("names: %s", names)
	}
}
