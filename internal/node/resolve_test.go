package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

func TestPodOfControlGroup(t *testing.T) {
	const uid = "2b801b7a-5266-4386-864e-45ed71136371"
	for name, c := range map[string]struct{ cgroup, want string }{
		"v2 systemd":        {"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod2b801b7a_5266_4386_864e_45ed71136371.slice/cri-containerd-20e08b36c13d.scope\n", uid},
		"v2 guaranteed":     {"0::/kubepods.slice/kubepods-pod2b801b7a_5266_4386_864e_45ed71136371.slice/cri-containerd-x.scope\n", uid},
		"v2 cgroupfs":       {"0::/kubepods/burstable/pod2b801b7a-5266-4386-864e-45ed71136371/abc\n", uid},
		"v1":                {"12:pids:/user.slice\n3:cpu:/kubepods/besteffort/pod2b801b7a-5266-4386-864e-45ed71136371/abc\n1:name=systemd:/x\n", uid},
		"kind":              {"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod2b801b7a_5266_4386_864e_45ed71136371.slice/cri-containerd-x.scope\n", uid},
		"static pod":        {"0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/abc\n", "0123456789abcdef0123456789abcdef"},
		"inside of another": {"0::/kubepods/pod00000000-5266-4386-864e-45ed71136371/abc/kubepods/pod2b801b7a-5266-4386-864e-45ed71136371/def\n", uid},
		"none":              {"0::/system.slice/sshd.service\n", ""},
		"podman":            {"0::/machine.slice/libpod-2b801b7a526643868640000000000000.scope\n", ""},
		"rubbish":           {"::\n:/pod\n/pod", ""},
	} {
		if got := podUID(c.cgroup); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzPodUID(f *testing.F) {
	f.Add("0::/kubepods/burstable/pod2b801b7a-5266-4386-864e-45ed71136371/abc\n")
	f.Fuzz(func(t *testing.T, s string) {
		if uid := podUID(s); uid != "" && !isUID(uid) {
			t.Errorf("%q is no UID", uid)
		}
	})
}

func TestDirFindsByUID(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(dir, "here")); err != nil {
		t.Fatal(err)
	}
	ns, err := Dir(dir).Find("here")
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if _, err := Dir(dir).Find("missing"); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("missing: %v", err)
	}
	for _, uid := range []string{"", "../here", "a/b"} {
		if _, err := Dir(dir).Find(uid); err == nil || errors.Is(err, ErrNoNamespace) {
			t.Errorf("%q: %v", uid, err)
		}
	}
}

func TestProcFindsByControlGroup(t *testing.T) {
	pod, err := netns.New()
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() { _ = pod.Close() })
	root := t.TempDir()
	process := func(pid, cgroup, ns string) {
		t.Helper()
		dir := filepath.Join(root, pid)
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(ns, filepath.Join(dir, "ns/net")); err != nil {
			t.Fatal(err)
		}
	}
	const uid = "2b801b7a-5266-4386-864e-45ed71136371"
	host := "/proc/self/ns/net"
	process("1", "0::/init.scope", host)
	process("77", "0::/kubepods/pod"+uid+"/a", host) // a process of the pod that is in the host's namespace
	process("78", "0::/kubepods/pod"+uid+"/b", fdPath(pod))
	p, err := NewProc(root)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := p.Find(uid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if ns.ID() != pod.ID() {
		t.Error("not the pod's namespace")
	}
	if _, err := p.Find(strings.Replace(uid, "2b", "00", 1)); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("an unknown pod: %v", err)
	}
}
