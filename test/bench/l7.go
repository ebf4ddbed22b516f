package main

import (
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
)

// waypointYAML is a service that uses a waypoint, with a route, and a server of its own:
// calls of the other server's address are not to pass the waypoint.
const waypointYAML = `
---
apiVersion: v1
kind: Pod
metadata: {name: routed, namespace: bench, labels: {app: routed}}
spec:
  nodeName: node1
  serviceAccountName: server
  containers: [{name: load, command: [LOAD, server, -listen, ":9000"], readinessProbe: {tcpSocket: {port: 9000}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: bench}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

// protocols of requests, as test/load calls them, and the ports of the services that
// declare them.
var (
	protocols     = []string{"http", "h2", "grpc"}
	protocolName  = map[string]string{"http": "HTTP/1.1", "h2": "HTTP/2", "grpc": "gRPC"}
	protocolPort  = map[string]int{"http": 80, "h2": 81, "grpc": 82}
	protocolShape = map[string]string{"http": "http", "h2": "kubernetes.io/h2c", "grpc": "grpc"}
)

// tables are the numbers of routes. Each is a service, and a listener of other proxies.
var tables = []int{1, 1000, 10_000}

// maxRules is how many rules one HTTPRoute may have.
const maxRules = 16

func routed(routes int) string { return "routed-" + strconv.Itoa(routes) }

// routesYAML is a service with that many routes. Requests of the benchmark match the last.
func routesYAML(routes int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: bench, labels: {istio.io/use-waypoint: waypoint}}\nspec:\n  selector: {app: routed}\n  ports:\n", routed(routes))
	for _, p := range protocols {
		fmt.Fprintf(&b, "  - {name: %s, port: %d, targetPort: 9000, appProtocol: %s}\n", p, protocolPort[p], protocolShape[p])
	}
	for i := range routes {
		if i%maxRules == 0 {
			fmt.Fprintf(&b, "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: %s-%d, namespace: bench}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: %s}]\n  rules:\n",
				routed(routes), i/maxRules, routed(routes))
		}
		match := fmt.Sprintf("{type: Exact, value: %s}", otherPath(i))
		if i == routes-1 {
			match = "{type: PathPrefix, value: /a}"
		}
		fmt.Fprintf(&b, "  - {matches: [{path: %s}], backendRefs: [{name: %s, port: 80}]}\n", match, routed(routes))
	}
	return b.String()
}

// otherPath is the path of a route that no request takes.
func otherPath(i int) string { return "/r/" + strconv.Itoa(i) }

// requests is one cell of the table: requests of one kind, one after the other on each
// connection.
type requests struct {
	proto               string
	size, conns, routes int
	guarded             bool
}

func (r requests) cell() string {
	s := fmt.Sprintf("%s-%dk-c%d-r%d", r.proto, r.size>>10, r.conns, r.routes)
	if r.guarded {
		s += "-" + guardedService
	}
	return s
}

// rate and cpu are the names of its rows.
func (r requests) rate() string {
	s := fmt.Sprintf("%s %d KiB, %d connections", protocolName[r.proto], r.size>>10, r.conns)
	s = strings.ReplaceAll(s, " 1 connections", " 1 connection")
	if r.routes > 1 {
		s += fmt.Sprintf(", %d routes", r.routes)
	}
	if r.guarded {
		s += fmt.Sprintf(", token and %d policies", guardedPolicies)
	}
	return s
}

func (r requests) cpu() string { return "CPU, " + r.rate() }

func percentileRow(proto, p string) string {
	return protocolName[proto] + " at 1,000/s, " + p
}

func memoryRow(proto string) string {
	return "memory per idle connection, " + protocolName[proto]
}

// l7Load returns the kinds of requests that are measured: a choice, or all.
func l7Load(wide bool) (all []requests) {
	if !wide {
		return []requests{
			{"http", 1 << 10, 1, 1, false}, {"http", 1 << 10, 64, 1, false}, {"http", 1 << 10, 64, 10_000, false}, {"http", 1 << 10, 64, 1, true},
			{"http", 64 << 10, 64, 1, false}, {"h2", 1 << 10, 64, 1, false}, {"grpc", 1 << 10, 64, 1, false},
		}
	}
	for _, proto := range protocols {
		for _, size := range []int{1 << 10, 64 << 10} {
			for _, conns := range []int{1, 64, 512} {
				all = append(all, requests{proto, size, conns, 1, false})
			}
		}
		all = append(all, requests{proto, 1 << 10, 64, 1, true})
	}
	for _, n := range tables[1:] {
		all = append(all, requests{"http", 1 << 10, 64, n, false})
	}
	return all
}

func l7Protocols(wide bool) []string {
	if wide {
		return protocols
	}
	return protocols[:1]
}

// l7Rows is the order of the table.
func l7Rows(o options) (all []row) {
	for _, r := range l7Load(o.wide) {
		if o.wants(cell{name: r.cell()}) {
			all = append(all, row{r.rate(), "1/s", true}, row{r.cpu(), "CPU-µs", false})
		}
	}
	for _, p := range l7Protocols(o.wide) {
		if o.wants(cell{name: rateCell(p)}) {
			all = append(all, row{percentileRow(p, "p50"), "µs", false}, row{percentileRow(p, "p99"), "µs", false})
		}
	}
	for _, p := range o.idleProtocols() {
		if o.wants(cell{name: memoryCell(p)}) {
			all = append(all, row{memoryRow(p), "KiB", false})
		}
	}
	return all
}

func rateCell(proto string) string   { return "rate-" + proto }
func memoryCell(proto string) string { return "memory-" + proto }

// idleProtocols returns the protocols of which memory is measured: none when there are many routes,
// because the heap that they have left behind would hide it.
func (o *options) idleProtocols() []string {
	if len(o.tables()) > 1 {
		return nil
	}
	return l7Protocols(o.wide)
}

// l7Cells are measurements of requests. Memory is measured first: what other requests
// have left behind would hide it as well.
func l7Cells(o options) (all []cell) {
	for _, p := range o.idleProtocols() {
		all = append(all, cell{name: memoryCell(p), rounds: 1, needsProxies: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.idle(ctx, p, o.held)
		}})
	}
	for _, r := range l7Load(o.wide) {
		all = append(all, cell{name: r.cell(), rounds: o.rounds, guarded: r.guarded, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.requests(ctx, o, r)
		}})
	}
	for _, p := range l7Protocols(o.wide) {
		all = append(all, cell{name: rateCell(p), rounds: o.rounds, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			r, err := c.request(ctx, requests{proto: p, size: 1 << 10, conns: 4, routes: 1}, "httprate", "-rate", "1000", "-duration", o.duration.String())
			return map[string]float64{percentileRow(p, "p50"): r.P50Micros, percentileRow(p, "p99"): r.P99Micros}, err
		}})
	}
	return all
}

// requestArgs are those of the load client, before the address.
func (c *contender) requestArgs(r requests, mode string, args ...string) []string {
	all := append([]string{mode, "-proto", r.proto, "-size", strconv.Itoa(r.size), "-conns", strconv.Itoa(r.conns)}, args...)
	if c.certs != "" {
		all = append(all, "-certs", c.certs)
	}
	if r.guarded && c.token != "" {
		all = append(all, "-token", c.token)
	}
	return all
}

// request runs the load client where requests of that kind go.
func (c *contender) request(ctx context.Context, r requests, mode string, args ...string) (loadResult, error) {
	at := *c
	if c.site != nil {
		at.addr = c.site(r)
	}
	return at.load(ctx, c.requestArgs(r, mode, args...)...)
}

// requests measures the rate of requests and what a request costs.
func (c *contender) requests(ctx context.Context, o options, r requests) (map[string]float64, error) {
	who := []*contender{c}
	if c.part != nil {
		who = append(who, c.part)
	}
	var before [2]time.Duration
	for i, w := range who {
		u, err := w.usage(ctx)
		if err != nil {
			return nil, err
		}
		before[i] = u.CPU
	}
	profiled := func() error { return nil }
	if o.profiles != "" && c.part != nil {
		profiled = c.profile(ctx, filepath.Join(o.profiles, r.cell()), o.duration)
	}
	res, err := c.request(ctx, r, "http", "-duration", o.duration.String())
	if err = errors.Join(err, profiled()); err != nil {
		return nil, err
	}
	v := map[string]float64{r.rate(): res.PerSecond}
	for i, w := range who {
		u, err := w.usage(ctx)
		if err != nil {
			return nil, err
		}
		used := float64((u.CPU - before[i]).Microseconds())
		switch {
		case used <= 0:
		case i == 0:
			v[r.cpu()] = used / (res.PerSecond * res.Seconds)
		default:
			w.took = map[string]float64{r.cpu(): used / (res.PerSecond * res.Seconds)}
		}
	}
	return v, nil
}

// profile writes a profile of the waypoint's processor to a file. It returns what waits for it.
func (c *contender) profile(ctx context.Context, file string, d time.Duration) (wait func() error) {
	ended := make(chan error, 1)
	go func() {
		st, err := c.lab.Status(ctx)
		for _, p := range st.Pods {
			if err != nil || p.Namespace != "bench" || !strings.HasPrefix(p.Name, "waypoint-") {
				continue
			}
			var b []byte
			if b, err = c.lab.Get(ctx, lab.InPod(p.Namespace, p.Name), fmt.Sprintf("http://127.0.0.1:15000/debug/pprof/profile?seconds=%d", max(1, int(d.Seconds())))); err == nil {
				err = os.WriteFile(file, b, 0o600)
			}
		}
		ended <- err
	}()
	return func() error { return <-ended }
}

// idle measures how much proxies grow by n connections that have carried one request each.
func (c *contender) idle(ctx context.Context, proto string, n int) (_ map[string]float64, err error) {
	r := requests{proto: proto, size: 1 << 10, conns: 4, routes: 1}
	if _, err := c.request(ctx, r, "http", "-duration", "300ms"); err != nil {
		return nil, err
	}
	who := []*contender{c}
	if c.part != nil {
		who = append(who, c.part)
	}
	var at [2][2]int64
	for i, conns := range []int{max(1, n/4), n} {
		r.conns = conns
		held := *c
		if c.site != nil {
			held.addr = c.site(r)
		}
		h, herr := held.hold(ctx, c.requestArgs(r, "httphold")...)
		if herr != nil {
			return nil, herr
		}
		defer func() { err = errors.Join(err, h.end()) }()
		for j, w := range who {
			u, serr := w.settled(ctx)
			if serr != nil {
				return nil, serr
			}
			at[i][j] = u.RSS
		}
	}
	each := func(j int) map[string]float64 {
		return map[string]float64{memoryRow(proto): float64(at[1][j]-at[0][j]) / 1024 / float64(n)}
	}
	if c.part != nil {
		c.part.took = each(1)
	}
	return each(0), nil
}

// waypoint adds the way of requests over both node proxies and a waypoint between them,
// once the waypoint has carried one for each service.
func (w *world) waypoint(ctx context.Context, o options, l *lab.Lab, name, title string) error {
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	addrs := map[string]string{}
	for _, s := range st.Services {
		if s.Namespace == "bench" && len(s.IPs) > 0 {
			addrs[s.Name] = s.IPs[0]
		}
	}
	c := &contender{name: name, title: title, lab: l, client: lab.InPod("bench", "client"), token: o.issuer.token}
	c.site = func(r requests) string {
		name := routed(r.routes)
		if r.guarded {
			name = guardedService
		}
		return addrs[name] + ":" + strconv.Itoa(protocolPort[r.proto])
	}
	c.proxies = func(ctx context.Context) ([]int, error) {
		st, err := l.Status(ctx)
		if err != nil {
			return nil, err
		}
		var pids []int
		for _, n := range proxies {
			p, _ := st.Component(n)
			pids = append(pids, p.PID)
		}
		for _, p := range st.Pods {
			if p.Namespace == "bench" && strings.HasPrefix(p.Name, "waypoint-") {
				pids = append(pids, p.PIDs...)
			}
		}
		if len(pids) <= len(proxies) {
			return nil, errors.New("the waypoint does not run")
		}
		return pids, nil
	}
	alone := *c
	alone.name, alone.title, alone.of = name+"-alone", "CPU of the "+title, c
	alone.proxies = func(ctx context.Context) ([]int, error) {
		pids, err := c.proxies(ctx)
		return pids[min(len(proxies), len(pids)):], err
	}
	c.part = &alone
	w.add(c, o)
	w.add(&alone, o)
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("waited a minute"))
	defer cancel()
	for _, n := range o.tables() {
		if addrs[routed(n)] == "" {
			return fmt.Errorf("service bench/%s has no address", routed(n))
		}
		if err := c.until(ctx, requests{proto: "http", size: 1 << 10, conns: 1, routes: n}, c.requested); err != nil {
			return fmt.Errorf("requests do not go through the waypoint: %w", err)
		}
	}
	for _, p := range protocols {
		if err := c.guarded(ctx, p); err != nil {
			return fmt.Errorf("the waypoint: %w", err)
		}
	}
	return nil
}

// until waits until a request succeeds, and then a check.
func (c *contender) until(ctx context.Context, r requests, check func(context.Context) error) error {
	for {
		_, err := c.request(ctx, r, "http", "-duration", "50ms")
		if err == nil && check != nil {
			err = check(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tables returns the numbers of routes that the run needs.
func (o *options) tables() (all []int) {
	for _, n := range tables {
		needed := n == 1 || slices.ContainsFunc(l7Load(o.wide), func(r requests) bool { return r.routes == n && o.wants(cell{name: r.cell()}) })
		if needed {
			all = append(all, n)
		}
	}
	return all
}

// others adds the contenders of requests only.
func (w *world) others(ctx context.Context, o options, l *lab.Lab, server, dir string) error {
	if wanted(o.only, "waypoint") {
		if err := w.waypoint(ctx, o, l, "waypoint", "waypoint"); err != nil {
			return err
		}
	}
	for _, p := range reverseProxies {
		if o.reverse[p.program] == "" || !wanted(o.only, p.name) {
			continue
		}
		if err := w.reverse(ctx, o, l, p, server, dir); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// requested checks that the waypoint has counted a request.
func (c *contender) requested(ctx context.Context) error {
	st, err := c.lab.Status(ctx)
	if err != nil {
		return err
	}
	for _, p := range st.Pods {
		if p.Namespace != "bench" || !strings.HasPrefix(p.Name, "waypoint-") {
			continue
		}
		b, err := c.lab.Get(ctx, lab.InPod(p.Namespace, p.Name), "http://127.0.0.1:15020/stats/prometheus")
		if err != nil {
			return err
		}
		if strings.Contains(string(b), `istio_requests_total{reporter="waypoint"`) {
			return nil
		}
	}
	return errors.New("it has counted none")
}
