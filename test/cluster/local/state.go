package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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

// process names one run of a process: a number that was given to another
// process later does not have the same start time.
type process struct {
	pid   int
	start uint64 // clock ticks after boot
}

// startTime is 0 when there is no such process, or it has ended.
func startTime(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the name, in parentheses, which may hold anything, the state is
	// field 3 and the start time field 22.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || string(f[0]) == "Z" || string(f[0]) == "X" {
		return 0
	}
	t, _ := strconv.ParseUint(string(f[19]), 10, 64)
	return t
}

func (d dirs) recordProcess(name string, pid int) error {
	return writeFile(d.process(name), fmt.Appendf(nil, "%d %d\n", pid, startTime(pid)), 0o644)
}

// readProcess returns the recorded process, or false when it is gone.
func (d dirs) readProcess(name string) (process, bool) {
	b, err := os.ReadFile(d.process(name))
	if err != nil {
		return process{}, false
	}
	var p process
	if _, err := fmt.Sscan(string(b), &p.pid, &p.start); err != nil || p.pid <= 1 || p.start == 0 {
		return process{}, false
	}
	return p, startTime(p.pid) == p.start
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

// kill ends a process. The check comes after opening: from then on the
// descriptor cannot mean another process.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if startTime(p.pid) != p.start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d: %w", p.pid, err)
	}
	return awaitEnd(fd, p.pid)
}

// awaitEnd: the first process of a PID namespace ends after all others in it.
func awaitEnd(fd, pid int) error {
	for deadline := 20; deadline > 0; deadline-- {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000) //nolint:gosec // a descriptor
		if n == 1 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("process %d was killed and has not ended after 20s", pid)
}

func writeRecord(d dirs, r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.config(), append(b, '\n'), 0o644)
}
