package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/proc"
)

// dirs is the layout of a state directory. What is under run is a file system
// of the lab's own: outside of it an empty directory.
type dirs struct{ root string }

func (d dirs) record() string    { return filepath.Join(d.root, "lab.json") }
func (d dirs) control() string   { return filepath.Join(d.root, controlSocket) }
func (d dirs) config() string    { return filepath.Join(d.root, "config") }
func (d dirs) objects() string   { return filepath.Join(d.root, "objects") } // what only the lab itself understands
func (d dirs) generated() string { return filepath.Join(d.root, "generated") }
func (d dirs) status() string    { return filepath.Join(d.root, "status") }
func (d dirs) ambitd() string    { return filepath.Join(d.root, "ambitd") }
func (d dirs) logs() string      { return filepath.Join(d.root, "logs") }
func (d dirs) run() string       { return filepath.Join(d.root, "run") }

func (d dirs) node(name string) string     { return filepath.Join(d.run(), name) }
func (d dirs) podNetns(node string) string { return filepath.Join(d.node(node), "netns") }
func (d dirs) zds(node string) string      { return filepath.Join(d.node(node), "ztunnel.sock") }
func (d dirs) plugin(node string) string   { return filepath.Join(d.node(node), "cni.sock") }
func (d dirs) token(node string) string    { return filepath.Join(d.node(node), "token") }

const controlSocket = "control.sock"

// record is the file by which a later process finds the lab.
type record struct {
	proc.Run
	Config Config `json:"config"`
}

var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// DefaultStateDir is where a lab keeps its files unless told otherwise:
// /run/ambit/lab for root, the user's runtime directory for others.
func DefaultStateDir(name string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/run/ambit/lab", name)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "ambit", "lab", name)
	}
	return filepath.Join(os.TempDir(), "ambit-"+strconv.Itoa(os.Geteuid()), "lab", name)
}

// readRecord returns nil when there is no lab in the directory.
func readRecord(d dirs) (*record, error) {
	b, err := os.ReadFile(d.record())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", d.record(), err)
	}
	return r, nil
}

func writeRecord(d dirs, r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(d.record(), append(b, '\n'), 0o600)
}

// writeFile replaces a file in one step.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// claim makes an empty state directory with the calling process on record, so
// that two labs never share one.
func claim(d dirs, cfg Config) error {
	r, err := readRecord(d)
	if err != nil {
		return err
	}
	if r != nil {
		if r.Alive() {
			return fmt.Errorf("lab %q is running already (pid %d, %s): end it with `ambit lab down --name %s`", r.Config.Name, r.PID, d.root, r.Config.Name)
		}
		if err := removeState(d); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return fmt.Errorf("making the lab's state directory: %w", err)
	}
	if entries, err := os.ReadDir(d.root); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("%s is neither empty nor a lab's state directory: give another with --state-dir", d.root)
	}
	if err := writeRecord(d, &record{proc.Of(os.Getpid()), cfg}); err != nil {
		return err
	}
	for _, dir := range []string{d.config(), d.objects(), d.generated(), d.status(), d.ambitd(), d.logs(), d.run()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// removeState deletes a state directory that has a lab's record in it.
func removeState(d dirs) error {
	if _, err := os.Stat(d.record()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// The record goes last: a removal that was interrupted can be repeated.
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p := filepath.Join(d.root, e.Name()); p != d.record() {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(d.record()); err != nil {
		return err
	}
	// The directory, and those above it that only labs use, when empty.
	_ = os.Remove(d.root)
	if parent := filepath.Dir(d.root); filepath.Base(parent) == "lab" {
		if os.Remove(parent) == nil {
			_ = os.Remove(filepath.Dir(parent))
		}
	}
	return nil
}

func down(stateDir string) error {
	d := dirs{stateDir}
	r, err := readRecord(d)
	if err != nil || r == nil {
		return err
	}
	h, err := r.Open()
	if err != nil {
		return err
	}
	if h != nil {
		defer h.Close()
		_ = h.Signal(unix.SIGTERM)
		if !h.Wait(downTimeout) {
			_ = h.Signal(unix.SIGKILL)
			if !h.Wait(downTimeout) {
				return fmt.Errorf("lab %q (pid %d) does not end", r.Config.Name, r.PID)
			}
		}
	}
	return removeState(d)
}

// downTimeout is how long a lab may take to end in order. Pods are given less.
const downTimeout = 15 * time.Second
