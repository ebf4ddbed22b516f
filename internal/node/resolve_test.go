package node

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
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
		"inside of another": {"0::/kubepods/pod" + uid + "/abc/kubepods/pod00000000-5266-4386-864e-45ed71136371/def\n", uid},
		"made up inside":    {"0::/kubepods/pod" + uid + "/abc/pod00000000-5266-4386-864e-45ed71136371\n", uid},
		"seen from a pod":   {"0::/../../kubepods-besteffort-pod2b801b7a_5266_4386_864e_45ed71136371.slice/cri-containerd-x.scope\n", uid},
		"lines disagree":    {"2:cpu:/kubepods/pod" + uid + "/a\n3:pids:/kubepods/pod00000000-5266-4386-864e-45ed71136371/a\n", ""},
		"none":              {"0::/system.slice/sshd.service\n", ""},
		"podman":            {"0::/machine.slice/libpod-2b801b7a526643868640000000000000.scope\n", ""},
		"rubbish":           {"::\n:/pod\n/pod", ""},
	} {
		if got := podUID(c.cgroup, nil); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzPodUID(f *testing.F) {
	f.Add("0::/kubepods/burstable/pod2b801b7a-5266-4386-864e-45ed71136371/abc\n")
	f.Fuzz(func(t *testing.T, s string) {
		if uid := podUID(s, nil); uid != "" && !isUID(uid) {
			t.Errorf("%q is no UID", uid)
		}
	})
}

// TestKubernetesInsideOfAPod checks an agent whose whole cluster runs in a pod of
// another one.
func TestKubernetesInsideOfAPod(t *testing.T) {
	const outer, agent, uid = "00000000-5266-4386-864e-45ed71136371", "11111111-5266-4386-864e-45ed71136371", "2b801b7a-5266-4386-864e-45ed71136371"
	at := func(pods ...string) string {
		return "0::/kubepods/pod" + strings.Join(pods, "/x/kubepods/pod") + "/y\n"
	}
	above := podsAbove(at(outer, agent))
	for path, want := range map[string]string{
		at(outer, uid):        uid,
		at(outer, uid, agent): uid,
		at(outer):             "", // the outer pod's own
		at(agent, uid):        "", // of another tree
		at(uid):               "",
	} {
		if got := podUID(path, above); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := podsAbove(at(agent)); len(got) != 0 {
		t.Errorf("above an agent that is not inside of a pod: %q", got)
	}
}

func anyNamespace(*netns.NS) error { return nil }

func TestDirFindsByUID(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/proc/self/ns/net", filepath.Join(dir, "here")); err != nil {
		t.Fatal(err)
	}
	ns, err := Dir(dir).Find([]string{"missing", "here"}, anyNamespace)
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if _, err := Dir(dir).Find([]string{"missing"}, anyNamespace); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("missing: %v", err)
	}
	for _, uid := range []string{"", "../here", "a/b"} {
		if _, err := Dir(dir).Find([]string{uid}, anyNamespace); err == nil || errors.Is(err, ErrNoNamespace) {
			t.Errorf("%q: %v", uid, err)
		}
	}
}

// processes is a proc file system that a test makes.
type processes struct {
	t    *testing.T
	root string
}

func newProcesses(t *testing.T) *processes {
	p := &processes{t, t.TempDir()}
	p.add("1", "0::/init.scope", "/proc/self/ns/net")
	return p
}

func (p *processes) add(pid, cgroup, ns string) {
	p.t.Helper()
	dir := filepath.Join(p.root, pid)
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Symlink(ns, filepath.Join(dir, "ns/net")); err != nil {
		p.t.Fatal(err)
	}
}

func (p *processes) resolver() *Proc {
	p.t.Helper()
	r, err := NewProc(p.root)
	if err != nil {
		p.t.Fatal(err)
	}
	r.above = nil // of the machine that the test runs on
	return r
}

