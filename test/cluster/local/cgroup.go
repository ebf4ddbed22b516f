package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// unified tells version 2, one tree for all controllers, from version 1.
func unified(root string) bool {
	_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
	return err == nil
}

// hierarchies lists the trees of control groups below root: one on version 2,
// one a controller (or set of controllers) on version 1.
func hierarchies(root string) ([]string, error) {
	if unified(root) {
		return []string{root}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("control groups: %w", err)
	}
	var all []string
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(root, e.Name(), "cgroup.procs")); e.IsDir() && err == nil {
			all = append(all, filepath.Join(root, e.Name()))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no control groups are mounted at %s", root)
	}
	return all, nil
}

// enterCgroup moves the calling process to the control group name in every
// tree, and makes it where it is missing.
func enterCgroup(name string) error {
	trees, err := hierarchies(cgroupRoot)
	if err != nil {
		return err
	}
	for _, tree := range trees {
		dir := tree
		for part := range strings.SplitSeq(name, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making control group: %w", err)
			}
			inherit(parent, dir)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("entering control group: %w", err)
		}
	}
	return nil
}

// inherit makes a new group usable. On version 1 the processors and memory
// nodes of a new group are empty, and it takes no process. On version 2 the
// parent has to pass its controllers on. What is not there fails, and need not
// be there.
func inherit(parent, dir string) {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if own, err := os.ReadFile(filepath.Join(dir, file)); err == nil && len(strings.TrimSpace(string(own))) == 0 {
			if b, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), b, 0)
			}
		}
	}
	passControllers(parent)
}

func passControllers(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// mountCgroups gives the tree at root, a node's root directory, control groups
// as the calling thread's cgroup namespace has them. For version 2, the
// calling process must then leave the root group: one with processes cannot
// pass its controllers on.
func mountCgroups(root string) error {
	at := filepath.Join(root, cgroupRoot)
	if unified(cgroupRoot) {
		if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mounting control groups: %w", err)
		}
		own := filepath.Join(at, "init")
		if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
		passControllers(at)
		return nil
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := mountController(at, e); err != nil {
			return fmt.Errorf("mounting control groups %s: %w", e.Name(), err)
		}
	}
	return nil
}

// mountController mounts one tree of version 1; its name is its controllers.
// Links are other names of a tree.
func mountController(at string, e fs.DirEntry) error {
	name := e.Name()
	path := filepath.Join(at, name)
	if e.Type()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(filepath.Join(cgroupRoot, name))
		if err != nil {
			return err
		}
		return os.Symlink(to, path)
	}
	if !e.IsDir() {
		return nil
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	switch name {
	case "unified":
		return unix.Mount("cgroup2", path, "cgroup2", 0, "")
	case "systemd":
		return unix.Mount("cgroup", path, "cgroup", 0, "none,name=systemd")
	}
	return unix.Mount("cgroup", path, "cgroup", 0, name)
}

// removeCgroup ends what is left in a control group and below, in every tree,
// and removes it.
func removeCgroup(name string) error {
	trees, err := hierarchies(cgroupRoot)
	if err != nil {
		return err
	}
	var left error
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		for _, tree := range trees {
			left = errors.Join(left, removeTree(filepath.Join(tree, name), name))
		}
		if left == nil || time.Now().After(deadline) {
			return left
		}
	}
}

func removeTree(dir, name string) error {
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() {
			all = append(all, path)
		}
		return err
	})
	slices.Reverse(all) // those below first
	for _, path := range all {
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(pid); err == nil {
				killMember(n, name)
			}
		}
		if e := os.Remove(path); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return err
}

// killMember ends a process if it is in the control group, which it is asked
// after its descriptor was opened. It is how processes are found whose
// recording was interrupted.
func killMember(pid int, name string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && pid != os.Getpid() && memberOf(string(b), name) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// memberOf reads /proc/<pid>/cgroup: lines "number:controllers:/path".
func memberOf(file, name string) bool {
	for line := range strings.Lines(file) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (f[2] == "/"+name || strings.HasPrefix(f[2], "/"+name+"/")) {
			return true
		}
	}
	return false
}
