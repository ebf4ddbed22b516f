// Package rig is what tests of the whole mesh share: the real programs, built
// once, a lab for each test, and ways to ask what the mesh did.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// patience is how long something that must happen may take: far longer than
// it does, because these machines are shared.
const patience = 20 * time.Second

var (
	binDir string
	labs   atomic.Int64
)

// Main runs a package's tests with the programs of this repository built from
// its sources; AMBIT_BIN names a directory that has them already. It is all
// that TestMain does.
func Main(m *testing.M) {
	supervisor.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	go running.endOnSignal()
	binDir = os.Getenv("AMBIT_BIN")
	if binDir == "" {
		dir, err := os.MkdirTemp("", "ambit-bin-")
		if err == nil {
			defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
			running.leaves(dir)
			binDir, err = dir, build(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "building the programs:", err)
			return 1
		}
	}
	return m.Run()
}

func build(dir string) error {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./cmd/...", "./test/echo", "./test/load")
	cmd.Dir = strings.TrimSpace(string(out))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// Bin is the path of a program of this repository.
func Bin(name string) string { return filepath.Join(binDir, name) }

// World is a running lab and the test it belongs to.
type World struct {
	*lab.Lab
	t   testing.TB
	ctx context.Context
}

// T is the test that the world belongs to.
func (w *World) T() testing.TB { return w.t }

// For is the same world for a subtest: what fails is the subtest's, and what
// is opened ends with it.
func (w *World) For(t testing.TB) *World {
	return &World{Lab: w.Lab, t: t, ctx: t.Context()}
}

// Start runs a mesh of cfg for the length of the test. Name, StateDir and
// BinDir are chosen; in YAML, ECHO and LOAD stand for the paths of test/echo
// and test/load. When the test fails, the ends of all logs are printed.
func Start(t testing.TB, cfg lab.Config) *World {
	t.Helper()
	cfg.Name = fmt.Sprintf("test-%d-%d", os.Getpid(), labs.Add(1))
	dir := t.TempDir()
	running.leaves(filepath.Dir(dir)) // the test's own, with all its temporary directories in it
	cfg.StateDir = filepath.Join(dir, "lab")
	cfg.BinDir = binDir
	cfg.Mesh = true
	cfg.YAML = expand(cfg.YAML)
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	if cfg.IPFamily == "" {
		cfg.IPFamily = ipFamily()
	}
	l, err := lab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("starting the lab: %v", err)
	}
	w := &World{Lab: l, t: t, ctx: t.Context()}
	running.begins(l)
	t.Cleanup(func() {
		if t.Failed() {
			w.dump()
		}
		running.ends(l)
		if err := l.Close(); err != nil {
			t.Errorf("ending the lab: %v", err)
		}
	})
	w.Settled()
	return w
}

func expand(yaml string) string {
	return strings.NewReplacer("ECHO", Bin("echo"), "LOAD", Bin("load")).Replace(yaml)
}

// dump prints the end of every component's log.
func (w *World) dump() {
	const most = 6000
	s, err := w.Status(context.Background())
	if err != nil {
		w.t.Log(err)
		return
	}
	for _, c := range s.Components {
		text := w.Log(c.Name)
		w.t.Logf("---- %s: %s, %d restarts\n%s", c.Name, c.State, c.Restarts, text[max(0, len(text)-most):])
	}
	for _, e := range s.Events {
		w.t.Logf("event %s: %s", e.Object, e.Message)
	}
	w.dumpNetwork(s)
}

// Log is what a component or pod (namespace/name) has written so far.
func (w *World) Log(of string) string {
	b, err := os.ReadFile(w.LogPath(of))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("log of %s: %v", of, err)
	}
	return string(b)
}

// MustApply adds or changes objects, and waits until the pods among them are ready and
// the mesh has settled.
func (w *World) MustApply(yaml string) {
	w.t.Helper()
	w.apply(yaml)
	w.ready(expand(yaml))
	w.Settled()
}

// MustApplyUnready is MustApply for pods that do not become ready.
func (w *World) MustApplyUnready(yaml string) {
	w.t.Helper()
	w.apply(yaml)
	w.Settled()
}

func (w *World) apply(yaml string) {
	w.t.Helper()
	if err := w.Apply(w.ctx, expand(yaml)); err != nil {
		w.t.Fatalf("apply: %v\n%s", err, yaml)
	}
}

// MustDelete removes an object.
func (w *World) MustDelete(kind, namespace, name string) {
	w.t.Helper()
	if err := w.Delete(w.ctx, kind, namespace, name); err != nil {
		w.t.Fatalf("delete %s %s/%s: %v", kind, namespace, name, err)
	}
}

