package hbone

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// withEarly has the first bytes of programs leave with the request.
func withEarly(w *world, _ *PoolConfig, _ *ServerConfig) { w.early = true }

func TestEchoWithEarlyBytes(t *testing.T) { testEcho(t, withEarly) }

// unanswered holds the requests that come from now on.
func (w *world) unanswered() <-chan *Request {
	reqs := make(chan *Request, 100)
	w.handle(func(r *Request) { reqs <- r })
	return reqs
}

// holds waits until n bytes wait for the answer to a request.
func (r *Request) holds(t *testing.T, n int) {
	t.Helper()
	var have uint64
	eventually(t, "bytes come before the answer", func() bool {
		have, _ = r.s.Bytes()
		return have >= uint64(n)
	})
	if have != uint64(n) {
		t.Errorf("%d bytes have come, and not %d", have, n)
	}
}

// What the program has written is at the other side before that has answered, in the
// order in which it was written, and reaches the other program once.
func TestEarlyBytesWaitForTheAnswer(t *testing.T) {
	got := make(chan []byte, 1)
	w := newWorld(t, func(c net.Conn) {
		b, _ := io.ReadAll(c)
		got <- b
	}, withEarly)
	answer := w.onRequest
	_ = w.connect().Close() // early bytes need a tunnel
	get(t, got, "the first connection ends")
	reqs := w.unanswered()
	c := w.connect()
	r := get(t, reqs, "request")
	for i, part := range []string{"one ", "two ", "three "} {
		_, err := c.Write([]byte(part))
		check(t, err)
		r.holds(t, []int{4, 8, 14}[i])
	}
	_, err := c.Write([]byte("four"))
	check(t, err)
	check(t, c.CloseWrite())
	r.Loop.Post(func() { answer(r) })
	if b := get(t, got, "the program has all"); string(b) != "one two three four" {
		t.Errorf("the program got %q", b)
	}
	_ = c.Close()
}

// Without the option, and on a tunnel that was silent for a while, nothing leaves before
// the answer.
func TestNoEarlyBytes(t *testing.T) {
	for name, o := range map[string][]option{
		"not wanted": nil, "silent tunnel": {withEarly, impatient(answers)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, echo, o...)
			answer := w.onRequest
			closeAll(warm(w, 1))
			reqs := w.unanswered()
			if o != nil {
				time.Sleep(2 * answers)
			}
			c := w.connect()
			_, err := c.Write([]byte("hello"))
			check(t, err)
			r := get(t, reqs, "request")
			// A second stream on the tunnel: what the first one has sent came before it.
			other := w.connect()
			get(t, reqs, "second request")
			r.holds(t, 0)
			r.Loop.Post(func() { answer(r) })
			in := make([]byte, 5)
			if _, err := io.ReadFull(c, in); err != nil || string(in) != "hello" {
				t.Errorf("%q, %v", in, err)
			}
			_ = c.Close()
			_ = other.Close()
		})
	}
}

// openEarly opens a connection, with bytes that are written, and returns what becomes of it.
func (w *world) openEarly(t *testing.T, written string) (app *net.TCPConn, fd int, failed <-chan failure, up <-chan struct{}) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close() //nolint:errcheck // one connection is all
	conn, err := net.Dial("tcp", ln.Addr().String())
	check(t, err)
	_, err = conn.Write([]byte(written))
	check(t, err)
	in, err := ln.Accept()
	check(t, err)
	f, err := in.(*net.TCPConn).File()
	check(t, err)
	fd, err = poll.Dup(int(f.Fd()))
	check(t, err)
	_, _ = f.Close(), in.Close()
	check(t, syscall.SetNonblock(fd, true))
	fail, isUp := make(chan failure, 1), make(chan struct{}, 1)
	w.pool.Open(&Open{
		Key: w.key(), App: fd, Early: true, Header: Header{Authority: "10.0.0.1:80"},
		OnUp:   func(*relay.Flow, ResponseHeader) { isUp <- struct{}{} },
		OnFail: func(err *reason.Error, status int) { fail <- failure{err, status} },
	})
	return conn.(*net.TCPConn), fd, fail, isUp
}

// A connection that is refused has all of its bytes, for another try.
func TestRefusedBytesAreStillThere(t *testing.T) {
	w := newWorld(t, echo)
	closeAll(warm(w, 1))
	reqs := w.unanswered()
	app, fd, failed, _ := w.openEarly(t, "precious")
	defer app.Close() //nolint:errcheck // the test is over
	r := get(t, reqs, "request")
	r.holds(t, len("precious"))
	r.Loop.Post(func() { r.Refuse(503, ResponseHeader{}) })
	f := get(t, failed, "it is refused")
	if f.status != 503 || errors.Is(f.err, ErrSent) {
		t.Errorf("failed with %d, %v", f.status, f.err)
	}
	b := make([]byte, 100)
	if n, err := poll.Read(fd, b); err != nil || string(b[:n]) != "precious" {
		t.Errorf("%q is left, %v", b[:n], err)
	}
	poll.CloseFD(fd)
}

// A stream that the peer did not process is opened again with its bytes.
func TestUnprocessedBytesAreSentAgain(t *testing.T) {
	w := newWorld(t, echo, withEarly)
	answer := w.onRequest
	closeAll(warm(w, 1))
	first := true
	w.handle(func(r *Request) {
		if first {
			first = false
			r.Loop.AfterFunc(20*time.Millisecond, func() {
				r.s.Tunnel().H2().Reset(r.s.H2(), h2.RefusedStream)
				r.s.Tunnel().Touch()
			})
			return
		}
		answer(r)
	})
	c := w.connect()
	roundTrip(t, c, "hello")
	_ = c.Close()
	if n := w.requests.Load(); n != 3 {
		t.Errorf("%d requests", n)
	}
}

