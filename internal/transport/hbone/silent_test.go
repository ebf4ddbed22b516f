package hbone

import (
	"context"
	"crypto/tls"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// answers is how long a peer that lives has to answer a PING in these tests: it
// shares the machine with much else.
const answers = 2 * time.Second

// impatient asks peers soon, and waits for so long.
func impatient(probe time.Duration) option {
	return func(_ *world, p *PoolConfig, _ *ServerConfig) {
		p.KeepAlive = -1
		p.ProbeAfter, p.ProbeTimeout, p.DialPatience = 50*time.Millisecond, probe, patience
	}
}

// withSpare has every connection have another endpoint.
func withSpare(w *world, _ *PoolConfig, _ *ServerConfig) {
	w.spare = func() bool { return true }
}

// mute has the far side stop, as a pod does whose network was taken away. The
// returned function lets it go on.
func (w *world) mute() (release func()) {
	hang := make(chan struct{})
	stopped := make(chan struct{})
	w.far.Loop(0).Post(func() { close(stopped); <-hang })
	<-stopped
	var once sync.Once
	release = func() { once.Do(func() { close(hang) }) }
	w.tb.Cleanup(release)
	return release
}

// A peer that was heard a moment ago and is silent now costs a connection that
// has another endpoint two short waits, and not the wait for an answer. A
// connection that runs is left alone.
func TestSilentPeerFailsOver(t *testing.T) {
	w := newWorld(t, echo, impatient(answers), withSpare)
	old := held(t, w, 1)[0]
	roundTrip(t, old, "heard just now")
	release := w.mute()
	c := w.connectDoomed()
	f := get(t, w.failures, "the connection may go elsewhere")
	if f.err.Reason != reason.TunnelClosed {
		t.Errorf("failed with %v", f.err)
	}
	_ = c.Close()
	if d := w.dials.Load(); d != 1 {
		t.Errorf("%d dials: the silent peer was dialled again", d)
	}
	release()
	roundTrip(t, old, "still mine")
	// The peer takes connections again, on a new tunnel.
	again := w.connect()
	defer func() { _ = again.Close() }()
	roundTrip(t, again, "new tunnel")
	if d := w.dials.Load(); d != 2 {
		t.Errorf("%d dials", d)
	}
}

// Without another endpoint the pool makes a second tunnel to the same place.
func TestSilentPeerIsDialledAgain(t *testing.T) {
	w := newWorld(t, echo, impatient(answers))
	old := held(t, w, 1)[0]
	release := w.mute()
	c := w.connect()
	eventually(t, "a second tunnel is made", func() bool { return w.dials.Load() == 2 })
	release()
	roundTrip(t, c, "hello")
	roundTrip(t, old, "still mine")
	_ = c.Close()
}

// A peer that answers PINGs has time to answer a connection.
func TestSlowAnswerIsWaitedFor(t *testing.T) {
	w := newWorld(t, echo, impatient(answers), withSpare)
	answer := w.onRequest
	w.handle(func(r *Request) { r.Loop.AfterFunc(2*answers, func() { answer(r) }) })
	c := w.connect()
	roundTrip(t, c, "hello")
	_ = c.Close()
	if d := w.dials.Load(); d != 1 || len(w.failures) > 0 {
		t.Errorf("%d dials, %d failures", d, len(w.failures))
	}
}

// A workload that is removed answers no more: connections that wait for it
// fail at once, those that run go on.
func TestCloseWorkloadFailsUnanswered(t *testing.T) {
	w := newWorld(t, echo)
	old := held(t, w, 1)[0]
	asked := make(chan *Request, 1)
	w.handle(func(r *Request) { asked <- r })
	c := w.connectDoomed()
	get(t, asked, "the request arrives")
	w.pool.CloseWorkload("uid-1")
	if f := get(t, w.failures, "the connection may go elsewhere"); f.err.Reason != reason.TunnelClosed {
		t.Errorf("failed with %v", f.err)
	}
	_ = c.Close()
	roundTrip(t, old, "still mine")
	_ = old.Close()
	eventually(t, "tunnel ends", func() bool { return w.tunnels.Load() == 0 })
}

// A removed workload whose peer is silent as well is gone: connections that
// run are reset, instead of hanging until keep-alive ends them.
func TestCloseWorkloadOfSilentPeer(t *testing.T) {
	w := newWorld(t, echo, impatient(50*time.Millisecond))
	old := held(t, w, 1)[0]
	w.mute()
	w.pool.CloseWorkload("uid-1")
	if r := get(t, w.closed, "flow closes"); r.Reason != reason.TunnelClosed {
		t.Errorf("%+v", r)
	}
	if _, err := old.Read(make([]byte, 1)); err == nil || err == io.EOF { //nolint:errorlint // a bare EOF would be an orderly end
		t.Errorf("the program read %v, and not a reset", err)
	}
}

// The network of a removed workload may go a while after the news.
func TestCloseWorkloadThenSilence(t *testing.T) {
	w := newWorld(t, echo, impatient(answers))
	old := held(t, w, 1)[0]
	w.pool.CloseWorkload("uid-1")
	for range 5 {
		time.Sleep(answers / 4) // longer than a probe in all: it answers and stays
		roundTrip(t, old, "still mine")
	}
	w.mute()
	if r := get(t, w.closed, "flow closes"); r.Reason != reason.TunnelClosed {
		t.Errorf("%+v", r)
	}
}

// deadEnd is a dialer that ends with its context.
func deadEnd(w *world, p *PoolConfig, _ *ServerConfig) {
	p.DialTimeout = patience
	p.Dial = func(ctx context.Context, _ Key) (int, *tls.Config, error) {
		w.dials.Add(1)
		<-ctx.Done()
		return -1, nil, ctx.Err()
	}
}

// A workload that goes while its first tunnel is being made is known to be
// dialled, and the connections that wait for the tunnel fail at once.
func TestCloseWorkloadWhileDialling(t *testing.T) {
	w := newWorld(t, echo, deadEnd)
	c := w.connectDoomed()
	eventually(t, "the dial is counted", func() bool { return w.tunnels.Load() == 1 })
	w.pool.CloseWorkload("uid-1")
	if f := get(t, w.failures, "the connection may go elsewhere"); f.err.Reason != reason.TunnelClosed {
		t.Errorf("failed with %v", f.err)
	}
	_ = c.Close()
	w.pool.Close(reason.Draining)
	eventually(t, "the dial is not counted any more", func() bool { return w.tunnels.Load() == 0 })
}

// A dial that takes long is not waited for by connections with another
// endpoint, neither by those that wait already nor by new ones.
func TestSlowDialFailsOver(t *testing.T) {
	w := newWorld(t, echo, deadEnd, withSpare, func(_ *world, p *PoolConfig, _ *ServerConfig) { p.DialPatience = 50 * time.Millisecond })
	for range 2 {
		c := w.connectDoomed()
		if f := get(t, w.failures, "the connection may go elsewhere"); f.err.Reason != reason.ConnectTimeout {
			t.Errorf("failed with %v", f.err)
		}
		_ = c.Close()
	}
	if d := w.dials.Load(); d != 1 {
		t.Errorf("%d dials", d)
	}
}

// A tunnel whose peer pauses for longer than a few PINGs keeps its connections.
func TestPauseIsSurvived(t *testing.T) {
	w := newWorld(t, echo, func(_ *world, p *PoolConfig, s *ServerConfig) {
		p.KeepAlive, p.Silence = 20*time.Millisecond, time.Hour
		s.KeepAlive, s.Silence = 20*time.Millisecond, time.Hour
	})
	old := held(t, w, 1)[0]
	release := w.mute()
	eventually(t, "several PINGs have no answer", func() bool {
		most := make(chan int, 1)
		for _, s := range w.pool.shards {
			s.loop.Post(func() {
				for _, c := range s.local {
					most <- int(s.loop.Now().Sub(c.t.Heard()) / (20 * time.Millisecond))
				}
			})
		}
		return get(t, most, "the tunnel lives") >= 5
	})
	release()
	roundTrip(t, old, "still mine")
	_ = old.Close()
}
