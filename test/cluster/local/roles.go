package local

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Roles: the first word after the program's name when it starts itself again.
// "enter" comes first for node and control plane; once the surroundings are
// made, the process becomes "run" by exec, so that all its threads are in the
// namespaces that one has entered.
const (
	roleEnter   = "cluster-enter"
	roleRun     = "cluster-run"
	roleForward = "cluster-forward"
)

const containerd = "containerd"

// fdListener is the descriptor that the forwarder is started with.
const fdListener = 3

// Main is for the cluster's command: when it was started as a part of a
// cluster it plays that part and does not return.
func Main() {
	if len(os.Args) != 4 {
		return
	}
	role, root, name := os.Args[1], os.Args[2], os.Args[3]
	d := dirs{root}
	var err error
	switch role {
	case roleEnter:
		err = enter(d, name)
	case roleRun:
		err = runKeeper(d, name)
	case roleForward:
		err = forward(d, name)
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "%s of %s: %v\n", role, name, err)
	os.Exit(1)
}

// enter joins control group and network, and gives a node its root directory.
func enter(d dirs, name string) error {
	r, err := readRecord(d)
	if err != nil || r == nil {
		return errors.Join(err, errors.New("no cluster here"))
	}
	n := r.plan().number(name)
	netName := name
	if n == 0 { // the control plane
		netName = nodeName(1)
	}
	ns, err := os.Open(d.netns(netName))
	if err != nil {
		return err
	}
	if err := enterCgroup(d.cgroup() + "/" + name); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	// The control plane gets a /proc of its PID namespace, and else keeps the
	// machine's files.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if n > 0 {
		err = enterRoot(d, r, n)
	} else {
		err = unix.Mount("proc", "/proc", "proc", 0, "")
	}
	if err != nil {
		return err
	}
	program := r.program()
	return unix.Exec(program, []string{program, roleRun, d.root, name}, environment(r.Bin))
}

// runKeeper is a node, or the control plane, once its surroundings are made.
func runKeeper(d dirs, name string) error {
	r, err := readRecord(d)
	if err != nil {
		return err
	}
	k := newKeeper(d, name, r.Bin)
	go func() {
		if err := k.begin(r.plan()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	return k.serve()
}

// begin starts the daemons, each when what it needs is there.
func (k *keeper) begin(p plan) error {
	n := p.number(k.name)
	daemons := controlPlane(k.d, p)
	first := 2 // etcd and the API server; the others are its clients
	if n > 0 {
		daemons, first = nodeDaemons(k.d, p, n), 1
	}
	for _, dm := range daemons[:first] {
		k.keep(dm)
	}
	if n > 0 {
		if err := k.importImages(); err != nil {
			return err
		}
	}
	if err := awaitFile(k.d.apiReady(), 5*time.Minute); err != nil {
		return err
	}
	for _, dm := range daemons[first:] {
		k.keep(dm)
	}
	return nil
}

// importImages gives containerd the cluster's own images and those that were
// loaded into the cluster before.
func (k *keeper) importImages() error {
	if err := awaitFile("/run/containerd/containerd.sock", time.Minute); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(k.d.images(), "*.tar"))
	if err != nil {
		return err
	}
	for _, a := range append([]string{filepath.Join(k.bin, imageArchive)}, archives...) {
		if err := k.run("ctr", k.name+"-import", "--namespace", "k8s.io", "images", "import", a); err != nil {
			return err
		}
	}
	return nil
}

func awaitFile(path string, limit time.Duration) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("waited %s for %s", limit, path)
}

// forward connects the machine's loopback with the API server: it accepts in
// the machine's network namespace and dials in the first node's. port is only
// for whoever reads the process list.
func forward(d dirs, port string) error {
	if _, err := strconv.Atoi(port); err != nil {
		return err
	}
	if err := enterCgroup(d.cgroup() + "/forward"); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(fdListener, "listener"))
	if err != nil {
		return err
	}
	ns, err := netns.Open(d.netns(nodeName(1)))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close() //nolint:errcheck // both directions have ended
			to, err := dialIn(ns, netipAPI(), 5*time.Second)
			if err != nil {
				return
			}
			defer to.Close() //nolint:errcheck // see above
			splice(c.(*net.TCPConn), to)
		}()
	}
}

// splice copies both ways, each until its end.
func splice(a, b *net.TCPConn) {
	done := make(chan struct{})
	half := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from)
		_ = to.CloseWrite()
	}
	go func() { half(a, b); close(done) }()
	half(b, a)
	<-done
}
