package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/source/file"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const manifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: web
  containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.7
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-shop, namespace: shop}
spec:
  rules: [{from: [{source: {namespaces: [shop]}}]}]
`

// plane is a control plane under test.
type plane struct {
	t              testing.TB
	app            *app
	config, status string
	state          string
	monitor, admin string
	stop           func()
	stopped        chan error
}

func start(t testing.TB, files map[string]string) *plane {
	t.Helper()
	dir := t.TempDir()
	p := &plane{t: t, config: dir + "/config", status: dir + "/status", state: dir + "/state", stopped: make(chan error, 1)}
	for name, text := range files {
		p.write(name, text)
	}
	p.overlay("web", "10.1.0.5", "node1", false)
	p.launch()
	return p
}

func (p *plane) launch() {
	p.t.Helper()
	cfg, err := parseFlags([]string{
		"--config-dir", p.config, "--status-dir", p.status, "--state-dir", p.state,
		"--listen", "127.0.0.1:0", "--monitor", "127.0.0.1:0", "--admin", "127.0.0.1:0",
	}, io.Discard)
	if err != nil {
		p.t.Fatal(err)
	}
	logs, err := logging.New(io.Discard, logging.Plain, "info")
	if err != nil {
		p.t.Fatal(err)
	}
	if p.app, err = newApp(cfg, logs); err != nil {
		p.t.Fatal(err)
	}
	p.monitor = "http://" + p.app.listeners["monitor"].Addr().String()
	p.admin = "http://" + p.app.listeners["admin"].Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	a := p.app
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.stopped <- a.run(ctx)
	}()
	p.stop = func() { cancel(); <-done }
	p.t.Cleanup(p.stop)
	<-p.app.synced
}

func (p *plane) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.config, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	// Whole or not at all, as any editor of a live configuration should.
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		p.t.Fatal(err)
	}
}

// overlay is what a kubelet and a node agent would write.
func (p *plane) overlay(pod, ip, node string, enrolled bool) {
	p.t.Helper()
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "shop", UID: "uid-x"}}
	o.Spec.NodeName = node
	o.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	if enrolled {
		o.Annotations = map[string]string{wellknown.AnnotationRedirection: wellknown.RedirectionEnabled}
	}
	if err := file.WriteOverlay(p.status, "lab", o); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) token(node string) string {
	p.t.Helper()
	issuer, err := auth.OpenIssuer(p.state)
	if err != nil {
		p.t.Fatal(err)
	}
	tok, err := issuer.Issue(auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: node}, time.Hour)
	if err != nil {
		p.t.Fatal(err)
	}
	path := p.state + "/token-" + node
	if err := os.WriteFile(path, []byte(tok), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *plane) get(url string) string {
	p.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// proxy is an xDS client as a ztunnel has one.
type proxy struct {
	t      testing.TB
	deltas chan xds.Delta // of addresses
	rules  chan xds.Delta // of policies
}

func (p *plane) connect(node string) *proxy {
	p.t.Helper()
	px := &proxy{t: p.t, deltas: make(chan xds.Delta, 16), rules: make(chan xds.Delta, 16)}
	into := func(c chan xds.Delta) func(xds.Delta) []xds.Rejection {
		return func(d xds.Delta) []xds.Rejection { c <- d; return nil }
	}
	client, err := xds.NewClient(xds.ClientConfig{
		Server: controlplane.Server{Address: "https://" + p.app.addr().String(), RootCAFile: p.state + "/root-cert.pem", TokenFile: p.token(node)},
		Node:   &core.Node{Id: "ztunnel~10.0.0.1~ztunnel-" + node + ".istio-system~istio-system.svc.cluster.local"},
		Types: []xds.TypeConfig{
			{TypeURL: wellknown.TypeAddress, Apply: into(px.deltas)},
			{TypeURL: wellknown.TypeAuthorization, Apply: into(px.rules)},
		},
		Logger: logging.Discard(),
	})
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = client.Run(ctx) }()
	p.t.Cleanup(func() { cancel(); <-done })
	return px
}

func (px *proxy) next() xds.Delta {
	px.t.Helper()
	select {
	case d := <-px.deltas:
		return d
	case <-time.After(20 * time.Second):
		px.t.Fatal("no delta came")
		return xds.Delta{}
	}
}

func workload(t *testing.T, r xds.Resource) *workloadpb.Workload {
	t.Helper()
	var a workloadpb.Address
	if err := proto.Unmarshal(r.Body, &a); err != nil {
		t.Fatal(err)
	}
	return a.GetWorkload()
}

func TestFromFilesToAProxy(t *testing.T) {
	p := start(t, map[string]string{"mesh.yaml": manifests})
	px := p.connect("node1")
	first := px.next()
	if !first.First || len(first.Updated) != 2 {
		t.Fatalf("first delta: %+v", first)
	}
	const uid = "Kubernetes//Pod/shop/web"
	var w *workloadpb.Workload
	for _, r := range first.Updated {
		if r.Name == uid {
			w = workload(t, r)
		}
	}
	if w.GetServiceAccount() != "web" || w.GetTunnelProtocol() != workloadpb.TunnelProtocol_NONE {
		t.Fatalf("workload %v", w)
	}
	if ports := w.Services["shop/web.shop.svc.cluster.local"]; len(ports.GetPorts()) != 1 || ports.Ports[0].TargetPort != 8080 {
		t.Errorf("ports %v", ports)
	}
	if rules := <-px.rules; len(rules.Updated) != 2 {
		t.Errorf("policies: %+v", rules)
	}

	// The agent enrols the pod: one resource, and a small one.
	p.overlay("web", "10.1.0.5", "node1", true)
	d := px.next()
	if len(d.Updated) != 1 || d.Updated[0].Name != uid || len(d.Removed) != 0 {
		t.Fatalf("delta: %+v", d)
	}
	if w := workload(t, d.Updated[0]); w.TunnelProtocol != workloadpb.TunnelProtocol_HBONE {
		t.Errorf("not enrolled: %v", w)
	}
	t.Logf("one pod changed: one resource of %d bytes", len(d.Updated[0].Body))

	// A broken file changes nothing and is reported.
	p.write("mesh.yaml", strings.Replace(manifests, "serviceAccountName: web", "serviceAcountName: web", 1))
	p.write("more.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: two, namespace: shop}\nspec: {containers: [{name: c}]}\nstatus: {podIP: 10.1.0.6, phase: Running}\n")
	if d := px.next(); len(d.Updated) != 1 || d.Updated[0].Name != "Kubernetes//Pod/shop/two" {
		t.Errorf("delta: %+v", d)
	}
	if got := p.get(p.admin + "/debug/problems"); !strings.Contains(got, "spec.serviceAcountName") || !strings.Contains(got, `"line": 10`) {
		t.Errorf("problems: %s", got)
	}
	if err := os.Remove(p.config + "/more.yaml"); err != nil {
		t.Fatal(err)
	}
	if d := px.next(); len(d.Removed) != 1 || d.Removed[0] != "Kubernetes//Pod/shop/two" {
		t.Errorf("delta: %+v", d)
	}

	if got := p.get(p.admin + "/debug/syncz"); !strings.Contains(got, `"name": "ztunnel-node1.istio-system"`) {
		t.Errorf("syncz: %s", got)
	}
	var objects []struct {
		Kind, Name, File string
		Line             int
	}
	if err := json.Unmarshal([]byte(p.get(p.admin+"/debug/status")), &objects); err != nil || len(objects) != 4 || objects[0].Line == 0 {
		t.Errorf("status: %v %+v", err, objects)
	}
	if got := p.get(p.admin + "/debug/config_dump"); !strings.Contains(got, uid) || !strings.Contains(got, "only-shop") {
		t.Errorf("config dump: %s", got)
	}
	if got := p.get(p.monitor + "/metrics"); !strings.Contains(got, "pilot_xds 1") || !strings.Contains(got, "ambit_source_problems 1") {
		t.Error("metrics are missing")
	}
	if got := p.get(p.monitor + "/readyz"); got != "ready\n" {
		t.Errorf("readyz: %s", got)
	}
}

func TestARestartedControlPlaneResendsOnlyWhatChanged(t *testing.T) {
	p := start(t, map[string]string{"mesh.yaml": manifests})
	addr := p.app.addr().String()
	px := p.connect("node1")
	px.next()
	p.stop()
	if err := <-p.stopped; err != nil {
		t.Fatalf("run: %v", err)
	}
	p.overlay("web", "10.1.0.5", "node1", true)
	p.launchAt(addr)
	if d := px.next(); len(d.Updated) != 1 || d.Updated[0].Name != "Kubernetes//Pod/shop/web" {
		t.Errorf("after the restart: %+v", d)
	}
}

// launchAt starts again on the address of the process before.
func (p *plane) launchAt(addr string) {
	p.t.Helper()
	cfg, err := parseFlags([]string{"--config-dir", p.config, "--status-dir", p.status, "--state-dir", p.state,
		"--listen", addr, "--monitor", "127.0.0.1:0", "--admin", "127.0.0.1:0"}, io.Discard)
	if err != nil {
		p.t.Fatal(err)
	}
	logs, err := logging.New(io.Discard, logging.Plain, "info")
	if err != nil {
		p.t.Fatal(err)
	}
	if p.app, err = newApp(cfg, logs); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a := p.app
	go func() { defer close(done); p.stopped <- a.run(ctx) }()
	p.t.Cleanup(func() { cancel(); <-done })
}

func TestCertificatesOnlyForPodsOfTheNode(t *testing.T) {
	p := start(t, map[string]string{"mesh.yaml": manifests})
	id := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}
	sign := func(node string, id identity.Identity) error {
		signer, err := certs.NewCAClient(certs.CAConfig{
			Server: controlplane.Server{Address: "https://" + p.app.addr().String(), RootCAFile: p.state + "/root-cert.pem", TokenFile: p.token(node)},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = signer.Close() }()
		m := certs.NewManager(certs.Config{Sign: signer, Logger: logging.Discard()})
		defer m.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err = m.Get(ctx, id)
		return err
	}
	if err := sign("node1", id); err != nil {
		t.Errorf("the pod's node was refused: %v", err)
	}
	if err := sign("node2", id); err == nil {
		t.Error("another node got the pod's certificate")
	}
	id.ServiceAccount = "other"
	if err := sign("node1", id); err == nil {
		t.Error("a certificate for an account without a pod")
	}
}

func TestRotation(t *testing.T) {
	p := start(t, map[string]string{"mesh.yaml": manifests})
	ask := func(method, query string, want int) (s admin.Authority) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.admin+"/ca/rotate"+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != want {
			t.Fatalf("%s %s: %s", method, query, resp.Status)
		}
		if want == http.StatusOK {
			if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	ask(http.MethodGet, "", http.StatusMethodNotAllowed)
	first := ask(http.MethodPost, "", http.StatusOK)
	if first.Stage != ca.NewRootDistributed || first.Roots != 2 || first.NextSigner == "" || first.Until.IsZero() {
		t.Errorf("after the start: %+v", first)
	}
	ask(http.MethodPost, "", http.StatusConflict)
	if s := ask(http.MethodPost, "?hurry", http.StatusOK); s.Stage != ca.SigningByNew || s.Signer != first.NextSigner {
		t.Errorf("hurried: %+v", s)
	}
	var now admin.Authority
	if err := json.Unmarshal([]byte(p.get(p.admin+"/debug/ca")), &now); err != nil || now.Stage != ca.SigningByNew || now.Roots != 2 {
		t.Errorf("%v %+v", err, now)
	}
	if s := ask(http.MethodPost, "?hurry", http.StatusOK); s.Stage != ca.Steady || s.Roots != 1 {
		t.Errorf("hurried again: %+v", s)
	}
}

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                               "--config-dir is needed",
		"--config-dir x":                 "--state-dir is needed",
		"--config-dir x --state-dir y z": `unexpected argument "z"`,
		"--config-dir x --state-dir y --trust-domain A/B":       "trust domain",
		"--config-dir x --state-dir y --trusted-node-account z": "not namespace/account",
		"--config-dir x --state-dir y --cert-ttl 5s":            "must be at least 10s",
		"--config-dir x --state-dir y --max-cert-ttl 1h":        "--max-cert-ttl 1h0m0s",
		"--config-dir x --state-dir y --rotation-margin 0s":     "--rotation-margin",
		"--kubernetes --revision-tag prod":                      "--revision-tag prod needs --revision",
	} {
		if _, err := parseFlags(strings.Fields(args), io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
	c, err := parseFlags(strings.Fields("--config-dir x --config-dir y --state-dir z --root-namespace mesh"), io.Discard)
	if err != nil || fmt.Sprint(c.configDirs) != "[x y]" || c.trustedNodeAccounts[0] != "mesh/ztunnel" {
		t.Errorf("%+v %v", c, err)
	}
}
