package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// ambit runs a command line that has to work.
func ambit(t *testing.T, args ...string) string {
	t.Helper()
	out, err := mesh.Ambit(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// says waits until a command line prints all of some texts.
func says(t *testing.T, texts []string, args ...string) {
	t.Helper()
	kit.Eventually(t, "ambit "+strings.Join(args, " "), func(ctx context.Context) error {
		out, err := mesh.Ambit(ctx, args...)
		if err != nil && out == "" {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("%q is not in:\n%s", text, out)
			}
		}
		return nil
	})
}

// checked waits until `ambit check` finds no error: what earlier tests have made
// may be about to go.
func checked(t *testing.T) (out string) {
	t.Helper()
	kit.Eventually(t, "ambit check finds no error", func(ctx context.Context) (err error) {
		out, err = mesh.Ambit(ctx, "check")
		return err
	})
	return out
}

// What the command line says of the mesh itself is what runs.
func TestCommandLineKnowsTheMesh(t *testing.T) {
	nodes, err := mesh.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		zt, err := mesh.ZtunnelOn(t.Context(), node)
		if err != nil {
			t.Fatal(err)
		}
		says(t, []string{zt + "." + kit.SystemNamespace}, "proxy-status")
		identity := "spiffe://" + wellknown.DefaultDomain + "/ns/" + kit.SystemNamespace + "/sa/ztunnel"
		says(t, []string{identity, "Leaf", "Root", "Available"}, "ztunnel-config", "certificate", zt)
		if out := ambit(t, "ztunnel-config", "log", "--node", node); !strings.Contains(out, "log level") {
			t.Errorf("log level of %s: %s", node, out)
		}
	}

	if out := checked(t); !strings.Contains(out, "large packets: ") || !strings.Contains(out, "setting lo; ") {
		t.Errorf("ambit check does not say how large packets may be:\n%s", out)
	}

	var v struct {
		ControlPlane, DataPlane []struct{ Component, Source string }
	}
	if err := json.Unmarshal([]byte(ambit(t, "version", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if len(v.ControlPlane) == 0 || len(v.DataPlane) != 2*len(nodes) {
		t.Errorf("versions of %d nodes: %+v", len(nodes), v)
	}
	for _, p := range slices.Concat(v.ControlPlane, v.DataPlane) {
		if p.Source != "program" {
			t.Errorf("%s did not say its version itself", p.Component)
		}
	}

	var ca struct {
		Signer string
		Roots  int
	}
	if err := json.Unmarshal([]byte(ambit(t, "ca", "status", "-o", "json")), &ca); err != nil || ca.Signer == "" || ca.Roots < 1 {
		t.Errorf("certificate authority: %+v, %v", ca, err)
	}
	checked(t)

	if _, err := mesh.Ambit(t.Context(), "ztunnel-config", "workload", "--node", "nowhere"); err == nil || !strings.Contains(err.Error(), "no running ztunnel on node nowhere: there are ") {
		t.Errorf("a node that is not there: %v", err)
	}
}

// A pod and a service are described by those who know: labels, annotation,
// agent, proxy; and what is wrong comes with what to do.
func TestDescribe(t *testing.T) {
	far, near := twoNodes(t)
	in := mesh.Namespace(t, "described", kit.Ambient())
	out := mesh.Namespace(t, "undescribed", nil)
	server := in.Pod("server", kit.OnNode(near))
	in.Service("server")
	in.Pod("client", kit.OnNode(far))
	out.Pod("stranger", kit.OnNode(far))
	out.Service("stranger")
	in.Redirected("server", true)
	in.Tunnelled("client", in.URL("server"), server)
	proxy, err := mesh.ZtunnelOn(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}

	says(t, []string{
		"In the mesh:   yes\n", "rules are in the kernel, served by ztunnel", proxy + ": Up in the pod", "reaches it by HBONE",
		"spiffe://" + wellknown.DefaultDomain + "/ns/" + in.Name + "/sa/server", "Available, until ", "server (", "accepted: everyone",
	}, "describe", "pod", "server", "-n", in.Name)
	says(t, []string{"In the mesh:   no\n", "kubectl label namespace " + out.Name + " " + wellknown.LabelDataplaneMode}, "describe", "pod", "stranger."+out.Name)
	says(t, []string{server.Status.PodIP + " server on " + near + ": ready, HBONE"}, "describe", "service", "server", "-n", in.Name)
	says(t, []string{"ready, plaintext", "1 of 1 ready endpoints are not in the mesh"}, "describe", "service", "stranger", "-n", out.Name)

	in.MustApply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: [cluster.local/ns/$NS/sa/client]}}], to: [{operation: {ports: ["8080"]}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}
`)
	says(t, []string{
		"whoever proves no identity", "AuthorizationPolicy " + in.Name + "/callers (Allow), enforced by " + proxy,
		"accepted: from " + wellknown.DefaultDomain + "/ns/" + in.Name + "/sa/client, to port 8080", "refused:  everyone else",
	}, "describe", "pod", "server", "-n", in.Name)
	says(t, []string{"NetworkPolicy " + in.Name + "/guard", "AMB0022"}, "describe", "pod", "client", "-n", in.Name)
	says(t, []string{"callers", "ZtunnelAccepted", "strict"}, "status", "-n", in.Name)
	says(t, []string{"callers"}, "ztunnel-config", "policy", "--node", near, "--policy-namespace", in.Name)
	says(t, []string{"server", server.Status.PodIP, "HBONE"}, "ztunnel-config", "workload", "--node", far, "--workload-namespace", in.Name)
	says(t, []string{"server", "1/1"}, "ztunnel-config", "service", "--service-namespace", in.Name)
}

// Findings come from the cluster, and from files as if they were applied.
func TestAnalyze(t *testing.T) {
	n := mesh.Namespace(t, "analyzed", kit.Ambient())
	n.Pod("server")
	n.Service("server")
	clean, err := mesh.Ambit(t.Context(), "analyze", "-n", n.Name)
	if err != nil || !strings.Contains(clean, "Nothing to report in namespace "+n.Name) {
		t.Errorf("nothing is wrong: %s, %v", clean, err)
	}
	file := filepath.Join(t.TempDir(), "guard.yaml")
	text := strings.ReplaceAll(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: guard, namespace: $NS},
 spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}}`, "$NS", n.Name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := mesh.Ambit(t.Context(), "analyze", file); err == nil || !strings.Contains(out, "Error [AMB0022] (NetworkPolicy "+n.Name+"/guard "+file+":1)") {
		t.Errorf("with a file beside the cluster: %s, %v", out, err)
	}
	if out, err := mesh.Ambit(t.Context(), "analyze", "--use-kube=false", file); err != nil {
		t.Errorf("the file alone cuts nobody off: %s, %v", out, err)
	}
	n.MustApply(text)
	if out, err := mesh.Ambit(t.Context(), "analyze", "-n", n.Name, "-o", "json"); err == nil || !strings.Contains(out, `"code": "AMB0022"`) {
		t.Errorf("of the cluster: %s, %v", out, err)
	}
}

// A bug report holds what is needed, and no secret.
func TestBugReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.tar.gz")
	ambit(t, "bug-report", "--output", file)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	secrets, err := mesh.Kube.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	shape := regexp.MustCompile(`PRIVATE KEY|eyJ[A-Za-z0-9_-]{8,}\.`)
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(h.Name, "ambit-bug-report/"))
		if found := shape.Find(text); found != nil {
			t.Errorf("%s: %s", h.Name, found)
		}
		for _, s := range secrets.Items {
			if strings.Contains(h.Name, "secret") {
				t.Errorf("%s is in the archive", h.Name)
			}
			for field, value := range s.Data {
				if strings.HasSuffix(field, "key.pem") && (bytes.Contains(text, value) || bytes.Contains(text, []byte(base64.StdEncoding.EncodeToString(value)))) {
					t.Errorf("%s holds %s of secret %s/%s", h.Name, field, s.Namespace, s.Name)
				}
			}
		}
	}
	all := strings.Join(names, "\n")
	for _, want := range []string{`(?m)^ambitd/.*/debug_syncz$`, `(?m)^ambit-cni/.*/debug_pods$`, `(?m)^ztunnel/.*/config_dump$`, `(?m)^ztunnel/.*/istio-proxy.log$`, `(?m)^objects/authorizationpolicies.yaml$`} {
		if !regexp.MustCompile(want).MatchString(all) {
			t.Errorf("no %s in:\n%s", want, all)
		}
	}
	if slices.Contains(names, "errors.txt") {
		t.Errorf("something could not be collected")
	}
}

// A token is the API server's, for the audience that ambitd asks for.
func TestCreateToken(t *testing.T) {
	token := strings.TrimSpace(ambit(t, "create", "token", "--duration", "10m"))
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("this is no token: %d parts", len(parts))
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Aud []string
		Sub string
	}
	if err := json.Unmarshal(claims, &c); err != nil || !slices.Equal(c.Aud, []string{wellknown.TokenAudience}) || c.Sub != "system:serviceaccount:"+kit.SystemNamespace+":ztunnel" {
		t.Errorf("%+v, %v", c, err)
	}
}
