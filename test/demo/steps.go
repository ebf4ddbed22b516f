package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// secret is what an eavesdropper would like to read.
const secret = "my-card-number-is-4711"

const (
	webURL  = "http://web/"
	rate    = 1000 // requests per second
	inNode1 = "ztunnel/node1"
	inNode2 = "ztunnel/node2"
)

func (d *demo) up(ctx context.Context) ([]string, error) {
	began := time.Now()
	l, err := d.start(ctx)
	if err != nil {
		return nil, err
	}
	d.l = l
	st, err := l.Status(ctx)
	if err != nil {
		return nil, err
	}
	if d.pids, err = d.processes(ctx); err != nil {
		return nil, err
	}
	how := "as root"
	if st.Unprivileged {
		how = "in a user namespace"
	}
	seen := []string{fmt.Sprintf("%d nodes, %d components, %d pods, ready after %.1f s, %s", len(st.Nodes), len(st.Components), len(st.Pods), time.Since(began).Seconds(), how)}
	answer, err := d.get(ctx, alice, webURL)
	return append(seen, "alice asks http://web/: "+answer), err
}

// listen makes requests with the secret in them, and returns the flows that
// were seen between two pods meanwhile.
func (d *demo) listen(ctx context.Context, from lab.Where, namespace, name string) ([]trace.Flow, error) {
	a, err := d.addrs(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	web, err := d.addrs(ctx, "shop", "web")
	if err != nil {
		return nil, err
	}
	c, err := d.l.Capture(ctx, secret)
	if err != nil {
		return nil, err
	}
	for range 5 {
		if _, err = d.get(ctx, from, webURL+"?"+secret); err != nil {
			break
		}
	}
	r := c.Stop()
	if r.Dropped > 0 {
		err = errors.Join(err, fmt.Errorf("the capture is incomplete: %d frames lost", r.Dropped))
	}
	return r.Between(a, web), err
}

func count(flows []trace.Flow, f func(trace.Flow) int) (n int) {
	for _, x := range flows {
		n += f(x)
	}
	return n
}

func marks(f trace.Flow) int { return f.Marks }

func (d *demo) plaintext(ctx context.Context) ([]string, error) {
	flows, err := d.listen(ctx, alice, "shop", "alice")
	if err != nil {
		return nil, err
	}
	seen := []string{"on the link between the nodes: " + trace.Summary(flows)}
	for _, f := range flows {
		if f.Marks > 0 {
			seen = append(seen, fmt.Sprintf("%s to %s: %s", f.Client, f.Server, f.Excerpt))
			break
		}
	}
	if count(flows, marks) == 0 {
		err = errors.New("the secret was not seen, though nothing hides it")
	}
	return seen, err
}

func ambient(on bool) map[string]*string {
	v := "ambient"
	if !on {
		return map[string]*string{"istio.io/dataplane-mode": nil}
	}
	return map[string]*string{"istio.io/dataplane-mode": &v}
}

func (d *demo) enrol(ctx context.Context) ([]string, error) {
	var err error
	// It outlives this step.
	if d.load, err = d.startLoad(context.WithoutCancel(ctx), alice, webURL, rate); err != nil {
		return nil, err
	}
	if _, err := d.load.seconds(ctx, 2); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := d.l.Label(ctx, "namespace", "", "shop", ambient(true)); err != nil {
		return nil, err
	}
	if err := d.known(ctx, "HBONE", "shop/web", "shop/alice", "shop/bob"); err != nil {
		return nil, err
	}
	seen := []string{fmt.Sprintf("label set; %.0f ms later both nodes know that the pods are in the mesh", float64(time.Since(began).Milliseconds()))}
	// Connections of before go on as they are, until the client has done with
	// them.
	if _, err := d.load.seconds(ctx, 2); err != nil {
		return seen, err
	}
	flows, err := d.listen(ctx, alice, "shop", "alice")
	if err != nil {
		return seen, err
	}
	seen = append(seen, "on the link between the nodes: "+trace.Summary(flows))
	if n := count(flows, func(f trace.Flow) int {
		if f.Plaintext {
			return 1
		}
		return 0
	}); n > 0 || len(flows) == 0 {
		return seen, fmt.Errorf("%d of %d flows could be read", n, len(flows))
	}
	processes, err := d.same(ctx)
	if err != nil {
		return seen, err
	}
	line, err := d.load.clean(ctx, traffic.Report{})
	return append(seen, processes, line), err
}

func (d *demo) identities(ctx context.Context) ([]string, error) {
	p1, p2 := d.mark(inNode1), d.mark(inNode2)
	if _, err := d.get(ctx, bob, webURL); err != nil {
		return nil, err
	}
	want := []string{`src.identity="spiffe://cluster.local/ns/shop/sa/bob"`, `dst.identity="spiffe://cluster.local/ns/shop/sa/web"`}
	out, err := d.logged(ctx, p2, append(want, `direction="outbound"`)...)
	if err != nil {
		return nil, err
	}
	in, err := d.logged(ctx, p1, append(want, `direction="inbound"`)...)
	return []string{
		"bob's node: " + fields(out, "direction", "src.identity", "dst.identity"),
		"web's node: " + fields(in, "direction", "src.identity", "dst.identity"),
	}, err
}

// fields picks from an access log line what a claim is about.
func fields(line string, names ...string) string {
	var out []string
	for _, n := range names {
		_, rest, ok := strings.Cut(line, " "+n+"=")
		if !ok {
			continue
		}
		end := strings.IndexByte(rest, ' ')
		if strings.HasPrefix(rest, `"`) {
			end = strings.IndexByte(rest[1:], '"') + 2
		}
		if end > 0 && end <= len(rest) {
			rest = rest[:end]
		}
		out = append(out, n+"="+rest)
	}
	return strings.Join(out, " ")
}

func (d *demo) deny(ctx context.Context) ([]string, error) {
	before, err := d.load.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := d.l.Apply(ctx, denyBob); err != nil {
		return nil, err
	}
	var refused error
	err = until(ctx, "bob is still served", func() (bool, error) {
		var answer string
		answer, refused = d.get(ctx, bob, webURL)
		return refused != nil, errors.New(answer)
	})
	if err != nil {
		return nil, err
	}
	seen := []string{"bob: " + last(refused.Error())}
	// Once more: the first refusal may have met a connection that was open.
	p := d.mark(inNode1)
	if answer, err := d.get(ctx, bob, webURL); err == nil {
		return seen, fmt.Errorf("bob is served again: %s", answer)
	}
	line, err := d.logged(ctx, p, "POLICY_DENIED", "shop/no-bob", "sa/bob")
	if err != nil {
		return seen, err
	}
	seen = append(seen, "web's node: "+fields(line, "direction", "src.workload", "src.identity", "error", "reason", "policy"))
	answer, err := d.get(ctx, alice, webURL)
	if err != nil {
		return seen, fmt.Errorf("alice must still be served: %w", err)
	}
	seen = append(seen, "alice: "+answer)
	line, err = d.load.clean(ctx, before)
	return append(seen, line), errors.Join(err, d.l.Delete(ctx, "AuthorizationPolicy", "shop", "no-bob"))
}

func last(s string) string {
	if i := strings.Index(s, "echo: "); i >= 0 {
		return s[i+len("echo: "):]
	}
	return s
}

func (d *demo) closeLive(ctx context.Context) ([]string, error) {
	h, err := d.startHold(ctx, alice, "web:9000")
	if err != nil {
		return nil, err
	}
	if _, err := h.expect(ctx, "echo"); err != nil {
		return nil, err
	}
	p := d.mark(inNode1)
	began := time.Now()
	if err := d.l.Apply(ctx, denyEcho); err != nil {
		return nil, err
	}
	o, err := h.expect(ctx, "closed")
	if err != nil {
		return nil, err
	}
	seen := []string{fmt.Sprintf("alice's connection to port 9000 ended %d ms after the policy, having answered %d times: %s", time.Since(began).Milliseconds(), o.Echoes, o.Error)}
	if err := h.wait(); err != nil {
		return seen, err
	}
	line, err := d.logged(ctx, p, "policy change", "direction=\"inbound\"")
	return append(seen, "web's node: "+fields(line, "direction", "src.workload", "src.identity", "error", "reason", "policy")), errors.Join(err, d.l.Delete(ctx, "AuthorizationPolicy", "shop", "no-echo"))
}

func (d *demo) strict(ctx context.Context) ([]string, error) {
	before, err := d.load.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	answer, err := d.get(ctx, stranger, "http://web.shop/")
	if err != nil {
		return nil, fmt.Errorf("PERMISSIVE must let plaintext in: %w", err)
	}
	seen := []string{"PERMISSIVE, stranger: " + answer}
	p := d.mark(inNode1)
	if err := d.l.Apply(ctx, strict); err != nil {
		return seen, err
	}
	var refused error
	err = until(ctx, "the stranger is still served", func() (bool, error) {
		_, refused = d.get(ctx, stranger, "http://web.shop/")
		return refused != nil, nil
	})
	if err != nil {
		return seen, err
	}
	seen = append(seen, "STRICT, stranger: "+last(refused.Error()))
	line, err := d.logged(ctx, p, "error=", "stranger")
	if err != nil {
		return seen, err
	}
	seen = append(seen, "web's node: "+fields(line, "direction", "src.workload", "src.identity", "error", "reason", "policy"))
	line, err = d.load.clean(ctx, before)
	return append(seen, line), errors.Join(err, d.l.Delete(ctx, "PeerAuthentication", "shop", "strict"))
}

func (d *demo) replace(ctx context.Context) ([]string, error) {
	before, err := d.load.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, c := range []string{inNode1, inNode2} {
		st, err := d.l.Status(ctx)
		if err != nil {
			return seen, err
		}
		old, _ := st.Component(c)
		began := time.Now()
		if err := d.l.Restart(ctx, c, lab.RestartGraceful); err != nil {
			return seen, err
		}
		if st, err = d.l.Status(ctx); err != nil {
			return seen, err
		}
		now, _ := st.Component(c)
		seen = append(seen, fmt.Sprintf("%s: pid %d is ready after %.1f s, pid %d drains", c, now.PID, time.Since(began).Seconds(), old.PID))
		if _, err := d.load.seconds(ctx, 1); err != nil {
			return seen, err
		}
	}
	if _, err := d.load.seconds(ctx, 3); err != nil {
		return seen, err
	}
	line, err := d.load.clean(ctx, before)
	return append(seen, line), err
}

func (d *demo) telemetry(ctx context.Context) ([]string, error) {
	p := d.mark(inNode1)
	if _, err := d.get(ctx, bob, webURL); err != nil {
		return nil, err
	}
	line, err := d.logged(ctx, p, "connection complete", "sa/bob", `direction="inbound"`)
	if err != nil {
		return nil, err
	}
	seen := []string{fields(line, "src.addr", "src.workload", "src.namespace", "src.identity"), fields(line, "dst.addr", "dst.hbone_addr", "dst.service", "dst.workload", "dst.identity"),
		fields(line, "direction", "bytes_sent", "bytes_recv", "duration", "reason")}
	b, err := d.l.Get(ctx, lab.InZtunnel("node1"), "http://127.0.0.1:15020/metrics")
	if err != nil {
		return seen, err
	}
	for _, m := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(m, "istio_tcp_connections_opened_total") && strings.Contains(m, "sa/bob") {
			return append(seen, pick(m)), nil
		}
	}
	return seen, errors.New("no istio_tcp_connections_opened_total of bob's connection")
}

