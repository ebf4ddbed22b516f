package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/bench/splice"
	"github.com/ambit-mesh/ambit/test/measure"
)

// worldYAML is what the traffic runs between: a pair of pods in the mesh and
// one outside of it, each across two nodes. LOAD is test/load.
const worldYAML = `
apiVersion: v1
kind: Namespace
metadata: {name: bench, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: server, namespace: bench}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client, namespace: bench}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: bench, labels: {app: server}}
spec:
  nodeName: node1
  serviceAccountName: server
  containers: [{name: load, command: [LOAD, server, -listen, ":9000"], readinessProbe: {tcpSocket: {port: 9000}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bench}
spec:
  nodeName: node2
  serviceAccountName: client
  containers: [{name: shell}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: plain}
spec:
  nodeName: node1
  containers: [{name: load, command: [LOAD, server, -listen, ":9000", -tls, ":9443", -certs, CERTS], readinessProbe: {tcpSocket: {port: 9000}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: plain}
spec:
  nodeName: node2
  containers: [{name: shell}]
`

// Ports of the plain proxies.
const (
	spliceNear = "127.0.0.1:7001" // beside the client
	spliceFar  = "7002"           // beside the server
	serverPort = "9000"
	// secureServerPort is that of the server outside of the mesh, with mutual TLS.
	secureServerPort = "9443"
)

// world is the labs of a run and who is measured in them.
type world struct {
	labs       []*lab.Lab
	contenders []*contender
	closers    []func()
}

// contender is one way from a client to a server.
type contender struct {
	name, title string
	lab         *lab.Lab
	client      lab.Where
	addr        string
	loadBin     string
	// site returns where requests of a kind go, if not to addr; certs is the directory of
	// certificates with which the client uses TLS.
	site  func(requests) string
	certs string
	// token is what guarded requests have; unguarded is a proxy that cannot judge them.
	token     string
	unguarded bool
	// part is a contender that is measured together with this one: some of its proxies.
	// took is what was measured of it, and of is the whole.
	part, of *contender
	took     map[string]float64
	// large is the same in a lab with large packets on all interfaces; nil without one.
	large  *contender
	meshed bool
	loaded time.Time // when the load of resident ended
	// proxies tells the process numbers, as the lab counts them, of what is
	// between; nil when nothing is.
	proxies func(ctx context.Context) ([]int, error)
	// fresh replaces the proxies by new ones.
	fresh func(ctx context.Context) error
}

func (w *world) close() {
	for _, f := range w.closers {
		f()
	}
	for _, l := range w.labs {
		if err := l.Close(); err != nil {
			complain(err)
		}
	}
}

// build starts one lab with Ambit, where the pods outside of the mesh are as
// well, and one each with the earlier build and the peer; for cells with large packets, one
// more of each. The world is to be closed also after an error.
func build(ctx context.Context, o options, dir, bin string) (*world, error) {
	w := new(world)
	if err := makeCerts(dir); err != nil { // for the servers of all labs
		return w, err
	}
	ours, large, err := w.pair(ctx, o, filepath.Join(dir, "ambit"), bin, "")
	if err != nil {
		return w, err
	}
	bare, err := podAddr(ctx, ours, "plain", "server")
	if err != nil {
		return w, err
	}
	if err := w.plain(ctx, o, ours, large); err != nil {
		return w, err
	}
	if wanted(o.only, "ambit") {
		if err := w.mesh(ctx, o, "ambit", "Ambit", ours, large); err != nil {
			return w, err
		}
	}
	if o.l7 {
		if err := w.others(ctx, o, ours, bare, dir); err != nil {
			return w, err
		}
		if o.before == "" || !wanted(o.only, "before") {
			return w, nil
		}
		earlier, err := w.start(ctx, o, filepath.Join(dir, "before"), o.before, "")
		if err != nil {
			return w, err
		}
		return w, w.waypoint(ctx, o, earlier, "before", "waypoint, before")
	}
	if o.before != "" && wanted(o.only, "before") {
		earlier, large, err := w.pair(ctx, o, filepath.Join(dir, "before"), o.before, "")
		if err != nil {
			return w, err
		}
		if err := w.mesh(ctx, o, "before", "before", earlier, large); err != nil {
			return w, err
		}
	}
	if o.peer == "" || !wanted(o.only, "peer") {
		return w, nil
	}
	theirs, large, err := w.pair(ctx, o, filepath.Join(dir, "peer"), bin, o.peer)
	if err != nil {
		return w, err
	}
	return w, w.mesh(ctx, o, "peer", "peer", theirs, large)
}

// pair starts a lab, and another one with large packets when a cell needs it.
func (w *world) pair(ctx context.Context, o options, state, bin, peer string) (l, large *lab.Lab, err error) {
	if l, err = w.start(ctx, o, state, bin, peer); err != nil {
		return nil, nil, err
	}
	if !slices.ContainsFunc(cells(o), func(c cell) bool { return c.large && o.wants(c) }) {
		return l, nil, nil
	}
	if large, err = w.start(ctx, o, state+"-large", bin, peer); err != nil {
		return nil, nil, err
	}
	// Before there is a tunnel: a connection keeps the sizes that it began with.
	c := &contender{name: "large packets", lab: large}
	return l, large, c.enlarge(ctx, lab.InPod("bench", "client"), lab.InPod("bench", "server"), lab.InPod("plain", "client"), lab.InPod("plain", "server"))
}