// When a tunnel dies with early bytes, these may have reached the program. They are not
// sent a second time.
func TestEarlyBytesAreNotSentTwice(t *testing.T) {
	w := newWorld(t, echo)
	closeAll(warm(w, 1))
	reqs := w.unanswered()
	app, fd, failed, _ := w.openEarly(t, "once")
	defer app.Close() //nolint:errcheck // the test is over
	r := get(t, reqs, "request")
	r.holds(t, len("once"))
	r.Loop.Post(func() { r.s.Tunnel().Fail(reason.Internal, nil) })
	if f := get(t, failed, "it fails"); !errors.Is(f.err, ErrSent) || f.err.Reason != reason.TunnelClosed {
		t.Errorf("failed with %v", f.err)
	}
	poll.CloseFD(fd)
	if n := w.requests.Load(); n != 2 {
		t.Errorf("%d requests: it was opened again", n)
	}
}

// A silent peer, too: a connection with early bytes does not go elsewhere.
func TestEarlyBytesAndASilentPeer(t *testing.T) {
	w := newWorld(t, echo, impatient(answers))
	old := held(t, w, 1)[0]
	roundTrip(t, old, "heard just now")
	release := w.mute()
	app, fd, failed, _ := w.openEarly(t, "once")
	defer app.Close() //nolint:errcheck // the test is over
	if f := get(t, failed, "it fails"); !errors.Is(f.err, ErrSent) {
		t.Errorf("failed with %v", f.err)
	}
	poll.CloseFD(fd)
	release()
	roundTrip(t, old, "still mine")
}

// The program goes away after its first bytes.
func TestProgramGoesAfterEarlyBytes(t *testing.T) {
	w := newWorld(t, echo)
	closeAll(warm(w, 1))
	reqs := w.unanswered()
	app, fd, failed, _ := w.openEarly(t, "last words")
	r := get(t, reqs, "request")
	r.holds(t, len("last words"))
	_ = app.SetLinger(0)
	_ = app.Close()
	if f := get(t, failed, "it fails"); f.err.Reason != reason.DownstreamReset || errors.Is(f.err, ErrSent) {
		t.Errorf("failed with %v", f.err)
	}
	poll.CloseFD(fd)
	eventually(t, "the other side hears of it", func() bool {
		done := make(chan bool)
		r.Loop.Post(func() { done <- r.Gone() })
		return <-done
	})
}

// However the program writes and whenever the answer comes, the other program gets the
// same bytes.
func TestEarlyBytesInAnyOrder(t *testing.T) {
	w := newWorld(t, echo, withEarly, func(_ *world, _ *PoolConfig, s *ServerConfig) { s.Windows.Stream = 2 << 10 })
	answer := w.onRequest
	closeAll(warm(w, 1))
	w.handle(func(r *Request) {
		r.Loop.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { answer(r) })
	})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			c := w.connect()
			defer c.Close() //nolint:errcheck // all was read
			want := make([]byte, rand.IntN(20_000))
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			go func() {
				for p := want; len(p) > 0; {
					n := 1 + rand.IntN(min(len(p), 5000))
					_, _ = c.Write(p[:n])
					p = p[n:]
					time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
				}
				_ = c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes came back as %d others, %v", len(want), len(got), err)
			}
		})
	}
	wg.Wait()
}

// The answer to a request with early bytes waits for the program's first bytes, but not
// for long: a program that is silent, that ends, or that resets the connection.
func TestAnswerToEarlyBytes(t *testing.T) {
	t.Run("silent", func(t *testing.T) {
		speak := make(chan struct{})
		w := newWorld(t, func(c net.Conn) {
			<-speak
			echo(c)
		}, withEarly)
		first := w.connect()
		get(t, w.flows, "a tunnel is there")
		c := w.connect()
		_, err := c.Write([]byte("hello"))
		check(t, err)
		get(t, w.flows, "the connection is accepted, although the program is silent")
		close(speak)
		in := make([]byte, 5)
		if _, err := io.ReadFull(c, in); err != nil || string(in) != "hello" {
			t.Errorf("%q, %v", in, err)
		}
		_, _ = first.Close(), c.Close()
	})
	t.Run("ends", func(t *testing.T) {
		w := newWorld(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 100)) }, withEarly)
		for range 20 {
			c := w.connect()
			_, err := c.Write([]byte("hello"))
			check(t, err)
			if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
				t.Errorf("%q, %v", b, err)
			}
			_ = c.Close()
			if r := get(t, w.closed, "flow closes"); r.Reason != reason.OK || r.Sent != 5 {
				t.Errorf("result %+v", r)
			}
		}
	})
	t.Run("resets", func(t *testing.T) {
		w := newWorld(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 100))
			_ = c.(*net.TCPConn).SetLinger(0)
		}, withEarly)
		for range 20 {
			c := w.connect()
			_, err := c.Write([]byte("hello"))
			check(t, err)
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v", err)
			}
			_ = c.Close()
			if r := get(t, w.closed, "flow closes"); r.Reason != reason.UpstreamReset {
				t.Errorf("result %+v", r)
			}
		}
	})
	t.Run("client goes", func(t *testing.T) {
		w := newWorld(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}) }, withEarly)
		for i := range 50 {
			c := w.connect()
			_, err := c.Write([]byte("hello"))
			check(t, err)
			if i%2 == 0 {
				_ = c.SetLinger(0)
			}
			_ = c.Close()
		}
		eventually(t, "all streams end", func() bool { return w.pool.streams(t) == 0 })
	})
}