// pick keeps the labels of a series that say something.
func pick(series string) string {
	name, rest, _ := strings.Cut(series, "{")
	labels, value, _ := strings.Cut(rest, "}")
	var keep []string
	for _, l := range strings.Split(labels, ",") {
		for _, want := range []string{"reporter", "source_workload=", "source_principal", "destination_principal", "destination_service=", "connection_security_policy", "response_code", "response_flags"} {
			if strings.HasPrefix(l, want) {
				keep = append(keep, l)
			}
		}
	}
	return name + "{" + strings.Join(keep, ",") + ",…} " + strings.TrimSpace(value)
}

func (d *demo) memory(ctx context.Context) ([]string, error) {
	st, err := d.l.Status(ctx)
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, c := range st.Components {
		if c.RSS == 0 {
			err = errors.Join(err, fmt.Errorf("%s is not running", c.Name))
		}
		seen = append(seen, fmt.Sprintf("%-16s %6.1f MiB resident", c.Name, float64(c.RSS)/(1<<20)))
		if c.Restarts > 0 {
			err = errors.Join(err, fmt.Errorf("%s has ended %d times by itself", c.Name, c.Restarts))
		}
	}
	for _, p := range st.Pods {
		seen = append(seen, fmt.Sprintf("%-16s %6.1f MiB resident, the pod's own program", p.Namespace+"/"+p.Name, float64(p.RSS)/(1<<20)))
		if p.RSS == 0 {
			err = errors.Join(err, fmt.Errorf("pod %s/%s is not running", p.Namespace, p.Name))
		}
	}
	if st.RSS == 0 {
		err = errors.Join(err, errors.New("the lab does not tell its own memory"))
	}
	seen = append(seen, fmt.Sprintf("%-16s %6.1f MiB resident, what holds nodes and pods together", "the lab itself", float64(st.RSS)/(1<<20)))
	if err != nil {
		for _, e := range st.Events {
			seen = append(seen, e.Object+": "+e.Message)
		}
	}
	return seen, err
}