// plain adds the ways without a mesh.
func (w *world) plain(ctx context.Context, o options, ours, large *lab.Lab) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	client := lab.InPod("plain", "client")
	direct := func(l *lab.Lab) (*contender, error) {
		ip, err := podAddr(ctx, l, "plain", "server")
		return &contender{name: "none", title: "no mesh", lab: l, client: client, addr: ip + ":" + serverPort}, err
	}
	relayed := func(l *lab.Lab) (*contender, error) {
		ip, err := podAddr(ctx, l, "plain", "server")
		if err != nil {
			return nil, err
		}
		s := &splicers{lab: l, exe: exe, server: ip}
		w.closers = append(w.closers, s.stop)
		return &contender{name: "splice", title: "plain proxies", lab: l, client: client, addr: spliceNear, proxies: s.pids, fresh: s.fresh}, s.fresh(ctx)
	}
	if wanted(o.only, "none") {
		if err := w.both(o, ours, large, direct); err != nil {
			return err
		}
	}
	if o.l7 || !wanted(o.only, "splice") {
		return nil
	}
	return w.both(o, ours, large, relayed)
}

// both adds the contender of a lab, with that of the lab with large packets, if any.
func (w *world) both(o options, l, large *lab.Lab, in func(*lab.Lab) (*contender, error)) error {
	c, err := in(l)
	if err != nil {
		return err
	}
	w.add(c, o)
	if large == nil {
		return nil
	}
	if c.large, err = in(large); err == nil {
		c.large.loadBin = c.loadBin
	}
	return err
}

func (w *world) start(ctx context.Context, o options, state, bin, peer string) (*lab.Lab, error) {
	cfg := lab.Config{
		Name: "bench-" + filepath.Base(state), StateDir: state, Nodes: 2, Mesh: true, BinDir: bin,
		YAML: worldYAML, Logger: quiet(),
	}
	if o.l7 {
		cfg.YAML += waypointYAML + guardedYAML(o.issuer)
		for _, n := range o.tables() {
			cfg.YAML += routesYAML(n)
		}
	}
	cfg.YAML = strings.NewReplacer("LOAD", o.components["load"], "CERTS", filepath.Dir(state)).Replace(cfg.YAML)
	if peer != "" {
		cfg.PeerZtunnel = map[string]string{"node1": peer, "node2": peer}
		// Its own node agent leaves interfaces as they are.
		cfg.Env = map[string][]string{"ambit-cni": {"AMBIT_LARGE_PACKETS=off"}}
	}
	progress("starting the lab %s", cfg.Name)
	l, err := lab.Start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", cfg.Name, err)
	}
	w.labs = append(w.labs, l)
	return l, nil
}

func (w *world) add(c *contender, o options) {
	c.loadBin = o.components["load"]
	w.contenders = append(w.contenders, c)
}

// mesh adds the pair of pods inside a lab's mesh, once traffic between them is
// carried by both proxies.
func (w *world) mesh(ctx context.Context, o options, name, title string, l, large *lab.Lab) error {
	return w.both(o, l, large, func(l *lab.Lab) (*contender, error) { return meshed(ctx, o, name, title, l) })
}

func meshed(ctx context.Context, o options, name, title string, l *lab.Lab) (*contender, error) {
	ip, err := podAddr(ctx, l, "bench", "server")
	if err != nil {
		return nil, err
	}
	c := &contender{name: name, title: title, lab: l, client: lab.InPod("bench", "client"), addr: ip + ":" + serverPort, meshed: true, loadBin: o.components["load"]}
	c.proxies = func(ctx context.Context) ([]int, error) {
		st, err := l.Status(ctx)
		if err != nil {
			return nil, err
		}
		var pids []int
		for _, n := range proxies {
			p, _ := st.Component(n)
			if p.PID == 0 {
				return nil, fmt.Errorf("%s is not running: %s", n, p.Message)
			}
			pids = append(pids, p.PID)
		}
		return pids, nil
	}
	c.fresh = func(ctx context.Context) error {
		for _, n := range proxies {
			if err := l.Restart(ctx, n, lab.RestartKill); err != nil {
				return err
			}
		}
		if _, err := l.WaitReady(ctx); err != nil {
			return err
		}
		return c.inMesh(ctx)
	}
	return c, c.inMesh(ctx)
}

var proxies = []string{"ztunnel/node1", "ztunnel/node2"}

