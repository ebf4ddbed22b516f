package supervisor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// TestProbeFailsOnce: a pod that is ready stays so when one probe fails, and the next one
// passes. On a machine under load that happens to pods that are well.
func TestProbeFailsOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "probes")
	l := startLab(t, lab.Config{YAML: strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: web
    command: [/bin/sleep, "1000"]
    readinessProbe: {periodSeconds: 1, timeoutSeconds: 60, exec: {command: [/bin/sh, -c, "echo >>FILE; test $(wc -l <FILE) != 2"]}}
`, "FILE", file)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if b, _ := os.ReadFile(file); strings.Count(string(b), "\n") > 3 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if s, err := l.Wait(ctx, func(s *lab.Status) bool { return len(s.NotReady()) > 0 }); err == nil {
		t.Errorf("after one failure: %q", s.NotReady())
	}
	if b, err := os.ReadFile(file); strings.Count(string(b), "\n") < 4 {
		t.Errorf("the pod was not probed four times: %q, error %v", b, err)
	}
}
