package zds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/seqpacket"
)

// patience bounds waits that a passing test does not have.
const patience = 20 * time.Second

// proxy is a Handler that records what it is told.
type proxy struct {
	mu     sync.Mutex
	serves map[string]netns.ID
	infos  map[string]Info
	events []string
	refuse map[string]bool
	wake   chan struct{} // one token when something happened
}

func newProxy() *proxy {
	return &proxy{serves: map[string]netns.ID{}, infos: map[string]Info{}, refuse: map[string]bool{}, wake: make(chan struct{}, 1)}
}

func (p *proxy) note(format string, args ...any) {
	p.events = append(p.events, fmt.Sprintf(format, args...))
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *proxy) Add(_ context.Context, uid string, info Info, ns *netns.NS) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { _ = ns.Close() }()
	p.note("add %s", uid)
	if p.refuse[uid] {
		return errors.New("cannot bind")
	}
	p.serves[uid], p.infos[uid] = ns.ID(), info
	return nil
}

func (p *proxy) Del(_ context.Context, uid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.serves, uid)
	p.note("del %s", uid)
	return nil
}

func (p *proxy) Snapshot(_ context.Context, named map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid := range p.serves {
		if !named[uid] {
			delete(p.serves, uid)
		}
	}
	p.note("snapshot of %d", len(named))
}

func (p *proxy) Connected(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.note("connected %t", ok)
}

func (p *proxy) serving() map[string]netns.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.serves)
}

func (p *proxy) info(uid string) Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.infos[uid]
}

func (p *proxy) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.events...)
}

// waitFor waits until an event has happened n times.
func (p *proxy) waitFor(t *testing.T, event string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		count := 0
		for _, e := range p.seen() {
			if e == event {
				count++
			}
		}
		if count >= n {
			return
		}
		select {
		case <-p.wake:
		case <-deadline:
			t.Fatalf("no %d × %q in %q", n, event, p.seen())
		}
	}
}

type fixture struct {
	t       *testing.T
	path    string
	server  *Server
	changes chan struct{}
	stop    func()
}

func newServer(t *testing.T, path string) *fixture {
	t.Helper()
	f := &fixture{t: t, path: path, changes: make(chan struct{}, 100)}
	var err error
	f.server, err = Listen(ServerConfig{Path: path, Logger: slog.New(slog.DiscardHandler), OnChange: func() { f.changes <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func socketPath(t *testing.T) string { return filepath.Join(t.TempDir(), "zds.sock") }

func (f *fixture) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.server.Serve(ctx)
	}()
	f.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		_ = f.server.Close()
	})
	f.t.Cleanup(f.stop)
}