// inMesh waits until connections work and both proxies have carried one.
func (c *contender) inMesh(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("waited 30 s"))
	defer cancel()
	for {
		_, err := c.load(ctx, "echo", "-duration", "50ms")
		if err == nil {
			err = c.carried(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: traffic does not go through both proxies: %w (%w)", c.name, err, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// carried asks both proxies whether they have opened connections under mutual
// TLS: a table of plaintext numbers would look very good.
func (c *contender) carried(ctx context.Context) error {
	for _, n := range proxies {
		b, err := c.lab.Get(ctx, lab.InZtunnel(strings.TrimPrefix(n, "ztunnel/")), "http://127.0.0.1:15020/stats/prometheus")
		if err != nil {
			return err
		}
		found := false
		for line := range strings.Lines(string(b)) {
			found = found || strings.HasPrefix(line, "istio_tcp_connections_opened_total{") && strings.Contains(line, `connection_security_policy="mutual_tls"`)
		}
		if !found {
			return fmt.Errorf("%s has not carried a connection with mutual TLS", n)
		}
	}
	return nil
}

func podAddr(ctx context.Context, l *lab.Lab, namespace, name string) (string, error) {
	st, err := l.Status(ctx)
	if err != nil {
		return "", err
	}
	p, ok := st.Pod(namespace, name)
	if !ok || len(p.IPs) == 0 {
		return "", fmt.Errorf("no address of pod %s/%s", namespace, name)
	}
	return p.IPs[0], nil
}

// load runs the load client.
func (c *contender) load(ctx context.Context, args ...string) (loadResult, error) {
	out, err := c.lab.Run(ctx, c.client, append(append([]string{c.loadBin}, args...), c.addr)...)
	if err != nil {
		return loadResult{}, err
	}
	return parseLoad(out)
}

// usage adds up the contender's proxies.
func (c *contender) usage(ctx context.Context) (measure.Usage, error) {
	var u measure.Usage
	if c.proxies == nil {
		return u, nil
	}
	pids, err := c.proxies(ctx)
	if err != nil {
		return u, err
	}
	return c.usageOf(ctx, pids)
}

// usageOf adds up processes, by their numbers in the lab.
func (c *contender) usageOf(ctx context.Context, pids []int) (u measure.Usage, err error) {
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		out, err := c.lab.Run(ctx, lab.LAN, "cat", dir+"/stat", dir+"/smaps_rollup")
		if err != nil {
			return u, err
		}
		one, err := measure.ParseUsage(out)
		if err != nil {
			return u, fmt.Errorf("process %d: %w", pid, err)
		}
		u.CPU += one.CPU
		u.RSS += one.RSS
		u.Anonymous += one.Anonymous
	}
	return u, nil
}

// holder is a client that keeps connections.
type holder struct {
	cmd   *lab.Command
	stdin *os.File
}

func (c *contender) hold(ctx context.Context, args ...string) (*holder, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer outR.Close() //nolint:errcheck // read as far as needed
	inR, inW, err := os.Pipe()
	if err != nil {
		_ = outW.Close()
		return nil, err
	}
	cmd, err := c.lab.Exec(ctx, c.client, lab.ExecOptions{Stdin: inR, Stdout: outW, Stderr: os.Stderr},
		append(append([]string{c.loadBin}, args...), c.addr)...)
	_, _ = outW.Close(), inR.Close()
	if err != nil {
		_ = inW.Close()
		return nil, err
	}
	h := &holder{cmd: cmd, stdin: inW}
	line, err := bufio.NewReader(outR).ReadString('\n')
	if err == nil {
		_, err = parseLoad(line)
	}
	if err != nil {
		_ = h.end()
		return nil, err
	}
	return h, nil
}

func (h *holder) end() error {
	_ = h.stdin.Close()
	code, err := h.cmd.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("load hold: exit code %d", code)
	}
	return err
}

// splicers are the two plain proxies.
type splicers struct {
	lab         *lab.Lab
	exe, server string
	running     []*splicer
}

type splicer struct {
	cmd *lab.Command
	pid int
}

func (s *splicers) pids(context.Context) ([]int, error) {
	var pids []int
	for _, r := range s.running {
		pids = append(pids, r.pid)
	}
	return pids, nil
}

// fresh starts both, after ending those that run.
func (s *splicers) fresh(ctx context.Context) error {
	s.stop()
	if err := s.start(ctx, lab.InPod("plain", "server"), ":"+spliceFar, "127.0.0.1:"+serverPort); err != nil {
		return err
	}
	return s.start(ctx, lab.InPod("plain", "client"), spliceNear, s.server+":"+spliceFar)
}

func (s *splicers) start(ctx context.Context, in lab.Where, listen, to string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // one line is all it says
	cmd, err := s.lab.Exec(ctx, in, lab.ExecOptions{Stdout: w, Stderr: os.Stderr}, s.exe, splice.Command, listen, to)
	_ = w.Close()
	if err != nil {
		return err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	pid, perr := strconv.Atoi(strings.TrimSpace(line))
	if err = errors.Join(err, perr); err != nil {
		_ = cmd.Signal(lab.SIGKILL)
		_, _ = cmd.Wait()
		return fmt.Errorf("plain proxy: %w", err)
	}
	s.running = append(s.running, &splicer{cmd: cmd, pid: pid})
	return nil
}

func (s *splicers) stop() {
	for _, r := range s.running {
		_ = r.cmd.Signal(lab.SIGKILL) // it may have ended with the lab
		_, _ = r.cmd.Wait()
	}
	s.running = nil
}
