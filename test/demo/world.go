package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// shopYAML is the world of the demonstration. ECHO is test/echo.
var shopYAML = rig.NamespaceObject("shop", false) + rig.NamespaceObject("street", false) +
	rig.ServiceObject("shop", "web", "web", "{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}") +
	rig.ServerObject("shop", "web", "node1", "app: web") +
	rig.PodObject("shop", "alice", "node2", "app: alice") + rig.PodObject("shop", "bob", "node2", "app: bob") + rig.PodObject("street", "stranger", "node2", "")

const (
	denyBob = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-bob, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/bob]}}]
`
	denyEcho = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-echo, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/alice]}}]
    to: [{operation: {ports: ["9000"]}}]
`
	strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
`
)

var (
	alice    = lab.InPod("shop", "alice")
	bob      = lab.InPod("shop", "bob")
	stranger = lab.InPod("street", "stranger")
)

func (d *demo) echo() string { return d.bin + "/echo" }

// get makes one request from a pod, on a connection of its own.
func (d *demo) get(ctx context.Context, from lab.Where, url string) (string, error) {
	out, err := d.l.Run(ctx, from, d.echo(), "get", "-url", url)
	return strings.TrimSpace(out), err
}

// lines runs a program in a pod, and hands over each line it prints.
func (d *demo) lines(ctx context.Context, from lab.Where, each func([]byte), argv ...string) (*lab.Command, func() error, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd, err := d.l.Exec(ctx, from, lab.ExecOptions{Stdout: w, Stderr: os.Stderr}, argv...)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, nil, err
	}
	done := make(chan error, 1)
	go func() {
		defer r.Close() //nolint:errcheck // read to the end
		s := bufio.NewScanner(r)
		for s.Scan() {
			each(s.Bytes())
		}
		done <- s.Err()
	}()
	wait := func() error {
		code, err := cmd.Wait()
		if scan := <-done; err == nil {
			err = scan
		}
		if err == nil && code != 0 {
			err = fmt.Errorf("%q: exit code %d", argv, code)
		}
		return err
	}
	return cmd, wait, nil
}

// load is a client at a constant rate.
type load struct {
	cmd  *lab.Command
	wait func() error

	mu      sync.Mutex
	sum     traffic.Report // guarded by mu
	changed chan struct{}  // guarded by mu; closed at the next line
}

func (d *demo) startLoad(ctx context.Context, from lab.Where, url string, rate int) (*load, error) {
	l := &load{changed: make(chan struct{})}
	var err error
	l.cmd, l.wait, err = d.lines(ctx, from, l.line, d.echo(), "load", "-url", url, "-rate", fmt.Sprint(rate), "-duration", "0", "-per-conn", "20")
	return l, err
}

func (l *load) line(b []byte) {
	var r traffic.Report
	if json.Unmarshal(b, &r) != nil || r.Final {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sum = traffic.Total([]traffic.Report{l.sum, r})
	close(l.changed)
	l.changed = make(chan struct{})
}

// seconds waits for n more lines and returns the sum of all so far.
func (l *load) seconds(ctx context.Context, n int) (traffic.Report, error) {
	for {
		l.mu.Lock()
		sum, changed := l.sum, l.changed
		l.mu.Unlock()
		if n == 0 {
			return sum, nil
		}
		select {
		case <-changed:
			n--
		case <-ctx.Done():
			return sum, context.Cause(ctx)
		}
	}
}

// clean is an error when requests failed since before.
func (l *load) clean(ctx context.Context, before traffic.Report) (string, error) {
	now, err := l.seconds(ctx, 2)
	if err != nil {
		return "", err
	}
	failed := now.Failed - before.Failed
	line := fmt.Sprintf("load: %d requests, %d failed; last second p50 %d µs, p99 %d µs", now.Sent-before.Sent, failed, now.P50, now.P99)
	if failed > 0 {
		err = fmt.Errorf("%d requests failed: %v", failed, now.Errors)
	}
	return line, err
}

// hold is a client that keeps one connection in use.
type hold struct {
	cmd    *lab.Command
	wait   func() error
	events chan occurrence
}

type occurrence struct {
	Event  string `json:"event"`
	Echoes int    `json:"echoes"`
	Error  string `json:"error"`
}

func (d *demo) startHold(ctx context.Context, from lab.Where, addr string) (*hold, error) {
	h := &hold{events: make(chan occurrence, 16)}
	var err error
	h.cmd, h.wait, err = d.lines(ctx, from, func(b []byte) {
		var o occurrence
		if json.Unmarshal(b, &o) == nil {
			select {
			case h.events <- o:
			default: // more than a connection has to tell
			}
		}
	}, d.echo(), "hold", "-addr", addr)
	return h, err
}

// expect waits until the connection tells of an event.
func (h *hold) expect(ctx context.Context, event string) (occurrence, error) {
	for {
		select {
		case o := <-h.events:
			if o.Event == event {
				return o, nil
			}
			if o.Event == "closed" {
				return o, fmt.Errorf("the connection closed: %s", o.Error)
			}
		case <-ctx.Done():
			return occurrence{}, fmt.Errorf("no %q from the connection: %w", event, context.Cause(ctx))
		}
	}
}

// until asks again and again until the answer is yes.
func until(ctx context.Context, what string, ask func() (bool, error)) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		ok, err := ask()
		if ok {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s: %w", what, context.Cause(ctx)), err)
		}
	}
}

// position is how much a component has printed so far.
type position struct {
	path string
	size int64
}

func (d *demo) mark(component string) position {
	p := position{path: d.l.LogPath(component)}
	if st, err := os.Stat(p.path); err == nil {
		p.size = st.Size()
	}
	return p
}

// logged waits for a line after p that has all the words in it.
func (d *demo) logged(ctx context.Context, p position, words ...string) (string, error) {
	var found string
	err := until(ctx, fmt.Sprintf("no line with %q in %s", words, p.path), func() (bool, error) {
		b, err := os.ReadFile(p.path)
		if err != nil {
			return false, err
		}
		if int64(len(b)) < p.size {
			p.size = 0 // rotated
		}
	next:
		for _, line := range strings.Split(string(b[p.size:]), "\n") {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			found = strings.ReplaceAll(line, "\t", " ")
			return true, nil
		}
		return false, nil
	})
	return found, err
}

// protocols reads what a node's proxy knows of workloads.
func (d *demo) protocols(ctx context.Context, node string) (map[string]string, error) {
	b, err := d.l.Admin(ctx, "ztunnel/"+node, admin.PathDump)
	if err != nil {
		return nil, err
	}
	var dump admin.Ztunnel
	if err := json.Unmarshal(b, &dump); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, w := range dump.Workloads {
		out[w.Namespace+"/"+w.Name] = w.Protocol
	}
	return out, nil
}

// known waits until both nodes take pods for members of the mesh, or not.
func (d *demo) known(ctx context.Context, protocol string, pods ...string) error {
	for _, node := range []string{"node1", "node2"} {
		err := until(ctx, fmt.Sprintf("%s does not take %v for %s", node, pods, protocol), func() (bool, error) {
			is, err := d.protocols(ctx, node)
			for _, p := range pods {
				if is[p] != protocol {
					return false, err
				}
			}
			return true, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// processes lists the programs of the pods.
func (d *demo) processes(ctx context.Context) (map[string][]int, error) {
	st, err := d.l.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]int{}
	for _, p := range st.Pods {
		out[p.Namespace+"/"+p.Name] = p.PIDs
	}
	return out, nil
}

func (d *demo) same(ctx context.Context) (string, error) {
	now, err := d.processes(ctx)
	if err != nil {
		return "", err
	}
	for pod, pids := range d.pids {
		if !slices.Equal(now[pod], pids) {
			return "", fmt.Errorf("processes of %s were restarted: %v, before %v", pod, now[pod], pids)
		}
	}
	return fmt.Sprintf("processes: the same as at the beginning, web is still pid %d", now["shop/web"][0]), nil
}

func (d *demo) addrs(ctx context.Context, namespace, name string) ([]netip.Addr, error) {
	st, err := d.l.Status(ctx)
	if err != nil {
		return nil, err
	}
	p, ok := st.Pod(namespace, name)
	if !ok {
		return nil, fmt.Errorf("no pod %s/%s", namespace, name)
	}
	var out []netip.Addr
	for _, ip := range p.IPs {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}
