package poll

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// sockPair returns a Sock on l and the descriptor of its peer.
func sockPair(t *testing.T, l *Loop, h Handler) (*Sock, int) {
	t.Helper()
	a, b := tcpPair(t)
	s := &Sock{}
	on(t, l, func() {
		if err := s.Watch(l, a, h); err != nil {
			t.Error(err)
		}
	})
	return s, b
}

func tcpPair(t *testing.T) (int, int) {
	t.Helper()
	ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer func() { _ = unix.Close(ln) }()
	must(t, unix.Bind(ln, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(ln, 1))
	sa, err := unix.Getsockname(ln)
	must(t, err)
	a, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Connect(a, sa))
	b, _, err := unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	must(t, err)
	must(t, unix.SetNonblock(a, true))
	return a, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// idle is a Sock's owner that only remembers events.
type idle struct {
	s      *Sock
	events chan Events
}

func newIdle() *idle { return &idle{events: make(chan Events, 100)} }

func (h *idle) Ready(ev Events) {
	if h.s != nil {
		h.s.Note(ev)
	}
	h.events <- ev
}

func watchIdle(t *testing.T, l *Loop) (*Sock, *idle, int) {
	h := newIdle()
	s, peer := sockPair(t, l, h)
	on(t, l, func() { h.s = s })
	return s, h, peer
}

func waitFor(t *testing.T, h *idle, ev Events) {
	t.Helper()
	for wait(t, h.events, "an event")&ev == 0 {
	}
}

func TestSockEdges(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, h, peer := watchIdle(t, l)
	_, _ = unix.Write(peer, []byte("hello"))
	waitFor(t, h, Readable)
	on(t, l, func() {
		buf := make([]byte, 100)
		n, err := s.Read(buf)
		if n != 5 || err != nil || s.Readable() {
			t.Errorf("read %d, %v; readable %t after a short read", n, err, s.Readable())
		}
		if _, err := s.Read(buf); !IsAgain(err) {
			t.Errorf("an empty queue: %v", err)
		}
	})
	_, _ = unix.Write(peer, []byte("last"))
	_ = unix.Shutdown(peer, unix.SHUT_WR)
	waitFor(t, h, ReadHup)
	on(t, l, func() {
		buf := make([]byte, 100)
		n, err := s.Read(buf)
		if n != 4 || err != nil || !s.Readable() {
			t.Errorf("read %d, %v; readable %t: an end follows a short read", n, err, s.Readable())
		}
		if n, err = s.Read(buf); n != 0 || err != nil || s.Readable() {
			t.Errorf("the end: %d, %v, readable %t", n, err, s.Readable())
		}
		s.Close()
		s.Close()
		if s.Active() || s.FD() != -1 || s.Send([]byte("x")) != nil || s.Queued() != 0 {
			t.Error("a closed Sock does something")
		}
	})
	_ = unix.Close(peer)
}

// What is sent waits when the socket is full, in order, and leaves later; many
// chunks leave in several calls.
func TestSockQueue(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, h, peer := watchIdle(t, l)
	var want []byte
	on(t, l, func() {
		for i := range 100 {
			p := bytes.Repeat([]byte{byte(i)}, 997*(i%13)+i)
			want = append(want, p...)
			if i%2 == 0 {
				s.Queue(p)
			} else if err := s.Send(p); err != nil {
				t.Error(err)
			}
		}
		for s.Writable() { // fill the kernel's buffers
			p := bytes.Repeat([]byte("full"), 100_000)
			want = append(want, p...)
			if err := s.Send(p); err != nil {
				t.Error(err)
			}
		}
		p := bytes.Repeat([]byte("late"), 300_000)
		want = append(want, p...)
		s.Queue(p)
		if err := s.Flush(); err != nil || s.Queued() < len(p) {
			t.Errorf("flush of a full socket: %v, %d wait", err, s.Queued())
		}
	})
	var got []byte
	buf := make([]byte, 1<<20)
	for len(got) < len(want) {
		n, err := unix.Read(peer, buf)
		switch {
		case err == unix.EAGAIN:
			on(t, l, func() { _ = s.Flush() })
		case err != nil || n == 0:
			t.Fatalf("%d of %d bytes, then %d, %v", len(got), len(want), n, err)
		default:
			got = append(got, buf[:n]...)
		}
	}
	waitFor(t, h, Writable)
	on(t, l, func() {
		if err := s.Flush(); err != nil || s.Queued() != 0 {
			t.Errorf("%v, %d bytes wait", err, s.Queued())
		}
		s.Close()
	})
	if !bytes.Equal(got, want) {
		t.Error("the bytes differ")
	}
	_ = unix.Close(peer)
}

// A write to a peer that has reset the connection breaks the socket. What the peer
// sent before is read, and then the error.
func TestSockBroken(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, h, peer := watchIdle(t, l)
	_, _ = unix.Write(peer, []byte("last words"))
	waitFor(t, h, Readable)
	SetReset(peer)
	_ = unix.Close(peer)
	waitFor(t, h, Failed)
	on(t, l, func() {
		if err := s.Send([]byte("x")); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("the write: %v", err)
		}
		s.Queue([]byte("x"))
		if !s.Readable() || !s.Broken() {
			t.Error("a broken socket is not read")
		}
		if s.Err() == nil || s.Queued() != 0 || s.Writable() || !s.Failed() {
			t.Errorf("error %v, %d bytes wait, writable %t", s.Err(), s.Queued(), s.Writable())
		}
		buf := make([]byte, 100)
		if n, err := s.Read(buf); n != 10 || err != nil {
			t.Errorf("last words: %d, %v", n, err)
		}
		if n, err := s.Read(buf); n != 0 || err == nil || IsAgain(err) {
			t.Errorf("the end: %d, %v", n, err)
		}
		s.Close()
	})
}

