package local

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/proc"
)

func TestARecordedProcessIsThatRunOfIt(t *testing.T) {
	d := dirs{t.TempDir()}
	if err := d.make(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	if err := d.recordProcess("x", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	p, up := d.readProcess("x")
	if !up || p.PID != cmd.Process.Pid {
		t.Fatalf("%+v %v", p, up)
	}
	// The same number with another start: somebody else.
	other := proc.Run{PID: p.PID, Start: p.Start + 1}
	if err := kill(other); err != nil {
		t.Fatal(err)
	}
	if _, up := d.readProcess("x"); !up {
		t.Fatal("killed a process by its number only")
	}
	if err := kill(p); err != nil {
		t.Fatal(err)
	}
	<-ended
	if _, up := d.readProcess("x"); up {
		t.Error("still there")
	}
	if err := kill(p); err != nil {
		t.Errorf("killing what is gone: %v", err)
	}
	for _, bad := range []string{"", "1 1", "0 0", "x y", "-5 3"} {
		if err := os.WriteFile(d.process("y"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if p, up := d.readProcess("y"); up {
			t.Errorf("%q is %+v", bad, p)
		}
	}
}

func TestCgroupMembers(t *testing.T) {
	const file = "12:cpu,cpuacct:/ambit-cluster-run-a/node1/kubepods\n0::/user.slice\n"
	for name, want := range map[string]bool{"ambit-cluster-run-a": true, "ambit-cluster-run-a/node1": true, "ambit-cluster-run": false, "ambit-cluster-run-a/node": false, "user.slice": true} {
		if memberOf(file, name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestStateDirectories(t *testing.T) {
	c := Config{State: "/run/a"}
	if err := c.complete(); err != nil || c.Nodes != 3 || c.Bin == "" {
		t.Errorf("%+v %v", c, err)
	}
	for what, c := range map[string]Config{
		"blank":      {State: "/run/a b"},
		"colon":      {State: "/run/a:b"},
		"long":       {State: "/run/" + strings.Repeat("a", 100)},
		"many nodes": {State: "/run/a", Nodes: maxNodes + 1},
		"port":       {State: "/run/a", Port: 70000},
	} {
		if err := c.complete(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if a, b := (dirs{"/run/a"}).cgroup(), (dirs{"/tmp/a"}).cgroup(); a == b {
		t.Errorf("two clusters in control group %s", a)
	}
}

// A directory that is not a cluster's is never emptied.
func TestDownLeavesOtherDirectoriesAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir := t.TempDir()
	keep := filepath.Join(dir, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down(dir); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
	if err := Down(filepath.Join(dir, "nothing")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "nothing.lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestOneCommandAtATime(t *testing.T) {
	d := dirs{filepath.Join(t.TempDir(), "c")}
	unlock, err := d.exclusive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.exclusive(); err == nil {
		t.Error("two at once")
	}
	unlock()
	unlock, err = d.exclusive()
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
