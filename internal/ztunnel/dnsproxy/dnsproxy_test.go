package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

const patience = 30 * time.Second

// stage is a pod whose look-ups are captured, and a name server beside it.
type stage struct {
	t           testing.TB
	pod, server *netns.NS
	node        *Node
	proxy       *Pod
	sockets     *budget.Pool
	asked       []string // on demand
	mu          sync.Mutex
}

var serverAt = map[bool]netip.Addr{false: netip.MustParseAddr("10.0.0.1"), true: netip.MustParseAddr("fd00::1")}

func newStage(t testing.TB, demand bool) *stage {
	t.Helper()
	s := &stage{t: t, sockets: budget.New(1000)}
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	open := func() (*netns.NS, *links.Links) {
		ns, err := netns.New()
		must(err)
		t.Cleanup(func() { _ = ns.Close() })
		l, err := links.Of(ns)
		must(err)
		t.Cleanup(l.Close)
		return ns, l
	}
	pod, podLinks := open()
	server, serverLinks := open()
	s.pod, s.server = pod, server
	must(podLinks.Up("lo"), serverLinks.Up("lo"), podLinks.Cable("eth0", serverLinks, "eth0"),
		podLinks.Address("eth0", netip.MustParsePrefix("10.0.0.2/24")), podLinks.Address("eth0", netip.MustParsePrefix("fd00::2/64")),
		serverLinks.Address("eth0", netip.MustParsePrefix("10.0.0.1/24")), serverLinks.Address("eth0", netip.MustParsePrefix("fd00::1/64")),
		podLinks.Up("eth0"), serverLinks.Up("eth0"),
		nft.Apply(pod, nft.Config{IPv6: true, CaptureDNS: true}))
	dir := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	service := &workloadpb.Service{Name: "api", Namespace: "shop", Hostname: "api.example", Addresses: []*workloadpb.NetworkAddress{
		{Address: netip.MustParseAddr("240.240.0.1").AsSlice()}, {Address: netip.MustParseAddr("2001:2::1").AsSlice()},
	}}
	apply := func() {
		if _, rejected := dir.Apply([]*workloadpb.Address{{Type: &workloadpb.Address_Service{Service: service}}}, nil); len(rejected) > 0 {
			t.Error(rejected)
		}
	}
	loops, err := poll.NewGroup(1)
	must(err)
	t.Cleanup(loops.Close)
	o := Options{
		Logger: slog.New(slog.DiscardHandler), Directory: dir, Loops: loops, Domain: "cluster.local",
		Mark: wellknown.MarkProxy, ReusePort: true,
	}
	if demand {
		o.Demand = func(_ context.Context, name string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.asked = append(s.asked, name)
			if name == "shop/api.example" {
				apply()
			}
			return nil
		}
	} else {
		apply()
	}
	s.node = New(o)
	s.proxy, err = s.node.Serve(Host{
		Name: "shop/client", Client: dns.Client{Namespace: "shop", IPv6: true}, Do: pod.Do,
		Workload: func() *workload.Workload { return nil }, Sockets: s.sockets.Join(),
	})
	must(err)
	t.Cleanup(s.proxy.Close)
	return s
}

// in dials or listens in a namespace.
func in[T any](t testing.TB, ns *netns.NS, f func() (T, error)) T {
	t.Helper()
	var v T
	if err := ns.Do(func() (err error) { v, err = f(); return err }); err != nil {
		t.Fatal(err)
	}
	return v
}

