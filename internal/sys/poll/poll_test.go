package poll

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const patience = 20 * time.Second

func newGroup(t *testing.T, n int) *Group {
	t.Helper()
	g, err := NewGroup(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// on runs f on the loop and waits for it.
func on(t *testing.T, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	l.Post(func() { defer close(done); f() })
	wait(t, done, "posted function runs")
}

func wait[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("not in %s: %s", patience, what)
		panic("unreachable")
	}
}

func socketpair(t *testing.T) (int, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

type handlerFunc func(Events)

func (f handlerFunc) Ready(ev Events) { f(ev) }

func TestPost(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	var got []int
	done := make(chan struct{})
	l.Post(func() {
		l.Post(func() { got = append(got, 2); close(done) }) // never inline
		got = append(got, 1)
	})
	wait(t, done, "both ran")
	if len(got) != 2 || got[0] != 1 {
		t.Errorf("order %v", got)
	}
}

func TestPostAfterClose(t *testing.T) {
	g := newGroup(t, 1)
	l := g.Loop(0)
	g.Close()
	if l.Post(func() { t.Error("ran") }) {
		t.Error("Post says that it will run")
	}
}

// A loop without work takes no turns, and one Post is not lost to the race with
// falling asleep.
func TestSleepAndWake(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	for range 2000 {
		on(t, l, func() {})
	}
	quiet := false
	for range 1000 {
		before := l.Turns()
		time.Sleep(time.Millisecond)
		if quiet = l.Turns() == before; quiet {
			break
		}
	}
	if !quiet {
		t.Error("an idle loop takes turns")
	}
}

// The epoll descriptor belongs to an os.File: the collector must not close it.
func TestSurvivesCollection(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	for range 3 {
		runtime.GC()
		on(t, l, func() {})
	}
}

func TestReady(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	a, b := socketpair(t)
	events := make(chan Events, 100)
	var r *Registration
	on(t, l, func() {
		var err error
		if r, err = l.Add(a, handlerFunc(func(ev Events) { events <- ev })); err != nil {
			t.Error(err)
		}
	})
	if ev := wait(t, events, "it is writable"); ev&Writable == 0 {
		t.Errorf("first events %x", ev)
	}
	_, _ = unix.Write(b, []byte("x"))
	if ev := wait(t, events, "it is readable"); ev&Readable == 0 {
		t.Errorf("events %x", ev)
	}
	on(t, l, func() { r.Again(Readable) })
	if ev := wait(t, events, "it is called again"); ev != Readable {
		t.Errorf("events %x", ev)
	}
	_ = unix.Close(b)
	if ev := wait(t, events, "the end"); ev&(ReadHup|Hangup) == 0 {
		t.Errorf("events %x", ev)
	}
	// Hung up and never read: an edge is reported once, nothing spins.
	before := l.Turns()
	time.Sleep(20 * time.Millisecond)
	if n := l.Turns() - before; n > 5 {
		t.Errorf("%d turns for a descriptor nobody reads", n)
	}
	on(t, l, func() { r.Close(); r.Close(); r.Remove() })
}

// An event that was collected for a descriptor must not reach the handler of
// another one that got its number in the same turn.
func TestReusedDescriptor(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	a, a2 := socketpair(t)
	b, b2 := socketpair(t)
	var ra, rb *Registration
	var stale atomic.Bool
	armed := false
	// Whoever is served first closes the other, which is ready as well, and
	// gives its number to a fresh socket that is not.
	replace := func(old *Registration, fd int) {
		if !armed {
			return
		}
		armed = false
		old.Close()
		c, c2 := socketpair(t)
		if c != fd {
			if err := unix.Dup3(c, fd, unix.O_CLOEXEC); err != nil {
				t.Error(err)
			}
			_ = unix.Close(c)
		}
		first := true
		rc, err := l.Add(fd, handlerFunc(func(ev Events) {
			if first && ev&Readable != 0 {
				stale.Store(true)
			}
			first = false
		}))
		if err != nil {
			t.Error(err)
		}
		l.AfterFunc(20*time.Millisecond, func() { rc.Close(); _ = unix.Close(c2) })
	}
	on(t, l, func() {
		ra, _ = l.Add(a, handlerFunc(func(Events) { replace(rb, b) }))
		rb, _ = l.Add(b, handlerFunc(func(Events) { replace(ra, a) }))
	})
	on(t, l, func() {})
	on(t, l, func() {
		armed = true
		_, _ = unix.Write(a2, []byte("x"))
		_, _ = unix.Write(b2, []byte("x"))
	})
	done := make(chan struct{})
	on(t, l, func() { l.AfterFunc(40*time.Millisecond, func() { ra.Close(); rb.Close(); close(done) }) })
	wait(t, done, "it is over")
	_ = unix.Close(a2)
	_ = unix.Close(b2)
	if stale.Load() {
		t.Error("a new socket was told about its predecessor's data")
	}
}

func TestTimers(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	fired := make(chan int, 10)
	on(t, l, func() {
		// Far apart: each begins at a time of its own, and the thread may stand still in between.
		l.AfterFunc(time.Second, func() { fired <- 3 })
		l.AfterFunc(time.Millisecond, func() { fired <- 1 })
		stopped := l.AfterFunc(2*time.Millisecond, func() { fired <- 99 })
		moved := l.AfterFunc(time.Hour, func() { fired <- 2 })
		stopped.Stop()
		stopped.Stop()
		moved.Reset(20 * time.Millisecond)
		var none *Timer
		none.Stop()
	})
	for want := 1; want <= 3; want++ {
		if got := wait(t, fired, "timer"); got != want {
			t.Errorf("timer %d instead of %d", got, want)
		}
	}
}

func TestAtTurnEnd(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	var order []string
	done := make(chan struct{})
	l.Post(func() {
		l.AtTurnEnd(func() {
			order = append(order, "end")
			l.AtTurnEnd(func() { order = append(order, "more"); close(done) })
		})
		order = append(order, "turn")
	})
	wait(t, done, "turn ended")
	if len(order) != 3 || order[0] != "turn" || order[1] != "end" {
		t.Errorf("order %v", order)
	}
}

type turnEnder struct{ f func() }

func (e *turnEnder) TurnEnd() { e.f() }

// What is flushed comes after all that may write, also when a flush causes more.
func TestFlushTurnOf(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	var order []string
	done := make(chan struct{})
	l.Post(func() {
		l.FlushTurnOf(&turnEnder{func() {
			order = append(order, "flush")
			l.EndTurnOf(&turnEnder{func() { order = append(order, "more") }})
		}})
		l.FlushTurnOf(&turnEnder{func() { order = append(order, "flush again"); close(done) }})
		l.EndTurnOf(&turnEnder{func() {
			order = append(order, "end")
			l.EndTurnOf(&turnEnder{func() { order = append(order, "another end") }})
		}})
	})
	wait(t, done, "turn ended")
	if want := []string{"end", "another end", "flush", "more", "flush again"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// What has done its share of a turn goes on in the next one, before the loop sleeps.
func TestEndNextTurnOf(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	var turns []uint64
	done := make(chan struct{})
	e := &turnEnder{}
	e.f = func() {
		if turns = append(turns, l.Turns()); len(turns) == 3 {
			close(done)
			return
		}
		l.EndNextTurnOf(e)
	}
	l.Post(func() { l.EndTurnOf(e) })
	wait(t, done, "three turns")
	if turns[1] != turns[0]+1 || turns[2] != turns[1]+1 {
		t.Errorf("turns %v", turns)
	}
}

func TestQueue(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	on(t, l, func() {
		var q Queue
		var want []byte
		for i := range 300 {
			p := bytes.Repeat([]byte{byte(i)}, i*7)
			q.Append(l, p)
			want = append(want, p...)
		}
		var got []byte
		for q.Len() > 0 {
			p := q.Front()
			n := min(len(p), 1000)
			got = append(got, p[:n]...)
			q.Discard(l, n)
		}
		if !bytes.Equal(got, want) || q.head != nil || q.tail != nil {
			t.Errorf("%d bytes of %d, or memory kept", len(got), len(want))
		}
	})
}

func listen(t *testing.T, g *Group, accept func(*Loop, int, netip.AddrPort)) (*Listener, string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 100)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(g, fd, accept)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); ln.Close(); <-ln.Done() })
	return ln, addrPort(sa).String()
}