func startClient(t *testing.T, path string, h Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = NewClient(ClientConfig{Path: path, Handler: h, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(stop)
	return stop
}

func newNS(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (f *fixture) add(uid string, ns *netns.NS) {
	f.t.Helper()
	if err := f.server.Add(within(f.t), Workload{UID: uid, Info: Info{Name: uid, Namespace: "ns", ServiceAccount: "sa"}, NS: ns}); err != nil {
		f.t.Fatal(err)
	}
}

func TestSnapshotThenChanges(t *testing.T) {
	f := newServer(t, socketPath(t))
	ns := newNS(t)
	if err := f.server.Add(within(t), Workload{UID: "a", NS: ns, Info: Info{"pod", "ns", "sa"}}); !errors.Is(err, ErrNoProxy) {
		t.Errorf("without a proxy: %v", err)
	}
	f.server.Keep("k")
	f.serve()
	p := newProxy()
	startClient(t, f.path, p)
	p.waitFor(t, "connected true", 1)
	<-f.changes
	if !f.server.Served("a") || f.server.Served("k") || f.server.Served("b") {
		t.Error("not exactly what was acknowledged is served")
	}
	f.add("b", ns)
	f.add("b", ns) // is served already: not sent again
	if err := f.server.Del(within(t), "a"); err != nil {
		t.Error(err)
	}
	want := []string{"add a", "snapshot of 2", "connected true", "add b", "del a"}
	if diff := cmp.Diff(want, p.seen()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]netns.ID{"b": ns.ID()}, p.serving()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Info{"pod", "ns", "sa"}, p.info("a")); diff != "" {
		t.Error(diff)
	}
	other := newNS(t)
	f.add("b", other)
	if p.serving()["b"] != other.ID() {
		t.Error("the workload was not moved to its new namespace")
	}
}

func TestRefusalIsTheProxysOwn(t *testing.T) {
	f := newServer(t, socketPath(t))
	f.serve()
	p := newProxy()
	p.refuse["a"] = true
	startClient(t, f.path, p)
	p.waitFor(t, "connected true", 1)
	err := f.server.Add(within(t), Workload{UID: "a", NS: newNS(t)})
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.UID != "a" || refused.Reason != "cannot bind" {
		t.Errorf("got %v", err)
	}
	if f.server.Served("a") {
		t.Error("a refused workload counts as served")
	}
}

func TestAnotherFileIsNoNamespace(t *testing.T) {
	f := newServer(t, socketPath(t))
	f.serve()
	p := newProxy()
	startClient(t, f.path, p)
	p.waitFor(t, "connected true", 1)
	s := session{handler: p, named: map[string]bool{}}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	refusal, broken := s.serve(within(t), encodeAdd("x", Info{}), []*os.File{file})
	if refusal == nil || broken != nil {
		t.Errorf("refusal %v, broken %v", refusal, broken)
	}
	if file.Close() == nil {
		t.Error("the descriptor was left open")
	}
}

// Two generations of a proxy during an upgrade.
func TestHandOver(t *testing.T) {
	f := newServer(t, socketPath(t))
	f.serve()
	ns := newNS(t)
	older, newer := newProxy(), newProxy()
	stopOlder := startClient(t, f.path, older)
	older.waitFor(t, "connected true", 1)
	f.add("a", ns)
	stopNewer := startClient(t, f.path, newer)
	newer.waitFor(t, "connected true", 1)
	f.add("b", ns)
	if err := f.server.Del(within(t), "a"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"snapshot of 0", "connected true", "add a", "del a"}, older.seen()); diff != "" {
		t.Errorf("older: %s", diff)
	}
	if diff := cmp.Diff([]string{"add a", "snapshot of 1", "connected true", "add b", "del a"}, newer.seen()); diff != "" {
		t.Errorf("newer: %s", diff)
	}
	// The newer one fails: the older one gets what it has missed.
	stopNewer()
	older.waitFor(t, "add b", 1)
	f.add("c", ns)
	older.waitFor(t, "add c", 1)
	stopOlder()
	for f.server.Connected() > 0 {
		<-f.changes
	}
	if err := f.server.Add(within(t), Workload{UID: "d", NS: ns}); !errors.Is(err, ErrNoProxy) {
		t.Errorf("after all have gone: %v", err)
	}
}

func TestAgentComesBack(t *testing.T) {
	path := socketPath(t)
	f := newServer(t, path)
	f.serve()
	p := newProxy()
	startClient(t, path, p)
	p.waitFor(t, "connected true", 1)
	ns := newNS(t)
	f.add("stays", ns)
	f.add("unknown", ns)
	f.add("gone", ns)
	f.stop()
	p.waitFor(t, "connected false", 1)
	g := newServer(t, path)
	if err := g.server.Register(Workload{UID: "stays", NS: ns}); err != nil {
		t.Fatal(err)
	}
	g.server.Keep("unknown")
	g.serve()
	p.waitFor(t, "connected true", 2)
	want := map[string]netns.ID{"stays": ns.ID(), "unknown": ns.ID()}
	if diff := cmp.Diff(want, p.serving()); diff != "" {
		t.Error(diff)
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	f := newServer(t, socketPath(t))
	f.serve()
	p := newProxy()
	stop := startClient(t, f.path, p)
	p.waitFor(t, "connected true", 1)
	ns := newNS(t)
	f.add("warm", ns)
	before := openFiles(t)
	for i := range 50 {
		uid := fmt.Sprint("w", i)
		p.mu.Lock()
		p.refuse[uid] = i%2 == 0
		p.mu.Unlock()
		_ = f.server.Add(within(t), Workload{UID: uid, NS: ns})
		if err := f.server.Del(within(t), uid); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors became %d", before, after)
	}
	stop()
}

// A client that gets packets it must not get answers with an error, hangs up,
// and keeps nothing.
func TestClientHangsUpOnBrokenPackets(t *testing.T) {
	add := encodeAdd("a", Info{})
	for name, c := range map[string]struct {
		packet []byte
		file   bool
	}{
		"rubbish":           {[]byte{0xff, 0xff}, false},
		"empty add":         {encodeAdd("", Info{}), true},
		"add without file":  {add, false},
		"add without name":  {encode(&pb.WorkloadRequest{Payload: &pb.WorkloadRequest_Add{Add: &pb.AddWorkload{Uid: "a"}}}), true},
		"del with file":     {encodeDel("a"), true},
		"del of nothing":    {encodeDel(""), false},
		"keep with file":    {encodeKeep("a"), true},
		"snapshot and file": {encodeSnapshotSent(), true},
		"no payload":        {[]byte{0x7a, 0}, false},
		"too large":         {encodeAdd("a", Info{Name: strings.Repeat("x", 5*maxPacket)}), true},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			l, err := seqpacket.Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			ns := newNS(t)
			p := newProxy()
			stop := startClient(t, path, p)
			defer stop()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			buf := make([]byte, 2*maxPacket)
			if n, _, err := conn.Receive(buf, time.Now().Add(patience)); err != nil || parseHello(buf[:n], 0) != nil {
				t.Fatalf("hello: %v", err)
			}
			var file *os.File
			if c.file {
				file = ns.File()
			}
			if err := conn.Send(c.packet, file, time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, _, err := conn.Receive(buf, time.Now().Add(patience))
			if err != nil {
				t.Fatal(err)
			}
			if refusal, err := parseAck(buf[:n], 0); err != nil || refusal == "" {
				t.Errorf("answer %q, %v", refusal, err)
			}
			if n, _, err := conn.Receive(buf, time.Now().Add(patience)); err == nil {
				t.Errorf("still there, with %d bytes", n)
			}
			for _, e := range p.seen() {
				t.Errorf("the handler was called: %s", e)
			}
		})
	}
}

func TestServerHangsUpOnBrokenProxies(t *testing.T) {
	for name, packets := range map[string][][]byte{
		"no hello":      {encodeAck(nil)},
		"other version": {encode(&pb.ZdsHello{Version: 7})},
		"out of turn":   {encodeHello(), encodeAck(nil), encodeAck(nil)},
		"rubbish":       {encodeHello(), {0xff, 0xff}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newServer(t, socketPath(t))
			f.serve()
			conn, err := seqpacket.Dial(within(t), f.path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			for _, p := range packets {
				_ = conn.Send(p, nil, time.Now().Add(patience))
			}
			buf := make([]byte, 2*maxPacket)
			for {
				n, _, err := conn.Receive(buf, time.Now().Add(patience))
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal("the server is still there")
				}
				if err != nil {
					return
				}
				var m pb.WorkloadRequest
				if err := proto.Unmarshal(buf[:n], &m); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func FuzzRequest(f *testing.F) {
	for _, p := range [][]byte{encodeAdd("a", Info{"n", "ns", "sa"}), encodeDel("a"), encodeKeep("a"), encodeSnapshotSent(), {0x7a, 0}} {
		f.Add(p, uint8(0))
		f.Add(p, uint8(1))
	}
	f.Fuzz(func(t *testing.T, p []byte, n uint8) {
		files := int(n)
		r, err := parseRequest(p, files)
		if err != nil {
			return
		}
		if wants := r.add != nil; wants != (files == 1) {
			t.Errorf("%d files for %+v", files, r)
		}
		kinds := 0
		for _, is := range []bool{r.add != nil, r.del != "", r.keep != "", r.snapshot} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			t.Errorf("%+v is %d messages at once", r, kinds)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(encodeAck(nil), uint8(0))
	f.Add(encodeAck(errors.New("no")), uint8(0))
	f.Add(encodeHello(), uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, n uint8) {
		files := int(n)
		if _, err := parseAck(p, files); err == nil && files > 0 {
			t.Error("an acknowledgement with a file passes")
		}
		_ = parseHello(p, files)
	})
}

func FuzzAckRoundTrip(f *testing.F) {
	f.Add("")
	f.Add("no \xff way")
	f.Fuzz(func(t *testing.T, s string) {
		p := encodeAck(errors.New(s))
		if len(p) > maxPacket {
			t.Errorf("%d bytes", len(p))
		}
		got, err := parseAck(p, 0)
		if err != nil || (s != "") != (got != "") {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
	})
}
