package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/test/cluster/local"
)

func TestHelpNamesEveryCommand(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), "-h", nil, &out); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"build", "up", "down", "load", "exec", "restart", "stop", "start", "status", "env"} {
		if !strings.Contains(out.String(), "\n  "+name+" ") {
			t.Errorf("help does not say what %s does", name)
		}
		if err := run(t.Context(), name, []string{"-h"}, &out); err != nil {
			t.Errorf("%s -h: %v", name, err)
		}
	}
	if err := run(t.Context(), "nonsense", nil, &out); err == nil {
		t.Error("an unknown command is no error")
	}
}

func TestCommandsSayThatThereIsNoCluster(t *testing.T) {
	state := filepath.Join(t.TempDir(), "none")
	for _, args := range [][]string{{"env"}, {"status"}, {"load", "a.tar"}, {"exec", "node1", "true"}, {"restart", "node1"}, {"stop", "node1", "kubelet"}} {
		err := run(t.Context(), args[0], append([]string{"-state", state}, args[1:]...), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), "make cluster") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for script, want := range map[string]int{"exit 7": 7, "kill -TERM $$": 128 + 15} {
		if got, ok := exitCode(exec.Command("sh", "-c", script).Run()); !ok || got != want {
			t.Errorf("%s: %d %v, want %d", script, got, ok, want)
		}
	}
	if _, ok := exitCode(errors.New("else")); ok {
		t.Error("an exit code of no program")
	}
}

func TestMissing(t *testing.T) {
	all := []need{{"/a", "a", "x"}, {"/b", "b", "y"}}
	got := missing(all, func(p string) bool { return p == "/a" })
	if len(got) != 1 || got[0].pkg != "b" || len(all) != 2 {
		t.Errorf("%v", got)
	}
}

func TestKubernetesFlags(t *testing.T) {
	got := kubernetesFlags("v1.36.3")
	want := []string{"k8s.io/component-base/version.gitVersion=v1.36.3", "k8s.io/component-base/version.gitMajor=1",
		"k8s.io/component-base/version.gitMinor=36", "k8s.io/client-go/pkg/version.gitVersion=v1.36.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if kubernetesFlags("nonsense") != nil {
		t.Error("flags of no version")
	}
}

// What a cluster needs is what the tools make.
func TestToolsMakeEveryProgram(t *testing.T) {
	made := map[string]bool{"images.tar": true}
	for p := range ownPrograms {
		made[p] = true
	}
	for _, tl := range tools {
		for _, p := range tl.makes() {
			made[p] = true
		}
	}
	for _, p := range local.Programs() {
		if !made[p] {
			t.Errorf("nothing makes %s", p)
		}
	}
}

func TestAToolIsBuiltOnceForTheSameSources(t *testing.T) {
	modules, bin := t.TempDir(), t.TempDir()
	source := filepath.Join(modules, "x", "main.go")
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(modules, "x", "go.mod"), "module example.org/x\n\ngo 1.26\n")
	program := func(says string) string { return "package main\n\nfunc main() { print(\"" + says + "\") }\n" }
	write(source, program("one"))
	var out bytes.Buffer
	b := &builder{ctx: t.Context(), modules: modules, bin: bin, out: &out}
	tl := tool{name: "x", packages: []string{"."}, to: "x", links: []string{"y"}}
	built := func(want bool, says string) {
		t.Helper()
		out.Reset()
		if err := b.tool(tl); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "building"); got != want {
			t.Errorf("built: %v, want %v", got, want)
		}
		got, err := exec.Command(filepath.Join(bin, "y")).CombinedOutput()
		if err != nil || string(got) != says {
			t.Errorf("%q %v, want %q", got, err, says)
		}
	}
	built(true, "one")
	built(false, "one")
	write(source, program("two"))
	built(true, "two")
	if err := os.Remove(filepath.Join(bin, "x")); err != nil {
		t.Fatal(err)
	}
	built(true, "two")
	if left, _ := filepath.Glob(filepath.Join(bin, ".build-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	write(source, "nonsense")
	if err := b.tool(tl); err == nil || !strings.Contains(err.Error(), "main.go") {
		t.Errorf("a program that does not compile: %v", err)
	}
}
