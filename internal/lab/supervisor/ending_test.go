package supervisor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
)

// ending is a service of one pod that ends when a file is there, and of another pod whose hook
// makes a request that nothing answers.
func ending(file string) string {
	return strings.NewReplacer("ECHO", echoPath, "FILE", file).Replace(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 60
  containers:
  - name: web
    command: [ECHO, server]
    readinessProbe: {tcpSocket: {port: 8080}}
    lifecycle: {preStop: {exec: {command: [/bin/sh, -c, "until [ -e FILE ]; do sleep 0.1; done"]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  nodeName: node1
  containers:
  - name: main
    command: [/bin/sleep, "1000"]
    lifecycle: {preStop: {httpGet: {port: 7999, path: /stop}}}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node2, containers: [{name: client}]}
`)
}

// TestPodEnds: the object of a pod whose end was asked for says so until the pod is gone. The
// pod, which is still ready and the only one, is what its service leads to. A hook that fails
// is reported, and the pod still ends.
func TestPodEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "end")
	l := startLab(t, lab.Config{Nodes: 2, YAML: ending(file)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	gone := make(chan error, 1)
	go func() { gone <- l.Delete(ctx, "Pod", "default", "web") }()
	s, err := l.Wait(ctx, func(s *lab.Status) bool {
		p, ok := s.Pod("default", "web")
		return ok && p.Phase == ends.Terminating
	})
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := os.ReadFile(filepath.Join(l.Dirs.Status(), overlayWriter, "pod.default.web.yaml"))
	for _, part := range []string{"deletionTimestamp:", "deletionGracePeriodSeconds: 60", `status: "True"`} {
		if err != nil || !strings.Contains(string(overlay), part) {
			t.Errorf("%q is not in the pod's object, error %v:\n%s", part, err, overlay)
		}
	}
	if b, err := l.Get(ctx, lab.InPod("default", "client"), "http://"+s.Services[0].IPs[0]+"/"); err != nil || !strings.Contains(string(b), " answers ") {
		t.Errorf("the service of the pod answers %q, error %v", b, err)
	}
	select {
	case err := <-gone:
		t.Fatalf("the pod is gone before its hook was over, error %v", err)
	default:
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(ctx, "Pod", "default", "failing"); err != nil {
		t.Fatal(err)
	}
	s, err = l.Status(ctx)
	if err != nil || len(s.Pods) != 1 {
		t.Errorf("pods %+v, error %v", s.Pods, err)
	}
	reported := false
	for _, e := range s.Events {
		reported = reported || e.Object == "pod default/failing" && strings.Contains(e.Message, "hook preStop: ")
	}
	if !reported {
		t.Errorf("the hook that failed is not in the events: %+v", s.Events)
	}
}
