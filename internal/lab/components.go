package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// component is one supervised program of the mesh.
type component struct {
	s    *supervisor
	name string
	node *node  // nil: the LAN
	path string // guarded by supervisor.mu

	// Guarded by supervisor.mu.
	current  *process // newest generation, nil while down
	held     bool     // kept down by Stop
	restarts int
	message  string
	since    time.Time
	ready    bool
	number   int // of generations so far

	commands chan func(ctx context.Context) // run by keep, one at a time
}

// process is one generation of a component.
type process struct {
	child *child
	own   *space // of a ztunnel, which is a pod of its own
	where *space // the namespace it runs in
	link  string
	host  int
}

// drainGrace bounds how long the old generation of a ztunnel may drain.
const drainGrace = 35 * time.Second

func (s *supervisor) startComponents(ctx context.Context) {
	if !s.cfg.Mesh {
		return
	}
	add := func(name string, n *node, path string) {
		s.components = append(s.components, &component{s: s, name: name, node: n, path: path, commands: make(chan func(context.Context))})
	}
	add(ambitd, nil, filepath.Join(s.cfg.BinDir, ambitd))
	for _, n := range s.nodes {
		add(ambitCNI+"/"+n.name, n, filepath.Join(s.cfg.BinDir, ambitCNI))
	}
	for _, n := range s.nodes {
		path := filepath.Join(s.cfg.BinDir, ztunnel)
		if peer := s.cfg.PeerZtunnel[n.name]; peer != "" {
			path = peer
		}
		add(ztunnel+"/"+n.name, n, path)
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

// canBegin holds a ztunnel back until ambitd has written whom it may trust, as
// Kubernetes does for a config map that is not there yet.
func (c *component) canBegin() bool {
	if !strings.HasPrefix(c.name, ztunnel+"/") {
		return true
	}
	_, err := os.Stat(filepath.Join(c.s.d.ambitd(), rootCertFile))
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
		case <-p.child.done:
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

func (c *component) process() *process {
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

func (c *component) setReady(p *process, ready bool) {
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
func (c *component) install(p *process) *process {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	old := c.current
	c.current, c.since, c.ready = p, time.Now(), false
	c.s.notify()
	return old
}

// ended cleans up after a process that is no longer there.
func (c *component) ended(p *process) {
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
		c.say("ended with code %d%s", p.child.exitCode(), c.lastWords())
	}
}

func (c *component) lastWords() string {
	t := strings.TrimSpace(tail(c.s.d.log(c.name), 400))
	if i := strings.LastIndexByte(t, '\n'); i >= 0 {
		t = t[i+1:]
	}
	if t != "" {
		t = ": " + t
	}
	return t
}

func (c *component) release(p *process) {
	if p.own == nil {
		return
	}
	c.node.space.unplug(p.link)
	p.own.close()
	c.s.mu.Lock()
	c.node.proxies.give(p.host)
	c.s.mu.Unlock()
}

// finish ends the component with the lab.
func (c *component) finish() {
	if p := c.process(); p != nil {
		c.s.end(p.child, stopGrace)
		c.ended(p)
	}
}

// spawn starts a new generation.
func (c *component) spawn(ctx context.Context) (*process, error) {
	p := &process{where: c.s.lan}
	kind, _, _ := strings.Cut(c.name, "/")
	if c.node != nil {
		p.where = c.node.space
	}
	if kind == ztunnel {
		if err := c.ownSpace(p); err != nil {
			return nil, err
		}
	}
	args, env, err := c.commandLine(ctx, kind, p)
	if err == nil {
		err = c.exec(p, args, env)
	}
	if err != nil {
		c.release(p)
		return nil, err
	}
	return p, nil
}

// ownSpace gives a generation of a ztunnel its pod, so that two of them do not
// fight for ports.
func (c *component) ownSpace(p *process) error {
	s := c.s
	s.mu.Lock()
	host, ok := c.node.proxies.take()
	c.number++
	number := c.number
	s.mu.Unlock()
	if !ok {
		return errors.New("too many generations of ztunnel at once")
	}
	p.host, p.link = host, fmt.Sprintf("ztunnel%d", number)
	path := filepath.Join(s.d.node(c.node.name), p.link)
	own, err := newPodSpace(c.node.space, path, p.link, c.node.n, host, s.v6)
	if err != nil {
		s.mu.Lock()
		c.node.proxies.give(host)
		s.mu.Unlock()
		return err
	}
	p.own, p.where = own, own
	return nil
}

func (c *component) exec(p *process, args, env []string) error {
	log, err := openLog(c.s.d.log(c.name))
	if err != nil {
		return err
	}
	w, err := log.pipe()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = w.Close()
		return err
	}
	c.s.mu.Lock()
	path := c.path
	c.s.mu.Unlock()
	p.child, err = c.s.kids.start(p.where.ns, path, append([]string{path}, args...), &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, w, w}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	closeAll([]*os.File{null, w})
	if err != nil {
		return fmt.Errorf("starting %s: %w", path, err)
	}
	return nil
}

// commandLine works out arguments and environment of a component.
func (c *component) commandLine(ctx context.Context, kind string, p *process) (args, env []string, err error) {
	s := c.s
	e := hostEnv()
	switch kind {
	case ambitd:
		args = ambitdArgs(s)
	case ambitCNI:
		args = cniArgs(s, c.node)
	case ztunnel:
		args = []string{"proxy", "ztunnel"}
		if err := s.writeToken(ctx, c.node.name); err != nil {
			return nil, nil, err
		}
		ztunnelEnv(s, c.node, p, e)
	}
	for _, k := range []string{kind, c.name} {
		args = append(args, s.cfg.Args[k]...)
		for _, kv := range s.cfg.Env[k] {
			name, v, _ := strings.Cut(kv, "=")
			e[name] = v
		}
		if c.name == kind {
			break
		}
	}
	return args, environ(e), nil
}

func ambitdArgs(s *supervisor) []string {
	args := []string{
		"--config-dir", s.d.config(), "--config-dir", s.d.generated(), "--status-dir", s.d.status(),
		"--state-dir", s.d.ambitd(), "--admin", "127.0.0.1:" + strconv.Itoa(wellknown.PortControlDebug),
	}
	for _, ip := range hostAddr(0, lanHost).strings(s.v6) {
		args = append(args, "--server-name", ip)
	}
	return args
}

func cniArgs(s *supervisor, n *node) []string {
	return []string{
		"--node", n.name, "--config-dir", s.d.config(), "--config-dir", s.d.generated(), "--status-dir", s.d.status(),
		"--netns-dir", s.d.podNetns(n.name), "--zds-socket", s.d.zds(n.name), "--plugin-socket", s.d.plugin(n.name),
	}
}

func ztunnelEnv(s *supervisor, n *node, p *process, env map[string]string) {
	address := fmt.Sprintf("https://%s", net.JoinHostPort(hostAddr(0, lanHost).v4.String(), strconv.Itoa(ambitdPort)))
	root := filepath.Join(s.d.ambitd(), rootCertFile)
	for k, v := range map[string]string{
		"XDS_ADDRESS": address, "CA_ADDRESS": address, "XDS_ROOT_CA": root, "CA_ROOT_CA": root,
		"AUTH_TOKEN": s.d.token(n.name), "NODE_NAME": n.name, "INPOD_UDS": s.d.zds(n.name),
		"CLUSTER_ID": wellknown.DefaultCluster, "POD_NAME": "ztunnel-" + n.name + "-" + p.link,
		"POD_NAMESPACE": wellknown.SystemNamespace, "SERVICE_ACCOUNT": "ztunnel",
		"INSTANCE_IP": hostAddr(n.n, p.host).v4.String(), "PROXY_MODE": "shared",
		"TERMINATION_GRACE_PERIOD_SECONDS": "30",
	} {
		env[k] = v
	}
}

// readyURL is where a component says that it is ready.
func (c *component) readyURL() string {
	kind, _, _ := strings.Cut(c.name, "/")
	switch kind {
	case ambitd:
		return fmt.Sprintf("http://127.0.0.1:%d/readyz", wellknown.PortControlMonitor)
	case ztunnel:
		return fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", wellknown.PortReady)
	}
	return "http://127.0.0.1:8000/readyz"
}

func (c *component) ask(ctx context.Context, p *process) error {
	return getProbe(ctx, p.where, c.readyURL(), defaultProbeTimeout)
}

// do runs f in the turn of the component's keeper.
func (c *component) do(ctx context.Context, f func(ctx context.Context) error) error {
	done := make(chan error, 1)
	select {
	case c.commands <- func(ctx context.Context) { done <- f(ctx) }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// kill only sends a signal: what follows is the keeper's business.
func (c *component) kill(sig unix.Signal) error {
	p := c.process()
	if p == nil {
		return fmt.Errorf("%s is not running", c.name)
	}
	c.s.kids.signal(p.child, sig)
	return nil
}

func (c *component) stop(ctx context.Context, sig unix.Signal) error {
	return c.do(ctx, func(context.Context) error {
		c.s.mu.Lock()
		c.held = true
		p := c.current
		c.s.mu.Unlock()
		if p == nil {
			return nil
		}
		c.s.kids.signal(p.child, sig)
		t := time.NewTimer(drainGrace)
		defer t.Stop()
		select {
		case <-p.child.done:
		case <-t.C:
			c.s.end(p.child, 0)
		}
		c.ended(p)
		return nil
	})
}

func (c *component) resume(ctx context.Context) error {
	err := c.do(ctx, func(context.Context) error {
		c.s.mu.Lock()
		c.held = false
		c.s.mu.Unlock()
		return nil
	})
	if err != nil {
		return err
	}
	return c.awaitReady(ctx)
}

func (c *component) awaitReady(ctx context.Context) error {
	for {
		c.s.mu.Lock()
		ready, changed, message := c.ready, c.s.changed, c.message
		c.s.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s: %w", c.name, message, context.Cause(ctx))
		}
	}
}

// restart replaces the process; path, when given, is its binary from now on.
func (c *component) restart(ctx context.Context, mode RestartMode, path string) error {
	if path != "" {
		c.s.mu.Lock()
		c.path = path
		c.s.mu.Unlock()
	}
	if mode == RestartGraceful && strings.HasPrefix(c.name, ztunnel+"/") {
		return c.do(ctx, c.handOver)
	}
	sig := unix.SIGTERM
	if mode == RestartKill {
		sig = unix.SIGKILL
	}
	if err := c.stop(ctx, sig); err != nil {
		return err
	}
	return c.resume(ctx)
}

// handOver starts the next generation beside the running one, which is told to
// end when the next is ready. The old one drains in the background.
func (c *component) handOver(ctx context.Context) error {
	next, err := c.spawn(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if err = c.ask(ctx, next); err == nil {
			break
		}
		select {
		case <-next.child.done:
			err = fmt.Errorf("the next generation ended with code %d%s", next.child.exitCode(), c.lastWords())
		case <-ctx.Done():
			err = fmt.Errorf("the next generation does not get ready: %w", err)
			c.s.end(next.child, 0)
		case <-time.After(probeEvery):
			continue
		}
		c.release(next)
		return err
	}
	old := c.install(next)
	c.setReady(next, true)
	if old != nil {
		c.s.running.Add(1)
		go func() {
			defer c.s.running.Done()
			c.s.end(old.child, drainGrace)
			c.ended(old)
		}()
	}
	return nil
}

func (c *component) status() ComponentStatus {
	st := ComponentStatus{Name: c.name, Path: c.path, State: "waiting", Ready: c.ready, Restarts: c.restarts, Since: c.since, Message: c.message}
	switch {
	case c.current != nil:
		st.State = "running"
		st.PID = c.current.child.pid
		st.RSS = residentMemory(st.PID)
	case c.held:
		st.State = "stopped"
	}
	return st
}

// residentMemory reads the bytes of memory a process holds.
func residentMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}

func (s *supervisor) component(name string) (*component, error) {
	for _, c := range s.components {
		if c.name == name {
			return c, nil
		}
	}
	if _, _, err := adminOf(name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("no component %q in this lab", name)
}

// cmdAdd asks the agent of the pod's node to enrol it, as the CNI plugin does.
func (s *supervisor) cmdAdd(ctx context.Context, p *pod) error {
	type ip struct {
		Interface int
		Address   net.IPNet
		Gateway   net.IP
	}
	body := struct {
		Netns, PodName, PodNamespace string
		IPs                          []ip
	}{Netns: filepath.Join(s.d.podNetns(p.node.name), p.uid), PodName: p.key.Name, PodNamespace: p.key.Namespace}
	for _, a := range p.ips().addrs(s.v6) {
		body.IPs = append(body.IPs, ip{Address: *ipNet(single(a))})
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/cmdadd", bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.agent(p.node.name).Do(req)
	if err != nil {
		return fmt.Errorf("ambit-cni on %s: %w", p.node.name, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ambit-cni on %s: %s: %s", p.node.name, resp.Status, bytes.TrimSpace(said))
	}
	return nil
}

func (s *supervisor) agent(node string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, release, err := shortPath(s.d.plugin(node))
			if err != nil {
				return nil, err
			}
			defer release()
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}
