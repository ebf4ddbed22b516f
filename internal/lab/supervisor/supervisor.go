// Package supervisor is the process that a lab consists of: it makes the network, runs
// pods and the components of the mesh, and answers package lab on the control socket.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/lab/process"
	"github.com/ambit-mesh/ambit/internal/sys/unixsock"
)

// maxEvents is how many events a lab remembers: what a person reads.
const maxEvents = 100

// stopGrace is how long programs have to end after SIGTERM when the lab goes
// down; well below downTimeout, after which the supervisor is killed.
const stopGrace = 3 * time.Second

// supervisor is the process a lab consists of.
type supervisor struct {
	cfg      lab.Config
	d        lab.Dirs
	log      *slog.Logger
	families network.Families
	kids     *process.Children

	lan        *network.Space
	nodes      []*node
	components []*component

	// applying serialises changes of the configuration.
	applying sync.Mutex
	// wiring serialises writes of rule-sets and hosts files.
	wiring sync.Mutex

	mu       sync.Mutex
	objects  map[objects.Key]objects.Document   // guarded by mu; replaced, not changed
	pods     map[objects.Key]*pod               // guarded by mu
	services map[objects.Key]*service           // guarded by mu
	gateways map[objects.Key]*gatewayv1.Gateway // guarded by mu; replaced, not changed
	vips     *network.Pool                      // guarded by mu
	events   []lab.Event                        // guarded by mu
	changed  chan struct{}                      // guarded by mu; closed at the next change
	stopping bool                               // guarded by mu

	ending  chan struct{}  // closed when the lab is told to end
	running sync.WaitGroup // pods and components
}

// node is one machine of the lab.
type node struct {
	n     int
	name  string
	space *network.Space

	// Guarded by supervisor.mu.
	hosts   *network.Pool
	proxies *network.Pool
	links   int // how many pod interfaces there have been: their names
	labels  map[string]string
}

// supervise is the life of the supervisor; it returns its exit code.
func supervise(root string) int {
	ready := os.NewFile(lab.FdReady, "ready")
	s, l, err := newSupervisor(lab.Dirs{Root: root})
	if err != nil {
		_, _ = ready.WriteString(err.Error())
		return 1
	}
	_, _ = ready.WriteString("ok")
	_ = ready.Close()
	s.run(l)
	return 0
}

func newSupervisor(d lab.Dirs) (*supervisor, *net.UnixListener, error) {
	unix.CloseOnExec(lab.FdReady)
	unix.CloseOnExec(lab.FdLifeline)
	r, err := lab.ReadRecord(d)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, nil, errors.New("no record of this lab")
	}
	families, err := network.FamiliesOf(r.Config.IPFamily)
	if err != nil {
		return nil, nil, err
	}
	s := &supervisor{
		cfg: r.Config, d: d, kids: process.NewChildren(), families: families,
		log:     slog.New(slog.NewTextHandler(os.Stderr, nil)),
		objects: map[objects.Key]objects.Document{}, pods: map[objects.Key]*pod{}, services: map[objects.Key]*service{},
		vips: network.NewPool(network.FirstVIP, network.LastVIP), changed: make(chan struct{}), ending: make(chan struct{}),
	}
	if err := s.mounts(); err != nil {
		return nil, nil, err
	}
	if err := s.network(); err != nil {
		return nil, nil, err
	}
	path, release, err := lab.ShortPath(d.Control())
	if err != nil {
		return nil, nil, err
	}
	defer release()
	l, err := unixsock.Listen("unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("control socket: %w", err)
	}
	return s, l, nil
}

// mounts makes a world in which nothing that is mounted can be seen outside.
func (s *supervisor) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc (a container that hides parts of it does not allow this): %w", err)
	}
	if err := unix.Mount("lab", s.d.Run(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mounting %s: %w", s.d.Run(), err)
	}
	if s.cfg.ClusterDNS {
		path := filepath.Join(s.d.Run(), "resolv.conf")
		if err := os.WriteFile(path, []byte("nameserver "+clusterDNS.First(s.families).String()+"\n"), 0o644); err != nil { //nolint:gosec // as the machine's
			return err
		}
		if err := unix.Mount(path, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting /etc/resolv.conf (the machine needs to have one): %w", err)
		}
	}
	return unix.Sethostname([]byte("lab-" + s.cfg.Name))
}

