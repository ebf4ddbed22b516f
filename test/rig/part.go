package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Part returns the path of a program of test/parts, which it builds when it is not among
// the programs.
func (w *World) Part(name string) string {
	w.t.Helper()
	path := filepath.Join(binDir, "parts", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	out, err := exec.CommandContext(w.ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(w.ctx, "go", "build", "-trimpath", "-o", path, ".")
	cmd.Dir = filepath.Join(strings.TrimSpace(string(out)), "test", "parts", name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if b, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatal(fmt.Errorf("building %s: %w\n%s", name, err, b))
	}
	return path
}
