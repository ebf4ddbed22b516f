package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestDamagedState: ambitd does not begin with a new identity when it cannot
// read its old one: it says which file is wrong, and what to do, and ends.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	files := stateFiles(t)
	for _, damage := range []struct {
		name string
		do   func([]byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"cut in half", func(b []byte) []byte { return b[:len(b)/2] }},
		{"noise", func(b []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(b)) }},
	} {
		for name := range files {
			t.Run(name+" "+damage.name, func(t *testing.T) {
				dir := t.TempDir()
				for n, b := range files {
					if n == name {
						b = damage.do(b)
					}
					if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				out, err := runAmbitd(t, dir, time.Minute)
				if err == nil {
					t.Fatalf("ambitd runs: %s", out)
				}
				if e := contains(out, filepath.Join(dir, name), "remove"); e != nil {
					t.Error(e)
				}
				if strings.Contains(out, "goroutine ") {
					t.Errorf("ambitd fell: %s", out)
				}
				if b, _ := os.ReadFile(filepath.Join(dir, name)); !bytes.Equal(b, damage.do(files[name])) {
					t.Error("the damaged file was replaced: its owner may have wanted to repair it")
				}
			})
		}
	}
	t.Run("trust bundle", func(t *testing.T) {
		dir := t.TempDir()
		for n, b := range files {
			if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		root := filepath.Join(dir, "root-cert.pem")
		if err := os.WriteFile(root, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		stopWhen(t, dir, func() bool { b, _ := os.ReadFile(root); return strings.Contains(string(b), "BEGIN CERTIFICATE") })
	})
}

// stateFiles is what ambitd must find again: made by one that ran.
func stateFiles(t *testing.T) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	stopWhen(t, dir, func() bool {
		_, err := os.Stat(filepath.Join(dir, "root-cert.pem"))
		n, _ := filepath.Glob(filepath.Join(dir, "*"))
		return err == nil && len(n) >= 4
	})
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "root-cert.pem" || strings.HasSuffix(d.Name(), ".lock") {
			return err
		}
		b, err := os.ReadFile(path)
		out[d.Name()] = b
		return err
	})
	if err != nil || len(out) < 2 {
		t.Fatalf("state files: %v, %v", out, err)
	}
	return out
}

// runAmbitd runs it to its end, for at most a time.
func runAmbitd(t *testing.T, state string, limit time.Duration) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := ambitd(ctx, t, state).CombinedOutput()
	if ctx.Err() != nil {
		return string(out), nil // it ran
	}
	return string(out), err
}

// stopWhen runs it until a condition holds.
func stopWhen(t *testing.T, state string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := ambitd(ctx, t, state)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil && !cond() {
		time.Sleep(20 * time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Errorf("waited in vain: %s", out.String())
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
}

func ambitd(ctx context.Context, t *testing.T, state string) *exec.Cmd {
	const wherever = "127.0.0.1:0"
	return exec.CommandContext(ctx, rig.Bin("ambitd"), "--config-dir", t.TempDir(), "--state-dir", state,
		"--listen", wherever, "--monitor", wherever, "--admin", wherever)
}

// TestAddressReuse: the address of a pod that was deleted goes to another pod
// at once; nothing meant for the one ever reaches the other, and no tunnel of
// the past is in the way.
func TestAddressReuse(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: town, PodAddresses: 2})
	load := w.StartLoad(far, http(w, false), 50) // tunnels to the old pod are in use
	for i := range 3 {
		old := w.Pod("shop", "web", false)
		held := w.MustHold(far, echo(w, true))
		account := fmt.Sprintf("web%d", i)
		next := strings.ReplaceAll(town, "serviceAccountName: web", "serviceAccountName: "+account)
		w.MustDelete("Pod", "shop", "web")
		if err := held.Ping(); err == nil {
			t.Error("a connection outlives its server")
		}
		w.MustApply(next)
		if now := w.Pod("shop", "web", false); now != old {
			t.Fatalf("the new pod has address %s, not %s", now, old)
		}
		healthy(w)
		// From now on everything must work, at the first attempt.
		clean := w.StartLoad(near, http(w, false), 50)
		for _, v6 := range []bool{false, true} {
			for _, from := range []lab.Where{far, near} {
				if err := tell(w, from, netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)); err != nil {
					t.Error(err)
				}
			}
			w.MustHold(far, echo(w, v6))
		}
		clean.Seconds(1)
		clean.Clean()
		w.Eventually("the server proved its new identity", func() error {
			if len(w.AccessLines("node2", `direction="outbound"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/`+account+`"`)) == 0 {
				return fmt.Errorf("no line with %s", account)
			}
			return nil
		})
	}
	if r := load.Stop(); r.OK == 0 {
		t.Error("nothing was answered")
	}
}

// healthy waits until the server is ready to all.
func healthy(w *rig.World) {
	w.T().Helper()
	if _, err := w.WaitReady(w.T().Context()); err != nil {
		w.T().Fatal(err)
	}
	allHealthy(w)
}

// TestLabCrash: a whole mesh whose supervisor is killed leaves no process,
// namespace or mount, and the next lab of that name removes its files.
func TestLabCrash(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "lab")
	cfg := lab.Config{Name: "crash", StateDir: state, Nodes: 2, Mesh: true, BinDir: filepath.Dir(rig.Bin("ambitd")), YAML: strings.ReplaceAll(town, "ECHO", rig.Bin("echo"))}
	l, err := lab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", s.PID))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(inPIDNamespace(t, ns)); n < 8 {
		t.Fatalf("only %d processes in the lab", n)
	}
	if err := l.Crash(); err != nil {
		t.Fatal(err)
	}
	if left := inPIDNamespace(t, ns); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), state) {
		t.Errorf("mounts are left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, "ambitd", "root-cert.pem")); err != nil {
		t.Errorf("a crash removes no files: %v", err)
	}
	cfg.YAML = ""
	if l, err = lab.Start(t.Context(), cfg); err != nil {
		t.Fatalf("the next lab: %v", err)
	}
	if s, err = l.Status(t.Context()); err != nil || len(s.Pods) != 0 {
		t.Errorf("something of the dead lab lives on: %+v, %v", s, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("files are left: %v", err)
	}
}

// inPIDNamespace lists the processes in a PID namespace. Every process of a
// lab is in the lab's, and holds its network namespaces.
func inPIDNamespace(t *testing.T, ns string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		if in, err := os.Readlink(p + "/ns/pid"); err != nil || in != ns {
			continue
		}
		// What has ended is not left, but only not yet noticed by its parent:
		// this program, in the case of the supervisor.
		if b, err := os.ReadFile(p + "/status"); err == nil && !strings.Contains(string(b), "State:\tZ") {
			out = append(out, p)
		}
	}
	return out
}
