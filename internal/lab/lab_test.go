package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// echoPath is the program that the pods of the tests run.
var echoPath string

func TestMain(m *testing.M) {
	Main()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	// Readable for all: a test runs as another user.
	dir, err := os.MkdirTemp("", "lab-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	_ = os.Chmod(dir, 0o755)
	echoPath = filepath.Join(dir, "echo")
	out, err := exec.Command("go", "build", "-o", echoPath, "github.com/ambit-mesh/ambit/test/echo").CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("building test/echo: %v\n%s", err, out))
	}
	return m.Run()
}

// demoYAML is two servers behind a service, and a client on another node.
func demoYAML() string {
	return strings.ReplaceAll(`
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        command: [ECHO, server]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {port: http, path: /}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: node2
  containers: [{name: client}]
`, "ECHO", echoPath)
}

func startLab(t *testing.T, cfg Config) *Lab {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = filepath.Join(t.TempDir(), "state")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(cfg.StateDir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", cfg.StateDir, err)
		}
	})
	return l
}

func TestPlaintext(t *testing.T) {
	l := startLab(t, Config{Nodes: 2, YAML: demoYAML()})
	ctx := t.Context()
	st, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Pods) != 3 || len(st.Services) != 1 || st.Services[0].Endpoints != 2 {
		t.Fatalf("status: %+v", st)
	}
	client := InPod("shop", "client")
	pod, _ := st.Pod("shop", "client")
	t.Run("service", func(t *testing.T) {
		for _, host := range []string{"web", "web.shop.svc.cluster.local", st.Services[0].IPs[0], "[" + st.Services[0].IPs[1] + "]"} {
			out, err := l.Run(ctx, client, echoPath, "get", "-n", "20", "-url", "http://"+host+"/")
			if err != nil {
				t.Fatal(err)
			}
			names := map[string]bool{}
			for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
				f := strings.Fields(line)
				names[f[0]] = true
				if f[2] != pod.IPs[0] && f[2] != pod.IPs[1] {
					t.Errorf("server saw %s, client has %v", f[2], pod.IPs)
				}
			}
			if len(names) != 2 {
				t.Errorf("%s: answers came from %v, want two pods", host, names)
			}
		}
	})
	t.Run("hairpin", func(t *testing.T) {
		for _, p := range st.Pods {
			if strings.HasPrefix(p.Name, "web-") {
				if _, err := l.Run(ctx, InPod("shop", p.Name), echoPath, "get", "-n", "10", "-url", "http://web/"); err != nil {
					t.Error(err)
				}
			}
		}
	})
	t.Run("surroundings", func(t *testing.T) {
		out, err := l.Run(ctx, client, "/bin/sh", "-c", "hostname; cat /etc/resolv.conf; cat /etc/hosts")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"client\n", "search shop.svc.cluster.local", " web.shop.svc"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	})
}
