package interop

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/test/rig"
)

// bulk is the size of a large transfer each way, bytes: many times every
// window and buffer on the way.
const bulk = 48 << 20

// atOnce is how many connections are open at the same time: more than the 100
// streams that either side puts on one tunnel.
const atOnce = 200

// TestTraffic: applications do not notice whose proxy they have.
func TestTraffic(t *testing.T) {
	world := start(t)

	t.Run("identities", func(t *testing.T) {
		ways := append([]way{{peer, peer2}, {peer, peer}, {ours, peer2}}, across...)
		each(t, world, ways, func(t *testing.T, w *rig.World, x way, to target, v6 bool) {
			a := w.MustGet(x.client(), to.http)
			if want := "server-" + x.to; a.Name != want {
				t.Errorf("%s answered, not %s", a.Name, want)
			}
			if want := w.Pod("shop", "client-"+x.from, v6); a.Caller != want {
				t.Errorf("the server saw %s, not %s", a.Caller, want)
			}
			pod := w.Pod("shop", "server-"+x.to, v6)
			ids := []string{
				fmt.Sprintf(`src.identity=%q`, account("client-"+x.from)), fmt.Sprintf(`dst.identity=%q`, account("server-"+x.to)),
				"dst.hbone_addr=", pod.String(),
			}
			if x.from != x.to {
				logged(w, x.from, append(ids, `direction="outbound"`)...)
				logged(w, x.to, append(ids, `direction="inbound"`)...)
			}
		})
	})

	t.Run("bulk", func(t *testing.T) {
		each(t, world, across, func(t *testing.T, w *rig.World, x way, to target, v6 bool) {
			if to.name == "pod" == v6 {
				return // each address family and each kind of target once
			}
			large(t, w.MustDial(x.client(), to.echo))
		})
	})

	t.Run("half-close", func(t *testing.T) {
		each(t, world, across, func(t *testing.T, w *rig.World, x way, to target, _ bool) {
			halfClose(t, w.MustDial(x.client(), to.echo))
		})
	})

	t.Run("server speaks first", func(t *testing.T) {
		each(t, world, across, func(t *testing.T, w *rig.World, x way, to target, _ bool) {
			c := w.MustDial(x.client(), to.said)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if s, err := bufio.NewReader(c).ReadString('\n'); err != nil || s != "220 welcome\n" {
				t.Errorf("%q, %v", s, err)
			}
		})
	})

	t.Run("many at once", func(t *testing.T) {
		each(t, world, across, func(t *testing.T, w *rig.World, x way, to target, v6 bool) {
			if to.name == "pod" != v6 {
				many(t, w, x, to)
			}
		})
	})
}

// large sends noise to an echo server and compares what comes back, while it
// is still sending.
func large(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	noise := make([]byte, bulk)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, bytes.NewReader(noise))
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, noise) {
		t.Errorf("%d bytes came back of %d, or others", len(got), len(noise))
	}
}

// halfClose ends one direction, and still gets all of the other.
func halfClose(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	const text = "the last words"
	_, err := io.WriteString(c, text)
	if err := errors.Join(err, c.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != text {
		t.Errorf("%q, %v", b, err)
	}
}

// many opens connections that are all in use at the same time.
func many(t *testing.T, w *rig.World, x way, to target) {
	t.Helper()
	conns := make([]net.Conn, atOnce)
	errs := make([]error, atOnce)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() { conns[i], errs[i] = w.Dial(t.Context(), x.client(), "tcp", to.echo.String()) })
	}
	wg.Wait()
	for i, c := range conns {
		if errs[i] != nil {
			continue
		}
		defer c.Close() //nolint:errcheck // it was used
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			line := fmt.Sprintf("connection %d\n", i)
			for range 3 {
				_, err := io.WriteString(c, line)
				got := make([]byte, len(line))
				if err == nil {
					_, err = io.ReadFull(c, got)
				}
				if err == nil && string(got) != line {
					err = fmt.Errorf("got %q", got)
				}
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}
