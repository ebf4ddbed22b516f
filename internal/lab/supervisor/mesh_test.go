package supervisor

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
)

// binaries are the programs of the mesh, built once for all tests, or those in
// $AMBIT_BIN.
var binaries = sync.OnceValues(func() (string, error) {
	if given := os.Getenv("AMBIT_BIN"); given != "" {
		return given, nil
	}
	dir := filepath.Join(filepath.Dir(echoPath), "bin")
	out, err := exec.Command("go", "build", "-o", dir+"/",
		"github.com/ambit-mesh/ambit/cmd/ambitd", "github.com/ambit-mesh/ambit/cmd/ztunnel", "github.com/ambit-mesh/ambit/cmd/ambit-cni", "github.com/ambit-mesh/ambit/cmd/waypoint").CombinedOutput()
	if err != nil {
		return "", &buildError{string(out)}
	}
	return dir, nil
})

type buildError struct{ output string }

func (e *buildError) Error() string { return "building the programs: " + e.output }

func startMesh(t *testing.T, cfg lab.Config) *lab.Lab {
	t.Helper()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Mesh, cfg.BinDir = true, bin
	return startLab(t, cfg)
}

// enrolled is whether a node's proxy serves a pod.
func enrolled(ctx context.Context, t *testing.T, l *lab.Lab, node, pod string) bool {
	t.Helper()
	b, err := l.Admin(ctx, "ztunnel/"+node, admin.PathDump)
	if err != nil {
		t.Fatal(err)
	}
	var dump admin.Ztunnel
	if err := json.Unmarshal(b, &dump); err != nil {
		t.Fatal(err)
	}
	for _, w := range dump.Pods {
		if w.Info.Name == pod {
			return w.State == "Up"
		}
	}
	return false
}

const ambientPod = `
apiVersion: v1
kind: Namespace
metadata: {name: late, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: late}
spec: {containers: [{name: a}]}
`

// TestFailClosed: a pod that belongs to the mesh does not start before it is
// in it, and starts by itself when the agent is there again.
func TestFailClosed(t *testing.T) {
	l := startMesh(t, lab.Config{Nodes: 1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.Stop(ctx, "ambit-cni/node1", lab.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(ctx, ambientPod); err != nil {
		t.Fatal(err)
	}
	st, err := l.Wait(ctx, func(s *lab.Status) bool { p, _ := s.Pod("late", "p"); return p.Message != "" })
	if err != nil {
		t.Fatal(err)
	}
	p, _ := st.Pod("late", "p")
	if len(p.PIDs) > 0 || p.Ready || !p.Captured || !strings.Contains(p.Message, "does not start before") || !strings.Contains(p.Message, "ambit-cni on node1") {
		t.Errorf("pod without an agent: %+v", p)
	}
	if err := l.Continue(ctx, "ambit-cni/node1"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if !enrolled(ctx, t, l, "node1", "p") {
		t.Error("the pod runs, and is not in the mesh")
	}
}

// TestComponents: what ends is started again; a ztunnel that is handed over
// gets a successor first.
func TestComponents(t *testing.T) {
	l := startMesh(t, lab.Config{Nodes: 1, YAML: ambientPod, UserNamespace: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, name := range []string{lab.Ambitd, "ambit-cni/node1", "ztunnel/node1"} {
		before := componentOf(ctx, t, l, name)
		if err := l.Kill(ctx, name, lab.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Wait(ctx, func(s *lab.Status) bool { c, _ := s.Component(name); return c.Ready && c.PID != before.PID }); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if c := componentOf(ctx, t, l, name); c.Restarts != 1 {
			t.Errorf("%s: %d restarts", name, c.Restarts)
		}
		for _, mode := range []lab.RestartMode{lab.RestartGraceful, lab.RestartKill} {
			if err := l.Restart(ctx, name, mode); err != nil {
				t.Fatalf("%s: %s: %v", name, mode, err)
			}
		}
	}
	// A successor that does not get ready changes nothing.
	before := componentOf(ctx, t, l, "ztunnel/node1")
	if err := l.Replace(ctx, "ztunnel/node1", "/bin/false", lab.RestartGraceful); err == nil {
		t.Error("handed over to a program that ends at once")
	}
	if after := componentOf(ctx, t, l, "ztunnel/node1"); after.PID != before.PID || !after.Ready {
		t.Errorf("the old generation: %+v, before %+v", after, before)
	}
	if _, err := l.Wait(ctx, func(*lab.Status) bool { return enrolled(ctx, t, l, "node1", "p") }); err != nil {
		t.Fatal(err)
	}
}

func componentOf(ctx context.Context, t *testing.T, l *lab.Lab, name string) lab.ComponentStatus {
	t.Helper()
	st, err := l.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := st.Component(name)
	if !ok {
		t.Fatalf("no %s", name)
	}
	return c
}