func (s *stage) dial(network string, v6 bool) net.Conn {
	s.t.Helper()
	c := in(s.t, s.pod, func() (net.Conn, error) { return net.Dial(network, netip.AddrPortFrom(serverAt[v6], 53).String()) })
	s.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

func (s *stage) udpServer(v6 bool) net.PacketConn {
	s.t.Helper()
	c := in(s.t, s.server, func() (net.PacketConn, error) {
		return net.ListenPacket("udp", netip.AddrPortFrom(serverAt[v6], 53).String())
	})
	s.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

func (s *stage) tcpServer(v6 bool) net.Listener {
	s.t.Helper()
	l := in(s.t, s.server, func() (net.Listener, error) {
		return net.Listen("tcp", netip.AddrPortFrom(serverAt[v6], 53).String())
	})
	s.t.Cleanup(func() { _ = l.Close() })
	return l
}

// idle waits until nothing is taken of what the pods share.
func (s *stage) idle() {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for s.node.flights.Used() != 0 || s.sockets.Used() != 0 {
		if time.Now().After(deadline) {
			s.t.Fatalf("%d questions wait, %d descriptors are taken", s.node.flights.Used(), s.sockets.Used())
		}
		time.Sleep(time.Millisecond)
	}
}

func question(t testing.TB, name string, kind uint16) ([]byte, *miekg.Msg) {
	t.Helper()
	m := new(miekg.Msg).SetQuestion(name, kind)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

func reply(t testing.TB, q []byte, records ...string) []byte {
	t.Helper()
	m := &miekg.Msg{}
	if err := m.Unpack(q); err != nil {
		t.Fatal(err)
	}
	m.SetReply(m.Copy())
	for _, text := range records {
		rr, err := miekg.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func families(t *testing.T, f func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) { f(t, v6) })
	}
}

func write(t testing.TB, c io.Writer, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, c io.Reader) []byte {
	t.Helper()
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestUntouched: a question and its answer pass byte for byte, whatever they are, and a
// question that the client repeats goes to the server from the same port.
func TestUntouched(t *testing.T) {
	s := newStage(t, false)
	families(t, func(t *testing.T, v6 bool) {
		server, client := s.udpServer(v6), s.dial("udp", v6)
		q, _ := question(t, "WWW.outside.test.", 65280)
		q = append(q, "something after the end"...)
		buf := make([]byte, 65536)
		var ports []string
		for range 2 {
			write(t, client, q)
			n, from, err := server.ReadFrom(buf)
			if err != nil || string(buf[:n]) != string(q) {
				t.Fatalf("%x, %v", buf[:n], err)
			}
			ports = append(ports, from.String())
		}
		if ports[0] != ports[1] {
			t.Errorf("repeated from %v", ports)
		}
		answer := append([]byte{q[0], q[1], 0x80 | q[2], 0x33}, q[4:]...)
		answer = append(answer, strings.Repeat("\x00\xff", 5000)...)
		to, err := net.ResolveUDPAddr("udp", ports[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteTo(answer, to); err != nil {
			t.Fatal(err)
		}
		if got := read(t, client); string(got) != string(answer) {
			t.Errorf("%d bytes came back of %d", len(got), len(answer))
		}
		s.idle()
	})
}

// TestNoServer: where no program has the port, the client gets an error at once.
func TestNoServer(t *testing.T) {
	s := newStage(t, false)
	families(t, func(t *testing.T, v6 bool) {
		for _, network := range []string{"udp", "tcp"} {
			c := s.dial(network, v6)
			conn := &miekg.Conn{Conn: c}
			_, m := question(t, "www.outside.test.", miekg.TypeA)
			if err := conn.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
			got, err := conn.ReadMsg()
			if err != nil || got.Rcode != miekg.RcodeServerFailure || got.Id != m.Id {
				t.Errorf("over %s: %v, %v", network, got, err)
			}
			_ = c.Close()
		}
		s.idle()
	})
}

// TestDirect: a question to the proxy itself has no name server; the mesh's names are
// answered.
func TestDirect(t *testing.T) {
	s := newStage(t, false)
	for _, at := range []string{"127.0.0.1:15053", "[::1]:15053"} {
		for _, network := range []string{"udp", "tcp"} {
			for name, want := range map[string]int{"api.example.": miekg.RcodeSuccess, "www.outside.test.": miekg.RcodeRefused} {
				conn := &miekg.Conn{Conn: in(t, s.pod, func() (net.Conn, error) { return net.Dial(network, at) })}
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, m := question(t, name, miekg.TypeA)
				if err := conn.WriteMsg(m); err != nil {
					t.Fatal(err)
				}
				if got, err := conn.ReadMsg(); err != nil || got.Rcode != want {
					t.Errorf("%s over %s: %v, %v", name, network, got, err)
				}
				_ = conn.Close()
			}
		}
	}
	s.idle()
}

// TestPipelined: a connection has many questions at once, which are answered in the order
// that their answers come in; those of the mesh do not wait.
func TestPipelined(t *testing.T) {
	s := newStage(t, false)
	families(t, func(t *testing.T, v6 bool) {
		ln, client := s.tcpServer(v6), s.dial("tcp", v6)
		var all []byte
		const n = 50
		frame := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
		for i := range n {
			q, _ := question(t, fmt.Sprintf("n%d.outside.test.", i), miekg.TypeA)
			binary.BigEndian.PutUint16(q, uint16(i))
			all = append(all, frame(q)...)
		}
		own, _ := question(t, "api.example.", miekg.TypeA)
		binary.BigEndian.PutUint16(own, n)
		all = append(all, frame(own)...)
		for len(all) > 0 { // in pieces that end anywhere
			k := min(7, len(all))
			write(t, client, all[:k])
			all = all[k:]
		}
		conn := &miekg.Conn{Conn: client}
		if m, err := conn.ReadMsg(); err != nil || m.Id != n || len(m.Answer) != 1 {
			t.Fatalf("the mesh's name waits: %v, %v", m, err)
		}
		up, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = up.Close() }()
		_ = up.SetDeadline(time.Now().Add(patience))
		var questions [][]byte
		for range n {
			var length [2]byte
			if _, err := io.ReadFull(up, length[:]); err != nil {
				t.Fatal(err)
			}
			q := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(up, q); err != nil {
				t.Fatal(err)
			}
			questions = append(questions, q)
		}
		slices.Reverse(questions)
		for _, q := range questions {
			write(t, up, frame(reply(t, q)))
		}
		for i := range n {
			if m, err := conn.ReadMsg(); err != nil || int(m.Id) != n-1-i {
				t.Fatalf("answer %d: %v, %v", i, m, err)
			}
		}
		_ = client.Close()
		s.idle()
	})
}

// TestTransfer: an answer of several messages passes as a whole, and ends with its
// connection.
func TestTransfer(t *testing.T) {
	s := newStage(t, false)
	families(t, func(t *testing.T, v6 bool) {
		ln, client := s.tcpServer(v6), &miekg.Conn{Conn: s.dial("tcp", v6)}
		_, m := question(t, "outside.test.", miekg.TypeAXFR)
		if err := client.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		up := &miekg.Conn{Conn: c}
		q, err := up.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			part := &miekg.Msg{}
			if err := part.Unpack(reply(t, b, "outside.test. 1 IN TXT \""+strings.Repeat("x", 255)+"\"")); err != nil {
				t.Fatal(err)
			}
			part.Question = nil
			if err := up.WriteMsg(part); err != nil {
				t.Fatal(err)
			}
		}
		_ = up.Close()
		for range 20 {
			if m, err := client.ReadMsg(); err != nil || len(m.Answer) != 1 {
				t.Fatalf("%v, %v", m, err)
			}
		}
		if _, err := client.ReadMsg(); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
		s.idle()
	})
}

// TestAlias: an alias of the name server that leads to a name of the mesh is completed.
func TestAlias(t *testing.T) {
	s := newStage(t, false)
	families(t, func(t *testing.T, v6 bool) {
		server, client := s.udpServer(v6), s.dial("udp", v6)
		q, _ := question(t, "books.shop.svc.cluster.local.", miekg.TypeA)
		write(t, client, q)
		buf := make([]byte, 65536)
		n, from, err := server.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteTo(reply(t, buf[:n], "books.shop.svc.cluster.local. 5 IN CNAME api.example."), from); err != nil {
			t.Fatal(err)
		}
		m := &miekg.Msg{}
		if err := m.Unpack(read(t, client)); err != nil || len(m.Answer) != 2 || !strings.Contains(m.Answer[1].String(), "240.240.0.1") {
			t.Errorf("%v, %v", m, err)
		}
		s.idle()
	})
}

// TestDemand: a name that is not known yet is asked for, once.
func TestDemand(t *testing.T) {
	s := newStage(t, true)
	client := s.dial("udp", false)
	q, _ := question(t, "api.example.", miekg.TypeA)
	for range 3 {
		write(t, client, q)
		m := &miekg.Msg{}
		if err := m.Unpack(read(t, client)); err != nil || len(m.Answer) != 1 {
			t.Fatalf("%v, %v", m, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.asked, []string{"shop/api.example"}) && !slices.Contains(s.asked, "shop/api.example") {
		t.Errorf("asked for %v", s.asked)
	}
	s.idle()
}

// TestEnd: a pod that leaves with questions under way leaves nothing: no goroutine, no
// descriptor, no series.
func TestEnd(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	s := newStage(t, false)
	s.udpServer(false)
	ln := s.tcpServer(false)
	q, _ := question(t, "www.outside.test.", miekg.TypeA)
	for range 20 {
		write(t, s.dial("udp", false), q)
		write(t, s.dial("tcp", false), append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...))
	}
	for range 20 {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	for s.node.flights.Used() < 40 {
		time.Sleep(time.Millisecond)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(s.node.Metrics)
	s.proxy.Drain()
	s.proxy.Close()
	s.proxy.Close()
	s.idle()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if strings.HasPrefix(f.GetName(), "istio_dns_") && len(f.GetMetric()) > 0 {
			t.Errorf("%s stays", f.GetName())
		}
	}
	// The ports are free.
	in(t, s.pod, func() (net.PacketConn, error) { return net.ListenPacket("udp", "127.0.0.1:15053") })
	in(t, s.pod, func() (net.Listener, error) { return net.Listen("tcp", "[::1]:15053") })
	s.node.Loops.Close()
	if err := goleak.Find(ignore); err != nil {
		t.Error(err)
	}
}

// BenchmarkAnswer measures questions for names of the mesh, from a client's socket and
// back, redirection included.
func BenchmarkAnswer(b *testing.B) {
	s := newStage(b, false)
	client := s.dial("udp", false)
	q, _ := question(b, "api.example.", miekg.TypeA)
	buf := make([]byte, 4096)
	const window = 64
	b.ReportAllocs()
	for range window {
		write(b, client, q)
	}
	for b.Loop() {
		if _, err := client.Read(buf); err != nil {
			b.Fatal(err)
		}
		write(b, client, q)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "questions/s")
}

// BenchmarkForward measures questions that a name server answers.
func BenchmarkForward(b *testing.B) {
	s := newStage(b, false)
	server, client := s.udpServer(false), s.dial("udp", false)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			buf[2] |= 0x80
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	q, _ := question(b, "www.outside.test.", miekg.TypeA)
	buf := make([]byte, 4096)
	b.ReportAllocs()
	id := uint16(0)
	for b.Loop() {
		id++
		binary.BigEndian.PutUint16(q, id)
		write(b, client, q)
		if _, err := client.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "questions/s")
}
