package local

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The test's own program is the first process of its nodes.
func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// The daemons of these tests do nothing, so that the surroundings can be
// tested without Kubernetes.
const sleeper = "#!/bin/sh\necho $$\nexec sleep 1000\n"

func fakePrograms(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	scripts := map[string]string{
		containerd: "#!/bin/sh\nmkdir -p /run/containerd; touch /run/containerd/containerd.sock /var/lib/containerd/here /etc/here\nexec sleep 1000\n",
		"ctr":      "#!/bin/sh\necho \"$@\" >>/run/imported\n",
	}
	if err := os.MkdirAll(filepath.Join(bin, "cni"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range Programs() {
		text := scripts[p]
		if text == "" {
			text = sleeper
		}
		if err := os.WriteFile(filepath.Join(bin, p), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyFile(filepath.Join(bin, "ambit-cluster"), self); err != nil {
		t.Fatal(err)
	}
	return bin
}

// startFake brings up what a cluster is apart from Kubernetes.
func startFake(t *testing.T) *Cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	// Short: sockets are in it.
	state, err := os.MkdirTemp("", "ac-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(state); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	cfg := Config{State: state, Bin: fakePrograms(t), Nodes: 2, IPv6: true}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	d := dirs{state}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := &record{Config: cfg, Port: l.Addr().(*net.TCPAddr).Port}
	c := &Cluster{d: d, r: r}
	for _, step := range []func() error{
		d.make,
		func() error { return writeRecord(d, r) },
		func() error { return writeConfiguration(d, r) },
		func() error { return makeNetwork(d, r.plan()) },
		func() error { return c.startAll(l.(*net.TCPListener)) },
		func() error { return writeFile(d.apiReady(), nil, 0o644) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func eventually(t *testing.T, c *Cluster, what string, cond func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	for _, name := range c.d.processNames() {
		t.Logf("%s: %s", name, tail(c.d.log(name)))
	}
	t.Fatalf("%s: %v", what, err)
}

// contains waits until a command in a place prints something.
func contains(t *testing.T, c *Cluster, where, part string, argv ...string) {
	t.Helper()
	eventually(t, c, strings.Join(argv, " ")+" in "+where, func() error {
		out, err := c.Output(t.Context(), where, argv...)
		if err == nil && !strings.Contains(out, part) {
			err = fmt.Errorf("%q is not in %q", part, out)
		}
		return err
	})
}

func TestANodeIsAMachineOfItsOwn(t *testing.T) {
	c := startFake(t)
	contains(t, c, "node2", "images import "+filepath.Join(c.Bin(), imageArchive), "cat", "/run/imported")
	contains(t, c, "node2", "sleep", "sh", "-c", "cat /proc/[0-9]*/cmdline")
	for what, check := range map[string]struct {
		want string
		argv []string
	}{
		"host name":       {"node2", []string{"hostname"}},
		"names of nodes":  {"172.30.0.11 node1", []string{"cat", "/etc/hosts"}},
		"resolver":        {"nameserver 10.96.0.10", []string{"cat", "/etc/resolv.conf"}},
		"CNI":             {"10.244.2.0/24", []string{"cat", "/etc/cni/net.d/10-ambit-cluster.conflist"}},
		"CNI plugins":     {"host-local", []string{"ls", "/opt/cni/bin"}},
		"processes":       {"cluster-run", []string{"cat", "/proc/1/cmdline"}},
		"kernel settings": {"10", []string{"cat", "/proc/sys/kernel/panic"}},
		"propagation":     {"shared:", []string{"grep", " / / ", "/proc/self/mountinfo"}},
		"address":         {"172.30.0.12/24", []string{"ip", "addr", "show", "eth0"}},
		"routes":          {"10.244.1.0/24 via 172.30.0.11", []string{"ip", "route"}},
		"routes, IPv6":    {"fd00:10:244:1::/64 via fd00:172:30::b", []string{"ip", "-6", "route"}},
		"control groups":  {"memory", []string{"ls", "/sys/fs/cgroup", "/sys/fs/cgroup/cgroup.controllers"}},
	} {
		out, err := c.Output(t.Context(), "node2", check.argv...)
		if strings.HasPrefix(what, "control") {
			err = nil // one of the two is there
		}
		if err != nil || !strings.Contains(out, check.want) {
			t.Errorf("%s: %v: %q is not in %q", what, err, check.want, out)
		}
	}
	// Written by containerd's stand-in in the node.
	if _, err := os.Stat("/etc/here"); err == nil {
		t.Error("what a node writes is on the machine")
	}
	if out, err := c.Output(t.Context(), "node3", "true"); err == nil {
		t.Errorf("there is no node3: %q", out)
	}
}

func TestEveryoneOnTheLANReachesNodes(t *testing.T) {
	c := startFake(t)
	for _, a := range c.Addresses("node2") {
		l := listen(t, c, "node2", netip.AddrPortFrom(a, 8080))
		for _, from := range []string{LAN, "node1", "node2"} {
			conn, err := c.Dial(from, netip.AddrPortFrom(a, 8080), 10*time.Second)
			if err != nil {
				t.Errorf("%s from %s: %v", a, from, err)
				continue
			}
			_ = conn.Close()
		}
		_ = l.Close()
	}
}

func listen(t *testing.T, c *Cluster, where string, at netip.AddrPort) net.Listener {
	t.Helper()
	ns, err := c.Netns(where)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	if err := ns.Do(func() error { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// starts returns the process numbers, in its PID namespace, of each start of a
// daemon.
func starts(t *testing.T, c *Cluster, place, daemon string) []string {
	t.Helper()
	b, err := os.ReadFile(c.d.log(place + "-" + daemon))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

func awaitStarts(t *testing.T, c *Cluster, place, daemon string, n int) []string {
	t.Helper()
	eventually(t, c, daemon+" of "+place, func() error {
		if got := starts(t, c, place, daemon); len(got) != n {
			return fmt.Errorf("%d starts, want %d", len(got), n)
		}
		return nil
	})
	return starts(t, c, place, daemon)
}

func TestDaemonsAreKeptRunning(t *testing.T) {
	c := startFake(t)
	pid := awaitStarts(t, c, "node1", "kubelet", 1)[0]
	if _, err := c.Output(t.Context(), "node1", "kill", "-9", pid); err != nil {
		t.Fatal(err)
	}
	pid = awaitStarts(t, c, "node1", "kubelet", 2)[1]

	awaitStarts(t, c, ControlPlane, APIServer, 1)
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * restartPause)
	awaitStarts(t, c, ControlPlane, APIServer, 1)
	if stopped, err := c.Stopped(ControlPlane); err != nil || !slices.Equal(stopped, []string{APIServer}) {
		t.Errorf("stopped: %v, %v", stopped, err)
	}
	if err := c.Start(ControlPlane, APIServer); err != nil {
		t.Fatal(err)
	}
	awaitStarts(t, c, ControlPlane, APIServer, 2)

	if err := c.Stop("node1", "kubelet"); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Output(t.Context(), "node1", "test", "-e", "/proc/"+pid); err == nil {
		t.Errorf("a stopped daemon is there %s", out)
	}
	for _, wrong := range [][2]string{{"node1", "nothing"}, {"node3", "kubelet"}, {"node1", APIServer}} {
		if err := c.Stop(wrong[0], wrong[1]); err == nil {
			t.Errorf("stop %v: no error", wrong)
		}
	}
}

func TestPowerFailure(t *testing.T) {
	c := startFake(t)
	archive := filepath.Join(t.TempDir(), "mine.tar")
	if err := os.WriteFile(archive, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, c, "node2", imageArchive, "cat", "/run/imported")
	if err := c.Load(t.Context(), []string{archive}); err != nil {
		t.Fatal(err)
	}
	contains(t, c, "node2", "mine.tar", "cat", "/run/imported")
	if _, err := c.Output(t.Context(), "node2", "sh", "-c", "touch /root/mark; ip link add cni0 type bridge; nft add table inet left"); err != nil {
		t.Fatal(err)
	}
	if err := c.PowerOff("node2"); err != nil {
		t.Fatal(err)
	}
	if c.IsUp("node2") || !c.IsUp("node1") {
		t.Error("the wrong node has power")
	}
	if _, err := c.Output(t.Context(), "node2", "true"); err == nil {
		t.Error("a program ran in a node without power")
	}
	if err := c.PowerOn("node2"); err != nil {
		t.Fatal(err)
	}
	contains(t, c, "node2", "mine.tar", "cat", "/run/imported")
	for what, argv := range map[string][]string{"file": {"test", "-e", "/root/mark"}, "interface": {"ip", "link", "show", "cni0"}, "nftables": {"nft", "list", "table", "inet", "left"}} {
		if _, err := c.Output(t.Context(), "node2", argv...); err == nil {
			t.Errorf("%s outlived a power failure", what)
		}
	}
	contains(t, c, "node2", "172.30.0.12", "ip", "addr")
}

// leftovers are traces of a cluster on the machine.
func leftovers(t *testing.T, d dirs) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(cgroupRoot, "*", d.cgroup()))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), d.root) {
		all = append(all, "mounts")
	}
	for _, file := range []string{d.root, d.lock(), filepath.Join(cgroupRoot, d.cgroup())} {
		if _, err := os.Stat(file); err == nil {
			all = append(all, file)
		}
	}
	return all
}

func TestDownLeavesNothing(t *testing.T) {
	c := startFake(t)
	awaitStarts(t, c, "node2", "kube-proxy", 1)
	if _, err := Open(c.d.root); err != nil {
		t.Fatal(err)
	}
	// As after a kill between start and recording, and before the rest.
	for _, name := range []string{"node2", "forward"} {
		if err := os.Remove(c.d.process(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Down(c.d.root); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, c.d); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := Open(c.d.root); err == nil {
		t.Error("a cluster that is down was opened")
	}
	if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.r.Port)); err == nil {
		_ = conn.Close()
		t.Error("the API server's port is still open")
	}
}

// The API server's port on the loopback leads into the first node.
func TestForward(t *testing.T) {
	c := startFake(t)
	l := listen(t, c, "node1", netipAPI())
	go func() {
		if conn, err := l.Accept(); err == nil {
			b, _ := io.ReadAll(conn) // to the end, then answer: half-close passes through
			_, _ = conn.Write(append([]byte("got "), b...))
			_ = conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.r.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	_, _ = conn.Write([]byte("this"))
	_ = conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || string(b) != "got this" {
		t.Errorf("%q %v", b, err)
	}
}