// Ambit runs a command of `ambit`, of one or more words, about this lab, and returns
// what it printed.
func (w *World) Ambit(command string, args ...string) (string, error) {
	cmd := exec.CommandContext(w.t.Context(), Bin("ambit"), append(append(strings.Fields(command), args...), "--state-dir", w.StateDir())...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%q: %w: %s", cmd.Args, err, said.String())
	}
	return out.String(), nil
}

// MustRun runs a program to its end and returns what it printed.
func (w *World) MustRun(in lab.Where, argv ...string) string {
	w.t.Helper()
	out, err := w.Run(w.ctx, in, argv...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// Eventually waits until cond returns nil.
func (w *World) Eventually(what string, cond func() error) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || w.ctx.Err() != nil {
			w.t.Fatalf("%s: still not so after %v: %v", what, patience, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Always checks that cond holds, repeatedly, for a short time: for what must
// not happen. It cannot prove it, but it fails when it does.
func (w *World) Always(what string, cond func() error) {
	w.t.Helper()
	for range 20 {
		if err := cond(); err != nil {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Pod is the address of a pod: IPv4, or IPv6.
func (w *World) Pod(namespace, name string, v6 bool) netip.Addr {
	w.t.Helper()
	s, err := w.Status(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range s.Pods {
		if p.Namespace == namespace && p.Name == name {
			return w.pick(p.IPs, v6)
		}
	}
	w.t.Fatalf("there is no pod %s/%s", namespace, name)
	return netip.Addr{}
}

// Service is the virtual address of a service: IPv4, or IPv6.
func (w *World) Service(namespace, name string, v6 bool) netip.Addr {
	w.t.Helper()
	s, err := w.Status(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range s.Services {
		if p.Namespace == namespace && p.Name == name {
			return w.pick(p.IPs, v6)
		}
	}
	w.t.Fatalf("there is no service %s/%s", namespace, name)
	return netip.Addr{}
}

func (w *World) pick(ips []string, v6 bool) netip.Addr {
	w.t.Helper()
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil && a.Is6() == v6 {
			return a
		}
	}
	w.t.Fatalf("no address with IPv6=%v among %v", v6, ips)
	return netip.Addr{}
}

// Get makes one HTTP request from a pod to test/echo, on a connection of its own.
func (w *World) Get(from lab.Where, to netip.AddrPort) (traffic.Answer, error) {
	c := w.HTTP(from)
	defer c.CloseIdleConnections()
	b, err := w.Lab.Get(w.ctx, from, "http://"+to.String()+"/")
	if err != nil {
		return traffic.Answer{}, err
	}
	return traffic.ParseAnswer(string(b))
}

// MustGet is Get that must work.
func (w *World) MustGet(from lab.Where, to netip.AddrPort) traffic.Answer {
	w.t.Helper()
	a, err := w.Get(from, to)
	if err != nil {
		w.t.Fatalf("GET from %s to %s: %v", from, to, err)
	}
	return a
}

// Refused makes sure that a request from a pod fails.
func (w *World) Refused(from lab.Where, to netip.AddrPort) {
	w.t.Helper()
	if a, err := w.Get(from, to); err == nil {
		w.t.Fatalf("GET from %s to %s must fail; %s answered", from, to, a.Name)
	}
}

// MustDial connects from a pod; the connection ends with the test.
func (w *World) MustDial(from lab.Where, to netip.AddrPort) net.Conn {
	w.t.Helper()
	c, err := w.Dial(w.ctx, from, "tcp", to.String())
	if err != nil {
		w.t.Fatalf("connecting from %s to %s: %v", from, to, err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// ipFamily returns what AMBIT_IP_FAMILY has for the families of labs: ipv4, ipv6, or nothing.
func ipFamily() string { return os.Getenv("AMBIT_IP_FAMILY") }

// PodFamilies returns whether each family that pods of labs have is IPv6.
func PodFamilies() []bool {
	switch ipFamily() {
	case "ipv4":
		return []bool{false}
	case "ipv6":
		return []bool{true}
	}
	return []bool{false, true}
}

// Families runs f once with each family of the lab, as subtests.
func Families(t *testing.T, f func(t *testing.T, v6 bool)) {
	t.Helper()
	for _, v6 := range PodFamilies() {
		t.Run("IPv"+strconv.Itoa(map[bool]int{false: 4, true: 6}[v6]), func(t *testing.T) { f(t, v6) })
	}
}