func (d *demo) leave(ctx context.Context) ([]string, error) {
	before, err := d.load.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := d.l.Label(ctx, "namespace", "", "shop", ambient(false)); err != nil {
		return nil, err
	}
	if err := d.known(ctx, "TCP", "shop/web", "shop/alice", "shop/bob"); err != nil {
		return nil, err
	}
	if _, err := d.load.seconds(ctx, 2); err != nil {
		return nil, err
	}
	flows, err := d.listen(ctx, alice, "shop", "alice")
	if err != nil {
		return nil, err
	}
	seen := []string{"on the link between the nodes: " + trace.Summary(flows)}
	if count(flows, marks) == 0 {
		return seen, errors.New("the secret was not seen: traffic is still in the mesh")
	}
	processes, err := d.same(ctx)
	if err != nil {
		return seen, err
	}
	line, err := d.load.clean(ctx, before)
	return append(seen, processes, line), err
}

func (d *demo) gone(context.Context) ([]string, error) {
	if err := d.l.Close(); err != nil {
		return nil, err
	}
	d.l = nil
	var left []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(b), d.state) {
			left = append(left, "process "+e.Name())
		}
	}
	if _, err := os.Stat(d.state); err == nil {
		left = append(left, d.state)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(mounts), d.state) {
		left = append(left, "mounts")
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("left: %v", left)
	}
	return []string{"no process, no mount, no network namespace, no file"}, nil
}