func namespaceFor(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// is accepts one namespace.
func is(want *netns.NS) func(*netns.NS) error {
	return func(ns *netns.NS) error {
		if ns.ID() != want.ID() {
			return errOther
		}
		return nil
	}
}

func TestProcFindsByControlGroup(t *testing.T) {
	pod := namespaceFor(t)
	procs := newProcesses(t)
	const uid, static = "2b801b7a-5266-4386-864e-45ed71136371", "0123456789abcdef0123456789abcdef"
	procs.add("77", "0::/kubepods/pod"+uid+"/a", "/proc/self/ns/net") // in the host's namespace
	procs.add("78", "0::/kubepods/pod"+uid+"/b", fdPath(pod))
	procs.add("90", "0::/kubepods/pod"+static+"/b", fdPath(pod))
	p := procs.resolver()
	unknown := strings.Replace(uid, "2b", "00", 1)
	for name, uids := range map[string][]string{"by its UID": {uid}, "a static pod, by the UID of its node": {unknown, static}} {
		ns, err := p.Find(uids, anyNamespace)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if ns.ID() != pod.ID() {
			t.Errorf("%s: not the pod's namespace", name)
		}
		_ = ns.Close()
	}
	if _, err := p.Find([]string{unknown}, anyNamespace); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("an unknown pod: %v", err)
	}
}

// TestProcProvesEachNamespace checks a pod whose processes made namespaces of
// their own: more of them than a list of processes would hold, with lower
// numbers, and with numbers that sort otherwise as text.
func TestProcProvesEachNamespace(t *testing.T) {
	pod, other := namespaceFor(t), namespaceFor(t)
	procs := newProcesses(t)
	const uid = "2b801b7a-5266-4386-864e-45ed71136371"
	cgroup := "0::/kubepods/pod" + uid + "/a"
	for i := range 20 {
		procs.add(strconv.Itoa(100+i), cgroup, fdPath(namespaceFor(t)))
	}
	for i := range 300 { // many processes, one namespace
		procs.add(strconv.Itoa(200+i), cgroup, fdPath(other))
	}
	procs.add("9871", cgroup, fdPath(pod))
	procs.add("10123", cgroup, fdPath(namespaceFor(t)))
	p := procs.resolver()
	asked := 0
	ns, err := p.Find([]string{uid}, func(ns *netns.NS) error { asked++; return is(pod)(ns) })
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Close()
	if asked != 22 {
		t.Errorf("%d namespaces were looked at to find the 22nd", asked)
	}
	if _, err := p.Find([]string{uid}, is(namespaceFor(t))); !errors.Is(err, errOther) {
		t.Errorf("none of them: %v", err)
	}
}

// TestProcIsBounded checks that a pod with very many namespaces costs a bounded
// number of looks.
func TestProcIsBounded(t *testing.T) {
	pod := namespaceFor(t)
	procs := newProcesses(t)
	const uid = "2b801b7a-5266-4386-864e-45ed71136371"
	for i := range 2 * maxPerPod {
		link := filepath.Join(procs.root, "ns"+strconv.Itoa(i))
		if err := os.Symlink(fdPath(pod), link); err != nil {
			t.Fatal(err)
		}
		procs.add(strconv.Itoa(100+i), "0::/kubepods/pod"+uid+"/a", link)
	}
	asked := 0
	if _, err := procs.resolver().Find([]string{uid}, func(*netns.NS) error { asked++; return errOther }); !errors.Is(err, errOther) {
		t.Error(err)
	}
	if asked != maxPerPod {
		t.Errorf("%d namespaces were looked at", asked)
	}
}

// TestProcIgnoresControlGroupsInsideOfAPod checks that a pod that makes a control
// group with the name of another pod is not taken for it.
func TestProcIgnoresControlGroupsInsideOfAPod(t *testing.T) {
	victim, thief := namespaceFor(t), namespaceFor(t)
	procs := newProcesses(t)
	const uid, thiefs = "2b801b7a-5266-4386-864e-45ed71136371", "66666666-5266-4386-864e-45ed71136371"
	procs.add("50", "0::/kubepods/pod"+thiefs+"/a/pod"+uid+"/b", fdPath(thief))
	procs.add("60", "0::/kubepods/pod"+uid+"/a", fdPath(victim))
	ns, err := procs.resolver().Find([]string{uid}, anyNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	if ns.ID() != victim.ID() {
		t.Error("the namespace of another pod was found")
	}
}
