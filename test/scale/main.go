// Command scale measures the control plane on a real Kubernetes API server
// with a generated mesh: objects that are there and pods that nobody runs, and
// a client for every node, which follows the control plane with a token of its
// own as a node proxy does.
//
//	scale -kubeconfig FILE [-services N] [-pods N] [-clients N] [-changes N]
//	      [-waypoints N] [-replicas N] [-routes N] [-bin DIR] [-istiod FILE] [-profile DIR] [-o text|json]
//
// To try several builds on the same objects, -hold makes them and keeps them
// until it is interrupted, and -held measures on what another process holds.
//
// The table ends with "N passed, N failed": 0 is the exit code when nothing
// failed, 1 when something did, 2 when it could not run or could not take away
// what it made, which it does also when it is interrupted (130). No time is ever
// judged.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/test/measure"
)

type options struct {
	shape
	kubeconfig, bin, istiod, profile, output string
	changes                                  int
	hold, held, whole                        bool
}

const (
	// idle is how long nothing is done, to see what that costs.
	idle = 10 * time.Second
	// pause is between two changes, so that each is one.
	pause = 50 * time.Millisecond
)

func main() { os.Exit(run()) }

func run() int {
	var o options
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig of a cluster that may be filled; default: kubectl's")
	flag.IntVar(&o.services, "services", 2000, "services")
	flag.IntVar(&o.pods, "pods", 20000, "pods")
	flag.IntVar(&o.nodes, "clients", 200, "nodes, each with a client of the control plane")
	flag.IntVar(&o.waypoints, "waypoints", 0, "waypoints, each of the services of a namespace; the cluster must not have the Gateway API")
	flag.IntVar(&o.replicas, "replicas", 2, "with -waypoints: proxies of each, with a client of the control plane")
	flag.IntVar(&o.routes, "routes", 5000, "with -waypoints: HTTPRoutes")
	flag.IntVar(&o.changes, "changes", 100, "changes, one after the other")
	flag.StringVar(&o.bin, "bin", "", "directory of the programs; what is not there is built")
	flag.StringVar(&o.istiod, "istiod", "", "Istio's pilot-discovery, to be measured after ambitd on the same objects")
	flag.StringVar(&o.profile, "profile", "", "directory for profiles of the control plane")
	flag.BoolVar(&o.hold, "hold", false, "make the objects, keep them until interrupted, and measure nothing")
	flag.BoolVar(&o.held, "held", false, "measure on the objects that another process holds, and leave them there")
	flag.BoolVar(&o.whole, "whole", false, "nodes take the mesh in one message, as Istio's node proxies do")
	flag.StringVar(&o.output, "o", "text", "text or json")
	flag.Parse()
	if err := o.check(); err != nil {
		return complain(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w, err := connect(o.kubeconfig, o.shape)
	if err != nil {
		return complain(err)
	}
	r := &report{Title: o.String()}
	work := o.measure
	if o.hold {
		work = o.keep
	}
	if err := work(ctx, w, r); err != nil {
		r.Failed++
		r.Errors = append(r.Errors, err.Error())
	}
	if !o.hold {
		err = r.print(os.Stdout, o.output)
	}
	// Also after an interrupt.
	if err := errors.Join(err, o.clean(context.WithoutCancel(ctx), w)); err != nil {
		return complain(err)
	}
	switch {
	case ctx.Err() != nil:
		return 130
	case r.Failed > 0 || r.Passed == 0:
		return 1
	}
	return 0
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "scale:", err)
	return 2
}

func (o *options) check() error {
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.services < 2 || o.pods < 1 || o.nodes < 1 || o.changes < 2:
		return errors.New("want at least 2 services, a pod, a client and 2 changes")
	case o.waypoints < 0 || o.waypoints > o.namespaces() || o.waypoints > 0 && (o.replicas < 1 || o.routes < 1):
		return fmt.Errorf("-waypoints %d, -replicas %d, -routes %d: a mesh of this size has %d namespaces", o.waypoints, o.replicas, o.routes, o.namespaces())
	case o.changes > 2*o.mostChanges():
		return fmt.Errorf("-changes %d: a mesh of this size has %d", o.changes, 2*o.mostChanges())
	case o.hold && o.held:
		return errors.New("-hold and -held are for two processes")
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("-o %q: want text or json", o.output)
	}
	return nil
}

// progress says on standard error what is going on.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "… "+format+"\n", args...) }

