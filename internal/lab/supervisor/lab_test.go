package supervisor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
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
	if given := os.Getenv("LAB_TEST_ECHO"); given != "" {
		echoPath = given // run by a test, as somebody who has no Go
		return leak.Run(m)
	}
	echoPath = filepath.Join(dir, "echo")
	out, err := exec.Command("go", "build", "-o", echoPath, "github.com/ambit-mesh/ambit/test/echo").CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("building test/echo: %v\n%s", err, out))
	}
	return leak.Run(m)
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
  ipFamilyPolicy: PreferDualStack
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

func startLab(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = filepath.Join(t.TempDir(), "state")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.Start(ctx, cfg)
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
	l := startLab(t, lab.Config{Nodes: 2, YAML: demoYAML()})
	ctx := t.Context()
	st, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Pods) != 3 || len(st.Services) != 1 || st.Services[0].Endpoints != 2 {
		t.Fatalf("status: %+v", st)
	}
	client := lab.InPod("shop", "client")
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
				if _, err := l.Run(ctx, lab.InPod("shop", p.Name), echoPath, "get", "-n", "10", "-url", "http://web/"); err != nil {
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

// processes lists the processes whose command line mentions a text.
func processes(t *testing.T, text string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && e.Name() != fmt.Sprint(os.Getpid()) && strings.Contains(string(b), text) {
			out = append(out, e.Name()+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

func TestCrash(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	cfg := lab.Config{Nodes: 2, YAML: demoYAML(), StateDir: state}
	l, err := lab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	pods := processes(t, echoPath)
	if len(pods) < 2 {
		t.Fatalf("running: %v", pods)
	}
	if err := l.Crash(); err != nil {
		t.Fatal(err)
	}
	if left := processes(t, echoPath); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if left := processes(t, state); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), state) {
		t.Error("mounts are left")
	}
	if _, err := lab.Attach(state); err == nil {
		t.Error("attached to a dead lab")
	}
	// The next lab takes the place of the dead one.
	next := startLab(t, cfg)
	if _, err := lab.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second lab of the same state: %v", err)
	}
	if err := next.Crash(); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(state); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", state, err)
	}
}

// TestLifeline: a lab does not outlive the process that started it.
func TestLifeline(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	l, err := lab.Start(t.Context(), lab.Config{Nodes: 1, StateDir: state})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Lifeline.Close(); err != nil {
		t.Fatal(err)
	}
	<-l.Exited
	if err := lab.Down(state); err != nil {
		t.Fatal(err)
	}
}

func TestLivePods(t *testing.T) {
	l := startLab(t, lab.Config{Nodes: 2, YAML: demoYAML()})
	ctx := t.Context()
	before, _ := l.Status(ctx)
	yes, no := "yes", "web2"
	// A label of a running pod changes without a new process; a service
	// follows labels.
	if err := l.Label(ctx, "pod", "shop", "client", map[string]*string{"marked": &yes, "app": &no}); err != nil {
		t.Fatal(err)
	}
	after, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := before.Pod("shop", "client")
	b, _ := after.Pod("shop", "client")
	if a.UID != b.UID || a.PIDs[0] != b.PIDs[0] {
		t.Errorf("a label restarted the pod: %+v, %+v", a, b)
	}
	if err := l.Delete(ctx, "deploy", "shop", "web"); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Run(ctx, lab.InPod("shop", "client"), echoPath, "get", "-url", "http://web/"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a service without pods: %q, %v", out, err)
	}
	// A broken object changes nothing.
	if err := l.Apply(ctx, "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {nodeName: node9, containers: [{name: a}]}"); err == nil {
		t.Error("a pod on a node that does not exist was accepted")
	}
	if _, err := os.Stat(filepath.Join(l.Dirs.Config(), "pod.default.x.yaml")); err == nil {
		t.Error("a refused object was written")
	}
	// A program that ends is started again.
	if err := l.Apply(ctx, "apiVersion: v1\nkind: Pod\nmetadata: {name: brief}\nspec: {containers: [{name: a, command: [/bin/sh, -c, 'echo some last words; exit 3']}]}"); err != nil {
		t.Fatal(err)
	}
	st, err := l.Wait(ctx, func(s *lab.Status) bool { p, _ := s.Pod("default", "brief"); return p.Restarts > 1 })
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := st.Pod("default", "brief"); !strings.Contains(p.Message, "some last words") {
		t.Errorf("message: %q", p.Message)
	}
}

// TestUserNamespace runs this test again as a user without any rights.
func TestUserNamespace(t *testing.T) {
	if os.Geteuid() == 0 {
		asNobody(t)
		return
	}
	l := startLab(t, lab.Config{Nodes: 2, YAML: os.Getenv("LAB_TEST_YAML")})
	out, err := l.Run(t.Context(), lab.InPod("shop", "client"), os.Getenv("LAB_TEST_ECHO"), "get", "-n", "4", "-url", "http://web/")
	if err != nil || strings.Count(out, "answers") != 4 {
		t.Fatalf("%q, %v", out, err)
	}
	if st, _ := l.Status(t.Context()); !st.Unprivileged {
		t.Error("not unprivileged")
	}
}

func asNobody(t *testing.T) {
	const nobody = 65534
	// Copies where nobody may read them: the originals are in root's caches.
	dir := filepath.Dir(echoPath)
	self := filepath.Join(dir, "lab.test")
	_ = os.Remove(self) // of an earlier run
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(dir, "nobody-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestUserNamespace$", "-test.v")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp, "LAB_TEST_YAML="+demoYAML(), "LAB_TEST_ECHO="+echoPath)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestUserNamespace") {
		t.Fatalf("%v\n%s", err, out)
	}
}