func TestListen(t *testing.T) {
	g := newGroup(t, 2)
	got := make(chan netip.AddrPort, 10)
	_, addr := listen(t, g, func(_ *Loop, fd int, remote netip.AddrPort) {
		CloseFD(fd)
		got <- remote
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if r := wait(t, got, "accepted"); r.String() != c.LocalAddr().String() {
		t.Errorf("remote %s, is %s", r, c.LocalAddr())
	}
	_ = c.Close()
}

// A socket whose owner refuses connections rests after a batch, and then goes on.
func TestListenerRestsAfterRefusals(t *testing.T) {
	g := newGroup(t, 1)
	const conns = acceptBatch + 20
	turns := make(chan uint64, conns)
	ln, addr := listen(t, g, func(l *Loop, fd int, _ netip.AddrPort) {
		ResetFD(fd)
		l.RestAccepting()
		turns <- l.Turns()
	})
	hold, held := make(chan struct{}), make(chan struct{})
	ln.loop.Post(func() { close(held); <-hold })
	<-held
	for range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	close(hold)
	count := map[uint64]int{}
	for range conns {
		count[wait(t, turns, "refused")]++
	}
	rests := make(chan bool)
	ln.loop.Post(func() { rests <- ln.paused != nil })
	if !wait(t, rests, "the loop") || len(count) != 2 {
		t.Errorf("connections refused by turn: %v, want two turns with a rest between them", count)
	}
}

// Every loop accepts from a socket of its own; the kernel spreads the connections.
func TestListenEach(t *testing.T) {
	g := newGroup(t, 2)
	var port int
	listen := func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			CloseFD(fd)
			return -1, err
		}
		must(t, unix.Listen(fd, 100))
		sa, err := unix.Getsockname(fd)
		must(t, err)
		port = sa.(*unix.SockaddrInet4).Port
		return fd, nil
	}
	accepted := make(chan *Loop, 1000)
	all, err := ListenEach(g, listen, func(l *Loop, fd int, _ netip.AddrPort) {
		CloseFD(fd)
		accepted <- l
	})
	must(t, err)
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)).String()
	seen := map[*Loop]int{}
	for n := 0; len(seen) < 2 && n < 500; n++ {
		c, err := net.Dial("tcp", addr)
		must(t, err)
		seen[wait(t, accepted, "accepted")]++
		_ = c.Close()
	}
	if len(seen) != 2 {
		t.Errorf("%d loops accept", len(seen))
	}
	for _, ln := range all {
		ln.Close()
		<-ln.Done()
	}
	// A second socket that cannot be made takes the first one with it.
	calls := 0
	if _, err := ListenEach(g, func() (int, error) {
		if calls++; calls == 2 {
			return -1, unix.EADDRINUSE
		}
		return listen()
	}, func(*Loop, int, netip.AddrPort) {}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		t.Error("the first socket still accepts")
		_ = c.Close()
	}
}