// measure makes the objects and measures one control plane after the other.
func (o *options) measure(ctx context.Context, w *world, r *report) error {
	dir, err := os.MkdirTemp("", "ambit-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	binary, err := o.program(ctx, dir, "ambitd")
	if err != nil {
		return err
	}
	if !o.held {
		beating, stop := context.WithCancel(ctx)
		defer stop()
		go w.heartbeat(beating)
		if err := w.create(ctx); err != nil {
			return err
		}
		r.Passed++
	}
	if err := o.one(ctx, w, r, "ambitd", func() (*control, error) { return startAmbitd(dir, binary, o.kubeconfig) }); err != nil || o.istiod == "" {
		return err
	}
	return o.one(ctx, w, r, "istiod", func() (*control, error) { return startIstiod(dir, o.istiod, o.kubeconfig) })
}

// one measures one control plane.
func (o *options) one(ctx context.Context, w *world, r *report, name string, start func() (*control, error)) error {
	r.begin(name)
	c, err := start()
	if err != nil {
		return err
	}
	defer c.Kill()
	if err := (&measuring{options: o, w: w, c: c, r: r}).run(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// keep makes the objects and keeps their nodes alive.
func (o *options) keep(ctx context.Context, w *world, r *report) error {
	beating, stop := context.WithCancel(ctx)
	defer stop()
	go w.heartbeat(beating)
	if err := w.create(ctx); err != nil {
		return err
	}
	progress("the objects are there; interrupt to take them away")
	<-ctx.Done()
	r.Passed++
	return nil
}

func (o *options) clean(ctx context.Context, w *world) error {
	if o.held {
		return nil
	}
	progress("taking the objects away")
	return w.remove(ctx)
}

// program is the path of a program of Ambit; it is built unless -bin has it.
func (o *options) program(ctx context.Context, dir, name string) (string, error) {
	path := filepath.Join(o.bin, name)
	if st, err := os.Stat(path); o.bin != "" && err == nil && !st.IsDir() {
		return filepath.Abs(path)
	}
	path = filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "./cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return path, nil
}

// measuring is one run of a control plane on objects that are there.
type measuring struct {
	*options
	w     *world
	c     *control
	r     *report
	f     *fleet
	nodes []*node

	fail  context.CancelCauseFunc
	leave func() // ends all nodes
}

func (m *measuring) run(ctx context.Context) error {
	ctx, m.fail = context.WithCancelCause(ctx)
	defer m.fail(nil)
	m.leave = func() {}
	defer func() { m.leave() }()
	for _, step := range []func(context.Context) error{m.start, m.join, m.again, m.rest, m.change, m.routes, m.load} {
		if err := step(ctx); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		m.r.Passed++
	}
	return nil
}

func (m *measuring) start(ctx context.Context) error {
	began := time.Now()
	if err := m.c.wait(ctx); err != nil {
		return err
	}
	m.r.seconds("start to ready", time.Since(began))
	if err := m.usage("ready"); err != nil {
		return err
	}
	return m.c.profile(ctx, m.profile, "ready", "heap")
}

// connect starts all nodes at once.
func (m *measuring) connect(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	m.leave = func() { stop(); wg.Wait() }
	for _, n := range m.nodes {
		wg.Go(func() {
			if err := n.run(ctx); err != nil {
				m.fail(err)
			}
		})
	}
}

// join is all nodes for the first time.
func (m *measuring) join(ctx context.Context) (err error) {
	if m.f, m.nodes, err = m.w.fleet(ctx, m.c); err != nil {
		return err
	}
	m.f.whole = m.whole
	began := time.Now()
	m.connect(ctx)
	last, _, err := m.sync(ctx)
	if err != nil {
		return err
	}
	m.r.seconds("all nodes at once, to the whole mesh on the last", last.Sub(began))
	m.r.add("connections refused meanwhile, and made again", float64(m.f.refused.Load()), "")
	m.r.mib("the whole mesh, to each node", m.f.bytes.Load()/int64(len(m.nodes)))
	if err := m.c.profile(ctx, m.profile, "connected", "heap"); err != nil {
		return err
	}
	return m.usage("all nodes connected")
}

// again is all nodes at once as after a restart of the control plane: they say
// what they have.
func (m *measuring) again(ctx context.Context) error {
	m.leave()
	m.f.remember()
	bytes, began := m.f.bytes.Load(), time.Now()
	m.connect(ctx)
	last, told, err := m.sync(ctx)
	if err != nil {
		return err
	}
	m.r.seconds("all nodes back at once, with what they know", last.Sub(began))
	m.r.add("resources that each is told again", float64(told)/float64(len(m.nodes)), "")
	m.r.mib("what is sent to each", (m.f.bytes.Load()-bytes)/int64(len(m.nodes)))
	return m.usage("all nodes back")
}

// usage adds what the control plane has used until now.
func (m *measuring) usage(when string) error {
	u, err := m.c.Usage()
	if err != nil {
		return err
	}
	m.r.mib("resident memory, "+when, u.RSS)
	m.r.seconds("processor time, "+when, u.CPU)
	return nil
}

// sync waits until all nodes have the whole mesh, and returns when the last had
// it and how many resources all were told.
func (m *measuring) sync(ctx context.Context) (last time.Time, told int, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for n := range m.nodes {
		select {
		case s := <-m.f.synced:
			if want := len(m.f.wanted); s.has < want {
				return last, told, fmt.Errorf("%s was told of %d addresses of %d", s.node, s.has, want)
			}
			last, told = s.at, told+s.told
		case <-ctx.Done():
			return last, told, fmt.Errorf("%d of %d nodes know the mesh: %w; %s said: %s", n, len(m.nodes), context.Cause(ctx), m.c.Name, m.c.Words())
		}
	}
	return last, told, nil
}

// rest lets the first storm pass and then measures what nothing costs.
func (m *measuring) rest(ctx context.Context) error {
	var used [2]measure.Usage
	for i := range used {
		select {
		case <-time.After(idle):
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		if used[i], err = m.c.Usage(); err != nil {
			return err
		}
	}
	m.r.add("processor time with nothing to do", 100*(used[1].CPU-used[0].CPU).Seconds()/idle.Seconds(), "% of one")
	return nil
}

// change makes the changes one after the other.
func (m *measuring) change(ctx context.Context) error {
	profiled := make(chan error, 1)
	go func() { profiled <- m.c.profile(ctx, m.profile, "changes", "profile?seconds=15") }()
	all := map[string][]sample{}
	before, err := m.c.Usage()
	if err != nil {
		return err
	}
	machine, err := busy()
	if err != nil {
		return err
	}
	bytes, began := m.f.bytes.Load(), time.Now()
	for _, ready := range []bool{false, true} { // there and back
		for i := range m.changes / 2 {
			c := m.w.change(i)
			s, err := m.f.measure(ctx, c, ready, len(m.nodes))
			if err != nil {
				return err
			}
			all[c.what] = append(all[c.what], s)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	took := time.Since(began)
	made := int64(m.changes / 2 * 2)
	after, err := m.c.Usage()
	if err != nil {
		return err
	}
	worked, err := busy()
	if err != nil {
		return err
	}
	m.samples(all)
	m.r.add("bytes of a change, to each node", float64(m.f.bytes.Load()-bytes)/float64(made)/float64(len(m.nodes)), "bytes")
	m.r.add("processor time of a change", (after.CPU-before.CPU).Seconds()*1000/float64(made), "ms")
	m.r.add("processors in use meanwhile, by the whole machine", (worked-machine).Seconds()/took.Seconds(), fmt.Sprintf("of %d", runtime.NumCPU()))
	if err := m.usage("after the changes"); err != nil {
		return err
	}
	return <-profiled
}

func (m *measuring) samples(all map[string][]sample) {
	for _, what := range []string{podChange, sliceChange} {
		var write, last, every []time.Duration
		for _, s := range all[what] {
			write, last, every = append(write, s.write), append(last, s.last()), append(every, s.acks...)
		}
		if len(last) == 0 {
			continue
		}
		m.r.quantiles(what+": answer of the API server", write)
		m.r.quantiles(what+": acknowledged by a node", every)
		m.r.quantiles(what+": acknowledged by all nodes", last)
	}
}

// load adds what is good to know beside the figures.
func (m *measuring) load(ctx context.Context) error {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	peak, err := m.c.Peak()
	if err != nil {
		return err
	}
	m.r.mib("the most that was ever resident", peak)
	var average float64
	if _, err := fmt.Sscan(string(text), &average); err != nil {
		return err
	}
	m.r.add("load average of the machine at the end", average, "")
	b, err := measure.Get(ctx, m.c.metrics)
	if err != nil {
		return err
	}
	heap, err := metric(string(b), "go_memstats_heap_inuse_bytes")
	if err != nil {
		return err
	}
	m.r.mib("heap in use at the end", int64(heap))
	return m.c.profile(ctx, m.profile, "heap", "heap?gc=1")
}
