package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/proc"
)

// dirs is a cluster's state directory: everything that `up` makes and `down`
// removes, beside cgroups.
type dirs struct{ root string }

func (d dirs) config() string              { return filepath.Join(d.root, "cluster.json") }
func (d dirs) lock() string                { return d.root + ".lock" }
func (d dirs) kubeconfig() string          { return filepath.Join(d.root, "kubeconfig") }
func (d dirs) pki() string                 { return filepath.Join(d.root, "pki") }
func (d dirs) etc() string                 { return filepath.Join(d.root, "etc") }
func (d dirs) logs() string                { return filepath.Join(d.root, "logs") }
func (d dirs) images() string              { return filepath.Join(d.root, "images") }
func (d dirs) netnses() string             { return filepath.Join(d.root, "netns") }
func (d dirs) processes() string           { return filepath.Join(d.root, "pids") }
func (d dirs) apiReady() string            { return filepath.Join(d.root, "api-ready") }
func (d dirs) log(name string) string      { return filepath.Join(d.logs(), name+".log") }
func (d dirs) netns(name string) string    { return filepath.Join(d.netnses(), name) }
func (d dirs) process(name string) string  { return filepath.Join(d.processes(), name) }
func (d dirs) node(name string) string     { return filepath.Join(d.root, "nodes", name) }
func (d dirs) diskConf(name string) string { return filepath.Join(d.root, "disks", name, "cni-conf") }
func (d dirs) diskBin(name string) string  { return filepath.Join(d.root, "disks", name, "cni-bin") }
func (d dirs) control(name string) string  { return filepath.Join(d.root, "control", name) }

// cgroup is the name of the cluster's control group: its state directory's
// path, which tells it from every other cluster's.
func (d dirs) cgroup() string {
	return "ambit-cluster" + strings.ReplaceAll(d.root, "/", "-")
}

func (d dirs) make() error {
	for _, dir := range []string{d.pki(), d.etc(), d.logs(), d.images(), d.netnses(), d.processes(), d.node(""), d.control("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return os.Chmod(d.pki(), 0o700)
}

// record is what a running cluster was made with.
type record struct {
	Config
	Port int // of the API server on the machine's loopback
}

func readRecord(d dirs) (*record, error) {
	b, err := os.ReadFile(d.config())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", d.config(), err)
	}
	return r, nil
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// exclusive locks out other commands on the same cluster until the returned
// function is called, or the process ends.
func (d dirs) exclusive() (func(), error) {
	if err := os.MkdirAll(filepath.Dir(d.root), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another command is bringing the cluster in %s up or down: wait for it", d.root)
	}
	return func() { _ = os.Remove(d.lock()); _ = f.Close() }, nil
}

func (d dirs) recordProcess(name string, pid int) error {
	return writeFile(d.process(name), fmt.Appendf(nil, "%d %d\n", pid, proc.Of(pid).Start), 0o644)
}

// readProcess returns the recorded process, or false when it is gone.
func (d dirs) readProcess(name string) (proc.Run, bool) {
	b, err := os.ReadFile(d.process(name))
	if err != nil {
		return proc.Run{}, false
	}
	var p proc.Run
	if _, err := fmt.Sscan(string(b), &p.PID, &p.Start); err != nil || p.PID <= 1 {
		return proc.Run{}, false
	}
	return p, p.Alive()
}

// processNames lists who has been recorded.
func (d dirs) processNames() []string {
	var names []string
	entries, _ := os.ReadDir(d.processes())
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".tmp" {
			names = append(names, e.Name())
		}
	}
	return names
}

// endTimeout bounds how long a process may take to end that was killed.
const endTimeout = 20 * time.Second

// kill ends a process.
func kill(p proc.Run) error {
	h, err := p.Open()
	if err != nil || h == nil {
		return err
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("ending process %d: %w", p.PID, err)
	}
	if !h.Wait(endTimeout) {
		return fmt.Errorf("process %d was killed and has not ended after %s", p.PID, endTimeout)
	}
	return nil
}

func writeRecord(d dirs, r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.config(), append(b, '\n'), 0o644)
}
