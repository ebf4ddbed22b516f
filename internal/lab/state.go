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

// Dirs is the layout of a state directory. What is under run is a file system
// of the lab's own: outside of it an empty directory.
type Dirs struct{ Root string }

func (d Dirs) record() string { return filepath.Join(d.Root, "lab.json") }

// Control returns the path of the control socket.
func (d Dirs) Control() string { return filepath.Join(d.Root, controlSocket) }

// Config returns the path of the directory of the mesh's objects.
func (d Dirs) Config() string { return filepath.Join(d.Root, "config") }

// Objects returns the path of the directory of objects that only the lab understands.
func (d Dirs) Objects() string { return filepath.Join(d.Root, "objects") }

// Generated returns the path of the directory of objects that the lab has made.
func (d Dirs) Generated() string { return filepath.Join(d.Root, "generated") }

// Status returns the path of the directory of objects with what only the lab knows of pods.
func (d Dirs) Status() string { return filepath.Join(d.Root, "status") }

// Ambitd returns the path of ambitd's state directory.
func (d Dirs) Ambitd() string { return filepath.Join(d.Root, "ambitd") }
func (d Dirs) logs() string   { return filepath.Join(d.Root, "logs") }

// Run returns the path of the directory that only processes of the lab see.
func (d Dirs) Run() string { return filepath.Join(d.Root, "run") }

// Node returns the path of the directory of a node.
func (d Dirs) Node(name string) string { return filepath.Join(d.Run(), name) }

// PodNetns returns the path of the directory of the namespaces of a node's pods.
func (d Dirs) PodNetns(node string) string { return filepath.Join(d.Node(node), "netns") }

// Zds returns the path of the socket of a node agent for its ztunnel.
func (d Dirs) Zds(node string) string { return filepath.Join(d.Node(node), "ztunnel.sock") }

// Plugin returns the path of the socket of a node agent for the CNI plugin.
func (d Dirs) Plugin(node string) string { return filepath.Join(d.Node(node), "cni.sock") }

// Token returns the path of the file of a ztunnel's credentials.
func (d Dirs) Token(node string) string { return filepath.Join(d.Node(node), "token") }

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

// ReadRecord returns nil when there is no lab in the directory.
func ReadRecord(d Dirs) (*record, error) {
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

func writeRecord(d Dirs, r *record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(d.record(), append(b, '\n'), 0o600)
}

// WriteFile replaces a file in one step.
func WriteFile(path string, b []byte, mode os.FileMode) error {
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
func claim(d Dirs, cfg Config) error {
	r, err := ReadRecord(d)
	if err != nil {
		return err
	}
	if r != nil {
		if r.Alive() {
			return fmt.Errorf("lab %q is running already (pid %d, %s): end it with `ambit lab down --name %s`", r.Config.Name, r.PID, d.Root, r.Config.Name)
		}
		if err := removeState(d); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(d.Root, 0o700); err != nil {
		return fmt.Errorf("making the lab's state directory: %w", err)
	}
	if entries, err := os.ReadDir(d.Root); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("%s is neither empty nor a lab's state directory: give another with --state-dir", d.Root)
	}
	if err := writeRecord(d, &record{proc.Of(os.Getpid()), cfg}); err != nil {
		return err
	}
	for _, dir := range []string{d.Config(), d.Objects(), d.Generated(), d.Status(), d.Ambitd(), d.logs(), d.Run()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// removeState deletes a state directory that has a lab's record in it.
func removeState(d Dirs) error {
	if _, err := os.Stat(d.record()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// The record goes last: a removal that was interrupted can be repeated.
	entries, err := os.ReadDir(d.Root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p := filepath.Join(d.Root, e.Name()); p != d.record() {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(d.record()); err != nil {
		return err
	}
	// The directory, and those above it that only labs use, when empty.
	_ = os.Remove(d.Root)
	if parent := filepath.Dir(d.Root); filepath.Base(parent) == "lab" {
		if os.Remove(parent) == nil {
			_ = os.Remove(filepath.Dir(parent))
		}
	}
	return nil
}

func down(stateDir string) error {
	d := Dirs{stateDir}
	r, err := ReadRecord(d)
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