// When descriptors run out, waiting connections are reset, the loop rests, and
// accepting goes on afterwards.
func TestOutOfDescriptors(t *testing.T) {
	g := newGroup(t, 1)
	var accepted atomic.Int64
	var mine []int
	_, addr := listen(t, g, func(_ *Loop, fd int, _ netip.AddrPort) {
		mine = append(mine, fd)
		accepted.Add(1)
	})
	clients := make([]int, 8)
	to := netip.MustParseAddrPort(addr)
	for i := range clients {
		clients[i], _ = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Numbers below the limit must be in use already: the highest is a client.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(clients[len(clients)-1] + 1), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) }
	defer restore()
	turns := g.Loop(0).Turns()
	connect := func(fd int) {
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil && err != unix.ECONNRESET {
			t.Error(err)
		}
	}
	for _, fd := range clients {
		connect(fd)
	}
	// Each that was not accepted is reset or waits; a blocking read tells.
	time.Sleep(2 * acceptPause)
	if n := g.Loop(0).Turns() - turns; n > 100 {
		t.Errorf("%d turns while there were no descriptors", n)
	}
	shed := 0
	for _, fd := range clients {
		_ = unix.SetNonblock(fd, true)
		if _, err := unix.Read(fd, make([]byte, 1)); err == unix.ECONNRESET {
			shed++
		}
	}
	if shed == 0 {
		t.Error("no connection was shed")
	}
	restore()
	was := accepted.Load()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for deadline := time.Now().Add(patience); accepted.Load() == was; {
		if time.Now().After(deadline) {
			t.Fatal("accepting did not resume")
		}
		time.Sleep(time.Millisecond)
	}
	on(t, g.Loop(0), func() {
		for _, fd := range mine {
			CloseFD(fd)
		}
	})
	for _, fd := range clients {
		_ = unix.Close(fd)
	}
}

func BenchmarkPost(b *testing.B) {
	g, err := NewGroup(1)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	done := make(chan struct{})
	f := func() { done <- struct{}{} }
	b.ReportAllocs()
	for b.Loop() {
		l.Post(f)
		<-done
	}
}

// With one processor, which a sleeping loop keeps, what the loop started runs
// before the loop sleeps. Go's scheduler looks elsewhere first once in 61 times.
func TestGoRunsBeforeTheLoopSleeps(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	l := newGroup(t, 1).Loop(0)
	awake := make(chan bool)
	const rounds = 60
	before := 0
	for range rounds {
		l.Post(func() {
			l.Go(func() { awake <- l.awake.Load() })
		})
		if wait(t, awake, "what was started runs") {
			before++
		}
	}
	if before <= rounds/2 {
		t.Errorf("the loop slept first %d of %d times", rounds-before, rounds)
	}
}

func TestTimersWakeASleepingLoop(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	const d = 1500 * time.Microsecond
	fired := make(chan time.Duration, 2)
	l.Post(func() {
		start := time.Now()
		l.AfterFunc(d, func() { fired <- time.Since(start) })
		l.AfterFunc(2*d, func() { fired <- time.Since(start) })
	})
	for i := range 2 {
		if took := wait(t, fired, "the timer fires"); took < time.Duration(i+1)*d {
			t.Errorf("timer %d fired after %s", i, took)
		}
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
