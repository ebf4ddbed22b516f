package stream_test

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestPair(t *testing.T) {
	for name, cut := range map[string]func(int) int{
		"whole": nil, "bytes": streamtest.Cuts(1, 999, 2, 70_000), "thousands": streamtest.Cuts(1000),
	} {
		t.Run(name, func(t *testing.T) {
			streamtest.Suite(t, streamtest.Carrier{
				New: func(tb testing.TB) streamtest.Ends {
					a, b := streamtest.Pair(streamtest.Loop(tb), streamtest.Options{Cut: cut})
					return streamtest.Ends{A: a, B: b}
				},
				Bound: stream.WriteBound + stream.Window + 10_000, Allocs: -1,
			})
		})
	}
}

func TestPlain(t *testing.T) {
	noLeak(t)
	streamtest.Suite(t, streamtest.Carrier{
		New: func(tb testing.TB) streamtest.Ends { return plainPair(tb, streamtest.Loop(tb), streamtest.Loop(tb)) },
		// The kernel's buffers of two sockets come on top.
		Bound: 16 << 20,
	})
}

// A stream that is closed in the middle of a turn has events that were collected
// already. They must not reach the stream that gets its descriptor's number.
func TestPlainReusedDescriptors(t *testing.T) {
	l := streamtest.Loop(t)
	const n = 20
	var old [n]streamtest.Ends
	for i := range old {
		old[i] = plainPair(t, l, streamtest.Loop(t))
	}
	var fresh []stream.Conn
	sinks := make([]*streamtest.Sink, n)
	// The first Sink that is called replaces all the other streams.
	replace := func() {
		if fresh != nil {
			return
		}
		for i := range old {
			old[i].A.Abort(reason.Internal)
		}
		for i := range old {
			fa, fb, err := tcpPair()
			if err != nil {
				t.Error(err)
				return
			}
			c, err := stream.Plain(l, fa, stream.Info{Dialed: true})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { poll.CloseFD(fb) })
			sinks[i] = &streamtest.Sink{Conn: c}
			c.Bind(sinks[i])
			fresh = append(fresh, c)
		}
	}
	streamtest.On(t, l, func() {
		for i := range old {
			s := &streamtest.Sink{Conn: old[i].A}
			s.On = replace
			old[i].A.Bind(s)
		}
	})
	// All are ready in one turn: the loop is busy while the bytes and resets arrive.
	streamtest.On(t, l, func() {
		for i := range old {
			streamtest.On(t, old[i].B.Loop(), func() {
				old[i].B.Write([]byte("for the old one"))
				old[i].B.Abort(reason.UpstreamReset)
			})
		}
		time.Sleep(20 * time.Millisecond)
	})
	streamtest.Until(t, l, "the streams are replaced", func() bool { return len(fresh) == n })
	streamtest.On(t, l, func() {})
	streamtest.On(t, l, func() {
		for i, s := range sinks {
			if len(s.Pieces) > 0 || s.Closed {
				t.Errorf("stream %d got %q, closed %t, %v", i, s.Data, s.Closed, s.Err)
			}
			fresh[i].Abort(reason.OK)
		}
	})
}

// noLeak has the test fail if sockets are open after it that were not before.
func noLeak(t *testing.T) {
	t.Helper()
	before := sockets(t)
	t.Cleanup(func() {
		for deadline := time.Now().Add(patience); sockets(t) > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d sockets are open, %d were before", sockets(t), before)
			}
		}
	})
}

func sockets(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range d {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// plainPair returns two sockets that are connected to each other.
func plainPair(tb testing.TB, la, lb *poll.Loop) streamtest.Ends {
	tb.Helper()
	fa, fb, err := tcpPair()
	if err != nil {
		tb.Fatal(err)
	}
	var e streamtest.Ends
	streamtest.On(tb, la, func() { e.A, err = stream.Plain(la, fa, stream.Info{Dialed: true}) })
	if err != nil {
		tb.Fatal(err)
	}
	streamtest.On(tb, lb, func() { e.B, err = stream.Plain(lb, fb, stream.Info{}) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		streamtest.On(tb, la, func() { e.A.Abort(0) })
		streamtest.On(tb, lb, func() { e.B.Abort(0) })
	})
	return e
}

func tcpPair() (a, b int, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return -1, -1, err
	}
	defer func() { _ = ln.Close() }()
	x, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return -1, -1, err
	}
	y, err := ln.Accept()
	if err != nil {
		return -1, -1, err
	}
	if a, err = take(x); err == nil {
		b, err = take(y)
	}
	return a, b, err
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
	_ = c.Close()
	return fd, err
}
