package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the container runtime finds plugins for the network of pods.
const (
	cniConfDir = "/etc/cni/net.d"
	cniBinDir  = "/opt/cni/bin"
)

// What kubelet insists on and would otherwise set for the whole machine: it is
// shown files that say so already.
var kernelSettings = map[string]string{
	"vm/overcommit_memory": "1",
	"vm/panic_on_oom":      "0",
	"kernel/panic":         "10",
	"kernel/panic_on_oops": "1",
}

// enterRoot gives a node a root directory of its own, the machine's,
// copy-on-write in memory. Nothing that is done here reaches the machine's
// mounts, and all of it is gone when the last process of the node is.
func enterRoot(d dirs, r *record, n int) error {
	name := nodeName(n)
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	root, err := overlay(d.node(name))
	if err != nil {
		return err
	}
	if err := populate(d, r, name, root); err != nil {
		return err
	}
	if err := pivot(root); err != nil {
		return fmt.Errorf("changing the root directory: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if err := maskSettings(); err != nil {
		return err
	}
	return nodeFiles(d, r, n)
}

// overlay mounts the node's root below dir. The lower layer is the machine's
// root file system without what else is mounted on it.
func overlay(dir string) (string, error) {
	if err := unix.Mount("ambit-cluster", dir, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	upper, work, root := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	for _, p := range []string{upper, work, root} {
		if err := os.Mkdir(p, 0o755); err != nil {
			return "", err
		}
	}
	if err := unix.Mount("ambit-cluster", root, "overlay", 0, fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)); err != nil {
		return "", fmt.Errorf("overlay of the machine's root: %w", err)
	}
	return root, nil
}

// mount is one file system in a node's root.
type mount struct {
	source, at, kind string
	flags            uintptr
	data             string
}

func populate(d dirs, r *record, name, root string) error {
	// What is installed into a node for the runtime outlives its power, as on
	// a machine's disk.
	for _, dir := range []string{d.diskConf(name), d.diskBin(name)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"etc/containerd", "var/lib/containerd", "var/lib/kubelet", "var/lib/cni", StaticPods, ".old"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []mount{
		{"/dev", "dev", "", unix.MS_BIND | unix.MS_REC, ""},
		{"proc", "proc", "proc", 0, ""},
		{"sysfs", "sys", "sysfs", 0, ""},
		{"tmpfs", "run", "tmpfs", 0, "mode=755"},
		// Parts of the other /proc get covered (see maskSettings), and a pod with
		// users of its own gets one only where a whole one is to be seen.
		{"proc", "run/proc", "proc", 0, ""},
		// An overlay is no upper layer for another: snapshots of images need
		// a file system below them.
		{"tmpfs", "var/lib/containerd", "tmpfs", 0, "mode=711"},
		{"tmpfs", "var/lib/kubelet", "tmpfs", 0, "mode=755"},
		{d.root, d.root, "", unix.MS_BIND, ""},
		{r.Bin, r.Bin, "", unix.MS_BIND, ""},
		{d.diskConf(name), cniConfDir, "", unix.MS_BIND, ""},
		{d.diskBin(name), cniBinDir, "", unix.MS_BIND, ""},
		{"", r.Bin, "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, ""},
	} {
		at := filepath.Join(root, m.at)
		// Below /run, for one, there is nothing yet.
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	_ = unix.Mount("bpf", filepath.Join(root, "sys/fs/bpf"), "bpf", 0, "") // not every kernel has it
	if err := mountCgroups(root); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(filepath.Join(root, "run/lock"), 0o755), os.Mkdir(filepath.Join(root, "run/netns"), 0o755))
}

func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", ".old"); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/.old", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Remove("/.old"); err != nil {
		return err
	}
	// Pods ask for mounts that propagate, as on a machine run by systemd.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func maskSettings() error {
	const dir = "/run/kernel-settings"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for key, value := range kernelSettings {
		file := filepath.Join(dir, strings.ReplaceAll(key, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+key, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("covering %s: %w", key, err)
		}
	}
	return nil
}

// nodeFiles puts the node's own configuration in place, and the CNI plugins
// where DaemonSets may add theirs.
func nodeFiles(d dirs, r *record, n int) error {
	p := r.plan()
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for _, m := range p.nodes() {
		for _, a := range p.node(m) {
			hosts += a.String() + " " + nodeName(m) + "\n"
		}
	}
	// The machine's may be a link into what the node does not see.
	_ = os.Remove("/etc/resolv.conf")
	for path, text := range map[string]string{
		"/etc/hostname":    nodeName(n) + "\n",
		"/etc/hosts":       hosts,
		"/etc/resolv.conf": "nameserver " + p.dns()[0].String() + "\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := copyFile("/etc/containerd/config.toml", filepath.Join(d.etc(), "containerd.toml")); err != nil {
		return err
	}
	return cniFiles(d, r, n)
}

// cniFiles installs the cluster's network when a node starts for the first
// time. Later it finds what DaemonSets have made of that.
func cniFiles(d dirs, r *record, n int) error {
	found, err := os.ReadDir(cniConfDir)
	if err != nil || len(found) > 0 {
		return err
	}
	plugins, err := filepath.Glob(filepath.Join(r.Bin, "cni", "*"))
	if err != nil {
		return err
	}
	for _, path := range plugins {
		if err := copyFile(filepath.Join(cniBinDir, filepath.Base(path)), path); err != nil {
			return err
		}
	}
	return copyFile(filepath.Join(cniConfDir, "10-ambit-cluster.conflist"), filepath.Join(d.etc(), nodeName(n)+".conflist"))
}
