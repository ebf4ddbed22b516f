package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/process"
)

// component is one supervised program of the mesh.
type component struct {
	s    *supervisor
	name string
	node *node  // nil: the LAN
	path string // guarded by supervisor.mu

	// Guarded by supervisor.mu.
	current  *generation // newest generation, nil while down
	held     bool        // kept down by Stop
	restarts int
	message  string
	since    time.Time
	ready    bool
	number   int // of generations so far

	commands chan func(ctx context.Context) // run by keep, one at a time
}

func (s *supervisor) startComponents(ctx context.Context) {
	if !s.cfg.Mesh {
		return
	}
	add := func(name string, n *node, path string) {
		s.components = append(s.components, &component{s: s, name: name, node: n, path: path, commands: make(chan func(context.Context))})
	}
	add(network.Ambitd, nil, filepath.Join(s.cfg.BinDir, network.Ambitd))
	for _, n := range s.nodes {
		add(network.AmbitCNI+"/"+n.name, n, filepath.Join(s.cfg.BinDir, network.AmbitCNI))
	}
	for _, n := range s.nodes {
		path := filepath.Join(s.cfg.BinDir, network.Ztunnel)
		if peer := s.cfg.PeerZtunnel[n.name]; peer != "" {
			path = peer
		}
		add(network.Ztunnel+"/"+n.name, n, path)
	}
	for _, c := range s.components {
		s.running.Add(1)
		go c.keep(ctx)
	}
}

// keep runs a component until the lab ends, whatever happens to it.
func (c *component) keep(ctx context.Context) {
	defer c.s.running.Done()
	defer c.finish()
	var b backoff
	for ctx.Err() == nil {
		began := time.Now()
		if c.isHeld() {
			c.serveCommand(ctx, nil)
			continue
		}
		if !c.canBegin() {
			t := time.NewTimer(probeEvery)
			c.serveCommand(ctx, t.C)
			t.Stop()
			continue
		}
		if err := c.begin(ctx); err != nil {
			c.say("%v", err)
		} else if !c.watch(ctx) {
			continue // told to: at once
		}
		d := b.next(time.Since(began))
		t := time.NewTimer(d)
		c.serveCommand(ctx, t.C)
		t.Stop()
	}
}

// canBegin holds a ztunnel back until ambitd has written the roots that it may trust, as
// Kubernetes does for a config map that is not there yet.
func (c *component) canBegin() bool {
	if !strings.HasPrefix(c.name, network.Ztunnel+"/") {
		return true
	}
	_, err := os.Stat(filepath.Join(c.s.d.Ambitd(), rootCertFile))
	return err == nil
}

// serveCommand waits for a command, which it runs, or for wake, or the end.
func (c *component) serveCommand(ctx context.Context, wake <-chan time.Time) {
	select {
	case f := <-c.commands:
		f(ctx)
	case <-wake:
	case <-ctx.Done():
	}
}

// watch attends to a running process. It returns true when the process ended
// on its own account.
func (c *component) watch(ctx context.Context) bool {
	probe := time.NewTicker(probeEvery)
	defer probe.Stop()
	for {
		p := c.process()
		if p == nil {
			return false
		}
		select {
		case <-p.child.Done:
			c.ended(p)
			return !c.isHeld()
		case f := <-c.commands:
			f(ctx)
		case <-probe.C:
			c.setReady(p, c.ask(ctx, p) == nil)
		case <-ctx.Done():
			return false
		}
	}
}

func (c *component) process() *generation {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.current
}

func (c *component) isHeld() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.held
}

func (c *component) say(format string, args ...any) {
	c.s.mu.Lock()
	c.message = fmt.Sprintf(format, args...)
	c.s.mu.Unlock()
	c.s.event(c.name, format, args...)
}

func (c *component) setReady(p *generation, ready bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.current != p || c.ready == ready {
		return
	}
	c.ready = ready
	if ready {
		c.message = ""
	}
	c.s.notify()
}

func (c *component) begin(ctx context.Context) error {
	p, err := c.spawn(ctx)
	if err != nil {
		return err
	}
	c.install(p)
	return nil
}

// install makes p the newest generation and returns the one before.
func (c *component) install(p *generation) *generation {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	old := c.current
	c.current, c.since, c.ready = p, time.Now(), false
	c.s.notify()
	return old
}

// ended cleans up after a process that is no longer there.
func (c *component) ended(p *generation) {
	c.s.mu.Lock()
	own := c.current == p
	held := c.held
	if own {
		c.current, c.ready, c.since = nil, false, time.Now()
		if !held {
			c.restarts++ // by itself, or by a signal from elsewhere
		}
	}
	c.s.notify()
	c.s.mu.Unlock()
	c.release(p)
	if own && !held {
		c.say("ended with code %d%s", p.child.ExitCode(), c.lastWords())
	}
}

func (c *component) lastWords() string {
	t := strings.TrimSpace(process.Tail(c.s.d.Log(c.name), 400))
	if i := strings.LastIndexByte(t, '\n'); i >= 0 {
		t = t[i+1:]
	}
	if t != "" {
		t = ": " + t
	}
	return t
}

// finish ends the component with the lab.
func (c *component) finish() {
	if p := c.process(); p != nil {
		c.s.end(p.child, stopGrace)
		c.ended(p)
	}
}

func (c *component) ask(ctx context.Context, p *generation) error {
	return getProbe(ctx, p.where, c.readyURL(), defaultProbeTimeout)
}

func (c *component) status() lab.ComponentStatus {
	st := lab.ComponentStatus{Name: c.name, Path: c.path, State: "waiting", Ready: c.ready, Restarts: c.restarts, Since: c.since, Message: c.message}
	switch {
	case c.current != nil:
		st.State = "running"
		st.PID = c.current.child.Pid
		st.RSS = process.ResidentMemory(st.PID)
	case c.held:
		st.State = "stopped"
	}
	return st
}

func (s *supervisor) component(name string) (*component, error) {
	for _, c := range s.components {
		if c.name == name {
			return c, nil
		}
	}
	if _, _, err := lab.AdminOf(name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("no component %q in this lab", name)
}
