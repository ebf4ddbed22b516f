package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

func TestMain(m *testing.M) { leak.Main(m) }

const domain = "cluster.local"

var (
	gatewayAddr = netip.MustParseAddr("10.0.0.100")
	clientAddr  = netip.MustParseAddrPort("10.0.0.1:40000")
	clientID    = identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: "client"}
	gatewayID   = identity.Identity{TrustDomain: domain, Namespace: "ns", ServiceAccount: "waypoint"}
)

// world is a gateway with a directory, and endpoints of which some have a program.
type world struct {
	t     testing.TB
	group *poll.Group
	dir   *workload.Directory
	g     *Gateway

	mu       sync.Mutex // guards what follows
	config   *route.Config
	policies *authz.Set
	tokens   *authn.Set
	notes    []authz.Note
	programs map[netip.AddrPort]string // endpoint → address of the program on loopback
	dialled  []pool.Target
	requests []Record
	conns    []Record
}

func newWorld(t testing.TB, loops int) *world {
	t.Helper()
	group, err := poll.NewGroup(loops)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, group: group, dir: workload.NewDirectory(workload.Options{}), programs: map[netip.AddrPort]string{}, config: &route.Config{}, policies: authz.NewStore().Set(), tokens: authn.NewStore().Set()}
	w.workload("waypoint", gatewayAddr.String(), func(p *workloadpb.Workload) {
		p.ServiceAccount = "waypoint"
		p.Services = map[string]*workloadpb.PortList{"ns/waypoint.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 15008, TargetPort: 15008}}}}
	})
	w.service("waypoint", "10.1.0.100", func(s *workloadpb.Service) {
		s.Waypoint = nil
		s.Ports = []*workloadpb.Port{{ServicePort: 15008, TargetPort: 15008}}
	})
	w.workload("client", clientAddr.Addr().String(), func(p *workloadpb.Workload) { p.ServiceAccount = "client" })
	w.g = New(Options{
		Loops: group, Source: gatewayAddr, Directory: w.dir.Snapshot, Identity: gatewayID,
		Self:            func() *workload.Workload { return w.dir.Snapshot().WorkloadByAddr("", gatewayAddr) },
		Config:          func() *route.Config { w.mu.Lock(); defer w.mu.Unlock(); return w.config },
		Policies:        func() *authz.Set { w.mu.Lock(); defer w.mu.Unlock(); return w.policies },
		Authentications: func() *authn.Set { w.mu.Lock(); defer w.mu.Unlock(); return w.tokens },
		dial:            w.dial,
		Telemetry: Telemetry{
			Policy:           func(n authz.Note) { w.mu.Lock(); defer w.mu.Unlock(); w.notes = append(w.notes, n) },
			Request:          func(r *Record) { w.mu.Lock(); defer w.mu.Unlock(); w.requests = append(w.requests, *r) },
			ConnectionClosed: func(r *Record) { w.mu.Lock(); defer w.mu.Unlock(); w.conns = append(w.conns, *r) },
		},
	})
	t.Cleanup(func() {
		w.g.Close()
		for i := range group.Len() {
			w.on(group.Loop(i), func() {})
		}
		if n := w.g.Active(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		group.Close()
	})
	return w
}

func (w *world) on(l *poll.Loop, f func()) {
	w.t.Helper()
	done := make(chan struct{})
	l.Post(func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(time.Minute):
		w.t.Fatal("the loop hangs")
	}
}

// workload adds one of namespace ns at an address.
func (w *world) workload(name, addr string, edit func(*workloadpb.Workload)) {
	w.t.Helper()
	p := &workloadpb.Workload{
		Uid: "c//Pod/ns/" + name, Name: name, Namespace: "ns", ServiceAccount: name, TrustDomain: domain,
		Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()}, TunnelProtocol: workloadpb.TunnelProtocol_HBONE,
	}
	edit(p)
	w.apply(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: p}})
}

// service adds one of namespace ns that uses the waypoint, with port 80.
func (w *world) service(name, vip string, edit func(*workloadpb.Service)) {
	w.t.Helper()
	s := &workloadpb.Service{
		Name: name, Namespace: "ns", Hostname: name + ".ns.svc.cluster.local",
		Addresses:  []*workloadpb.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
		Ports:      []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: workloadpb.AppProtocol_HTTP11}},
		IpFamilies: workloadpb.IPFamilies_DUAL,
		Waypoint: &workloadpb.GatewayAddress{
			Destination:   &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "waypoint.ns.svc.cluster.local"}},
			HboneMtlsPort: 15008,
		},
	}
	edit(s)
	w.apply(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: s}})
}