// network makes the LAN and the nodes.
func (s *supervisor) network() error {
	var err error
	if s.lan, err = network.NewLAN(filepath.Join(s.d.Run(), "lan"), s.families); err != nil {
		return err
	}
	for n := 1; n <= s.cfg.Nodes; n++ {
		name := network.NodeName(n)
		if err := os.MkdirAll(s.d.PodNetns(name), 0o700); err != nil {
			return err
		}
		sp, err := network.NewNode(s.lan, filepath.Join(s.d.Node(name), "net"), n, s.families)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.nodes = append(s.nodes, &node{
			n: n, name: name, space: sp,
			hosts: network.NewPool(network.FirstHost, s.lastHost()), proxies: network.NewPool(network.FirstProxy, network.LastProxy),
		})
	}
	for _, a := range s.nodes {
		err = errors.Join(err, s.lan.RoutePods(a.n, network.BridgeName, s.families))
		for _, b := range s.nodes {
			if a != b {
				err = errors.Join(err, a.space.RoutePods(b.n, network.UplinkName, s.families))
			}
		}
	}
	if s.cfg.LargePackets {
		for _, sp := range append([]*network.Space{s.lan}, s.spaces()...) {
			err = errors.Join(err, sp.Enlarge())
		}
	}
	return err
}

func (s *supervisor) spaces() (all []*network.Space) {
	for _, n := range s.nodes {
		all = append(all, n.space)
	}
	return all
}

// lastHost is the last number that a pod of a node gets.
func (s *supervisor) lastHost() int {
	if n := s.cfg.PodAddresses; n > 0 {
		return min(network.FirstHost+n-1, network.LastHost)
	}
	return network.LastHost
}

// run serves until the lab is told to end.
func (s *supervisor) run(l *net.UnixListener) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	go func() {
		for range chld {
			s.kids.Reap()
		}
	}()
	if !s.cfg.Detach {
		go watchLifeline(end)
	}
	s.startComponents(ctx)
	go s.serve(ctx, l)
	<-end
	_ = l.Close()
	s.mu.Lock()
	s.stopping = true
	close(s.ending)
	s.mu.Unlock()
	cancel()
	s.await(stopGrace + time.Second)
}

// await gives pods and components time to end. What is left then dies with
// PID 1.
func (s *supervisor) await(d time.Duration) {
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

func watchLifeline(end chan<- os.Signal) {
	f := os.NewFile(lab.FdLifeline, "lifeline")
	_, _ = io.Copy(io.Discard, f)
	select {
	case end <- syscall.SIGTERM:
	default:
	}
}

// notify wakes those who wait for a change. s.mu is held.
func (s *supervisor) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// event tells the user about something; repeated ones are kept once.
func (s *supervisor) event(object, format string, args ...any) {
	e := lab.Event{Time: time.Now(), Object: object, Message: fmt.Sprintf(format, args...)}
	s.log.Info(e.Message, "object", object)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.events); n > 0 && s.events[n-1].Object == object && s.events[n-1].Message == e.Message {
		s.events[n-1].Time = e.Time
		return
	}
	s.events = append(s.events, e)
	if len(s.events) > maxEvents {
		s.events = s.events[1:]
	}
	s.notify()
}

// snapshot is the state of the lab, and the channel that closes when it is old.
func (s *supervisor) snapshot() (*lab.Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &lab.Status{
		Name: s.cfg.Name, RSS: process.ResidentMemory(os.Getpid()), Mesh: s.cfg.Mesh, Unprivileged: s.cfg.UserNamespace,
		Events: append([]lab.Event{}, s.events...),
	}
	for _, n := range s.nodes {
		st.Nodes = append(st.Nodes, lab.NodeStatus{Name: n.name, IPs: network.NodeAddr(n.n).Strings(s.families), Labels: n.labels})
	}
	for _, p := range s.pods {
		st.Pods = append(st.Pods, s.podStatus(p))
	}
	sort.Slice(st.Pods, func(i, j int) bool {
		a, b := st.Pods[i], st.Pods[j]
		return a.Namespace+"/"+a.Name < b.Namespace+"/"+b.Name
	})
	for _, v := range s.services {
		st.Services = append(st.Services, s.serviceStatus(v))
	}
	sort.Slice(st.Services, func(i, j int) bool {
		a, b := st.Services[i], st.Services[j]
		return a.Namespace+"/"+a.Name < b.Namespace+"/"+b.Name
	})
	for _, c := range s.components {
		st.Components = append(st.Components, c.status())
	}
	return st, s.changed
}

// space finds a network namespace by its name.
func (s *supervisor) space(w lab.Where) (*network.Space, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind, rest := split(w)
	switch kind {
	case "lan":
		return s.lan, nil
	case "node":
		if n := s.node(rest); n != nil {
			return n.space, nil
		}
	case "ztunnel":
		for _, c := range s.components {
			if c.name == network.Ztunnel+"/"+rest && c.current != nil && c.current.own != nil {
				return c.current.own, nil
			}
		}
		return nil, fmt.Errorf("no ztunnel runs on %s", rest)
	case "pod":
		p, err := s.findPod(w)
		if err != nil {
			return nil, err
		}
		if p.space == nil {
			return nil, fmt.Errorf("%s has no network yet", w)
		}
		return p.space, nil
	}
	return nil, fmt.Errorf("no %q in this lab: there are lan, node/NODE, ztunnel/NODE and pod/NAMESPACE/NAME", w)
}

// node finds a node by name, nil when there is none.
func (s *supervisor) node(name string) *node {
	for _, n := range s.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}
