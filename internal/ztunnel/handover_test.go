package ztunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// agent is a node agent that knows one pod.
func (w *world) agent(s *side) (*zds.Server, string) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "zds.sock")
	srv, err := zds.Listen(zds.ServerConfig{Path: path, Logger: logging.Discard(), OnChange: func() {}})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ctx) })
	w.t.Cleanup(func() { cancel(); _ = srv.Close(); wg.Wait() })
	return srv, path
}

// follow connects a node to the agent, and waits until it has the list.
func (w *world) follow(n *Node, path string) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	var once sync.Once
	n.onConnected(func(yes bool) {
		if yes {
			once.Do(func() { close(ready) })
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = zds.NewClient(zds.ClientConfig{Path: path, Handler: n, Logger: logging.Discard()}).Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	select {
	case <-ready:
	case <-time.After(netnstest.Timeout):
		w.t.Fatal("the agent's list does not come")
	}
	return stop
}

// Connections are made all the time while one generation of the proxy follows
// another, on both nodes: none fails.
func TestHandOver(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", cartService))
	w.serve(8080, echo)
	type gen struct {
		side *side
		stop func()
	}
	var gens [2][]gen
	next := func(i int, s *side, path string) {
		n := w.side(map[int]string{0: "a", 1: "b"}[i], s.ns, s.uid, s.info.ServiceAccount)
		gens[i] = append(gens[i], gen{n, w.follow(n.node, path)})
	}
	var paths [2]string
	for i, s := range []*side{w.client, w.server} {
		srv, path := w.agent(s)
		paths[i] = path
		w.capture(s)
		if err := srv.Register(zds.Workload{UID: s.uid, Info: s.info, NS: s.ns}); err != nil {
			t.Fatal(err)
		}
		next(i, s, path)
	}
	live := w.dial(w.at(8080))
	w.talk(live, "made under the first generation")

	var failed, made atomic.Int64
	var last atomic.Value
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := w.once(w.vip(80)); err != nil {
					failed.Add(1)
					last.Store(err.Error())
				}
				made.Add(1)
			}
		})
	}
	more := func(n int64) {
		for want := made.Load() + n; made.Load() < want; {
			time.Sleep(time.Millisecond)
		}
	}
	more(50)
	for i, s := range []*side{w.client, w.server} {
		next(i, s, paths[i])
		more(20)
		old := gens[i][0]
		old.stop()
		drained := make(chan struct{})
		d, stop := context.WithTimeout(context.Background(), netnstest.Timeout)
		go func() { old.side.node.Drain(d); close(drained) }()
		more(50)
		w.talk(live, "the old connection goes on")
		if i == 1 {
			_ = live.Close()
		}
		t.Cleanup(func() { stop(); <-drained })
	}
	more(50)
	cancel()
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d connections failed: %v", n, made.Load(), last.Load())
	}
}

// once makes one connection and uses it.
func (w *world) once(to netip.AddrPort) error {
	c, err := netnstest.Dial(w.client.ns, netip.Addr{}, to, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(netnstest.Timeout))
	if _, err := io.WriteString(c, "x\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if want := w.clientIP().String() + " x\n"; err == nil && got != want {
		err = fmt.Errorf("%q instead of %q", got, want)
	}
	return err
}

// TestDrainWaitsForHandshakes: a proxy that drains finishes the TLS handshake of a
// tunnel that it has accepted. The client would not repeat it.
func TestDrainWaitsForHandshakes(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.apply(w.mesh("NONE", "HBONE", ""))
		w.enrol(w.server)
		n := w.server.node
		c := w.dial(w.at(15008))
		for n.active.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		drained := make(chan struct{})
		ctx, stop := context.WithTimeout(t.Context(), netnstest.Timeout)
		defer stop()
		go func() { n.Drain(ctx); close(drained) }()
		for { // until it accepts no more
			c, err := netnstest.Dial(w.client.ns, netip.Addr{}, w.at(15008), nil)
			if err != nil {
				break
			}
			_ = c.Close()
		}
		client := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // who answers does not matter
		if err := client.HandshakeContext(ctx); err != nil {
			t.Errorf("the handshake was cut off: %v", err)
		}
		_ = c.Close()
		<-drained
	})
}