func (w *world) apply(a *workloadpb.Address) {
	w.t.Helper()
	if _, bad := w.dir.Apply([]*workloadpb.Address{a}, nil); len(bad) > 0 {
		w.t.Fatal(bad)
	}
}

// endpoint adds an endpoint of a service, and the program behind it.
func (w *world) endpoint(name, addr, service, program string) {
	w.t.Helper()
	w.workload(name, addr, func(p *workloadpb.Workload) {
		p.Services = map[string]*workloadpb.PortList{"ns/" + service + ".ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.programs[netip.AddrPortFrom(netip.MustParseAddr(addr), 8080)] = program
}

// routes configures port 80 of a service. Backends are names of services.
func (w *world) routes(service string, rules ...route.Rule) {
	w.t.Helper()
	table, problems := route.Compile(rules, route.BySpecificity)
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	ups := map[string]*route.Upstream{}
	for _, r := range rules {
		for _, b := range r.Backends {
			ups[b.Name] = &route.Upstream{Service: key(b.Name)}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config = &route.Config{Ports: map[route.PortKey]*route.Port{key(service): {Table: table}}, Upstreams: ups}
}

func key(service string) route.PortKey {
	return route.PortKey{Namespace: "ns", Hostname: service + ".ns.svc.cluster.local", Port: 80}
}

func (w *world) dial(l *poll.Loop, to *pool.Target, done func(stream.Conn, *reason.Error)) func() {
	w.mu.Lock()
	w.dialled = append(w.dialled, *to)
	program := w.programs[to.App]
	w.mu.Unlock()
	cancelled := false
	l.Go(func() {
		fd, err := dialTCP(program)
		if !l.Post(func() {
			switch {
			case cancelled:
				poll.CloseFD(fd)
			case err != nil:
				done(nil, reason.Errorf(reason.ConnectFailure, "%w", err))
			default:
				s, err := stream.Plain(l, fd, stream.Info{Dialed: true})
				if err != nil {
					w.t.Error(err)
				}
				done(s, nil)
			}
		}) {
			poll.CloseFD(fd)
		}
	})
	return func() { cancelled = true }
}

func dialTCP(addr string) (int, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return -1, err
	}
	return take(c)
}

// take returns the descriptor of a connection of package net, which is closed.
func take(c net.Conn) (int, error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if cerr := raw.Control(func(n uintptr) { fd, err = poll.Dup(int(n)) }); cerr != nil {
		return -1, cerr
	}
	if err == nil {
		err = syscall.SetNonblock(fd, true)
	}
	_ = c.Close()
	return fd, err
}

// refusal is the answer to a CONNECT that was not accepted.
type refusal int

func (r refusal) Error() string { return fmt.Sprint("CONNECT was refused with ", int(r)) }

// connect opens a stream to what a client calls.
func (w *world) connect(authority string) (net.Conn, error) {
	w.t.Helper()
	near, far, err := sockets()
	if err != nil {
		w.t.Fatal(err)
	}
	answer := make(chan error, 1)
	l := w.group.Pick(uint64(len(authority)))
	l.Post(func() {
		w.g.shard(l).serve(&incoming{
			authority: authority, peer: clientID, remote: clientAddr, baggage: "k8s.namespace.name=ns",
			accept: func() stream.Conn {
				s, err := stream.Plain(l, far, stream.Info{Remote: clientAddr, Peer: clientID})
				if err != nil {
					w.t.Error(err)
				}
				answer <- nil
				return s
			},
			refuse: func(status int) {
				poll.CloseFD(far)
				answer <- refusal(status)
			},
			gone: func() bool { return false },
		})
	})
	if err := <-answer; err != nil {
		_ = near.Close()
		return nil, err
	}
	return near, nil
}

func sockets() (net.Conn, int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, -1, err
	}
	defer func() { _ = ln.Close() }()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, -1, err
	}
	far, err := ln.Accept()
	if err != nil {
		return nil, -1, err
	}
	fd, err := take(far)
	return near, fd, err
}

// program is a server of package net/http that says its name.
func program(t testing.TB, name string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(rw, "%s %s %s %s", name, r.Method, r.URL, b)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// get sends one request on a connection and returns status and body.
func get(t testing.TB, c net.Conn, path string) (int, string) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: whatever\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// seen waits for n records.
func (w *world) seen(n int, of func() []Record) []Record {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		all := of()
		w.mu.Unlock()
		if len(all) >= n {
			return all
		}
	}
	w.t.Fatalf("%d records do not come", n)
	return nil
}
