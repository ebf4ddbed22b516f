package hbone

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// echo sends back what it gets, and then the end. It hides what its sides can
// do together: io.Copy would splice, and keep the pipes for later.
func echo(c net.Conn) {
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	_ = c.(*net.TCPConn).CloseWrite()
}

// The same with crypto/tls for the records at either end, and at both.
func TestEchoWithCryptoTLS(t *testing.T) {
	for _, ends := range [][2]bool{{true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprint(ends), func(t *testing.T) {
			testEcho(t, func(_ *world, p *PoolConfig, s *ServerConfig) { p.LibraryRecords, s.LibraryRecords = ends[0], ends[1] })
		})
	}
}

func TestEcho(t *testing.T) { testEcho(t) }

func testEcho(t *testing.T, o ...option) {
	w := newWorld(t, echo, o...)
	for _, size := range []int{0, 1, 1000, 8 << 10, 100_000, 10 << 20} {
		c := w.connect()
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
		got, err := io.ReadAll(c)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came back as %d others", len(want), len(got))
		}
		_ = c.Close()
		for _, ch := range []<-chan relay.Result{w.closed, w.closedServer} {
			r := get(t, ch, "flow closes")
			if r.Reason != reason.OK || r.Sent != uint64(size) || r.Received != uint64(size) {
				t.Errorf("%d bytes: result %+v", size, r)
			}
		}
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("%d dials for one key", n)
	}
}

func TestManyStreams(t *testing.T) {
	w := newWorld(t, echo)
	var wg sync.WaitGroup
	for i := range 250 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := w.connect()
			defer func() { _ = c.Close() }()
			want := bytes.Repeat([]byte{byte(i)}, 10_000+i)
			go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d of %d bytes, %v", i, len(got), len(want), err)
			}
		}()
	}
	wg.Wait()
}

// What an operator says is the largest frame is what peers are told.
func TestFrameSize(t *testing.T) {
	for _, frame := range []uint32{0, 32 << 10} {
		// One world at a time: each counts descriptors.
		t.Run(fmt.Sprint(frame), func(t *testing.T) {
			w := newWorld(t, echo, func(_ *world, _ *PoolConfig, s *ServerConfig) { s.Windows.Frame = frame })
			c := w.connect()
			if !pingPong(c, make([]byte, 64)) {
				t.Fatal("no echo")
			}
			quota := make(chan int)
			s := w.pool.shards[0]
			s.loop.Post(func() {
				n := 0
				s.local[0].t.H2().Each(func(hs *h2.Stream) bool { n = s.local[0].t.H2().SendQuota(hs); return false })
				quota <- n
			})
			if n := <-quota; frame > 0 && n != int(frame) || frame == 0 && n <= 32<<10 {
				t.Errorf("with frames of %d, %d bytes may be sent at once", frame, n)
			}
			_ = c.Close()
		})
	}
}