// Bytes may be queued before there is a socket, also in front of others.
func TestSockQueueBeforeWatch(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	a, peer := tcpPair(t)
	h := newIdle()
	var s Sock
	h.s = &s
	on(t, l, func() {
		s.Init(l)
		s.Queue([]byte("second"))
		s.QueueFirst([]byte("first "))
		if s.Active() || s.Queued() != 12 {
			t.Errorf("active %t, %d bytes wait", s.Active(), s.Queued())
		}
		if err := s.Watch(l, a, h); err != nil {
			t.Error(err)
		}
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
		s.Queue([]byte("taken"))
		q := s.TakeQueue()
		if q.Len() != 5 || s.Queued() != 0 {
			t.Errorf("%d bytes taken, %d wait", q.Len(), s.Queued())
		}
		q.Discard(l, 5)
		s.Close()
	})
	buf := make([]byte, 100)
	if n, err := unix.Read(peer, buf); err != nil || string(buf[:n]) != "first second" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	_ = unix.Close(peer)
}

// Detach gives the descriptor back as it is.
func TestSockDetach(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, _, peer := watchIdle(t, l)
	on(t, l, func() {
		fd := s.Detach()
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Error(err)
		}
		_ = unix.Close(fd)
		if s.Detach() != -1 {
			t.Error("detached twice")
		}
		s.Reset()
	})
	_ = unix.Close(peer)
}

func TestSockAllocatesNothing(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, h, peer := watchIdle(t, l)
	waitFor(t, h, Writable)
	p, buf := make([]byte, 5000), make([]byte, 20_000)
	var allocs float64
	on(t, l, func() {
		allocs = testing.AllocsPerRun(100, func() {
			s.Queue(p)
			s.Queue(p)
			_ = s.Send(p)
			for n := 0; n < 3*len(p); {
				m, err := Read(peer, buf)
				if err != nil && !IsAgain(err) {
					t.Error(err)
					return
				}
				n += m
			}
		})
		s.Close()
	})
	if allocs > 0 {
		t.Errorf("%.1f allocations", allocs)
	}
	_ = unix.Close(peer)
}

// A read into pieces fills one after the other, and is dry when it is short.
func TestReadPieces(t *testing.T) {
	l := newGroup(t, 1).Loop(0)
	s, peer := sockPair(t, l, newIdle())
	on(t, l, func() {
		s.Note(Readable)
		a, b, c := make([]byte, 3), make([]byte, 1), make([]byte, 10)
		pieces := [][]byte{a, b, c}
		if _, err := s.ReadPieces(pieces); !IsAgain(err) || s.Readable() {
			t.Errorf("an empty socket: %v, readable %v", err, s.Readable())
		}
		_, err := Write(peer, []byte("abcdefg"))
		if err != nil {
			t.Error(err)
		}
		s.Note(Readable)
		if n, err := s.ReadPieces(pieces[:2]); n != 4 || err != nil || string(a)+string(b) != "abcd" || !s.Readable() {
			t.Errorf("%d, %v: %q %q, readable %v", n, err, a, b, s.Readable())
		}
		if n, err := s.ReadPieces(pieces); n != 3 || err != nil || string(a) != "efg" || s.Readable() {
			t.Errorf("%d, %v: %q, readable %v", n, err, a, s.Readable())
		}
		many := make([][]byte, MaxPieces+5)
		for i := range many {
			many[i] = make([]byte, 1)
		}
		_, _ = Write(peer, make([]byte, len(many)))
		s.Note(Readable)
		if n, err := s.ReadPieces(many); n != MaxPieces || err != nil || !s.Readable() {
			t.Errorf("%d pieces were filled, %v, readable %v", n, err, s.Readable())
		}
		_ = ShutdownWrite(peer)
	})
}
