package door

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/control/auth"
)

// TestPaceHoldsItsRate: whatever is taken and given back, no time has more than
// the burst and what came since.
func TestPaceHoldsItsRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rate{rapid.IntRange(1, 50).Draw(t, "burst"), float64(rapid.IntRange(1, 100).Draw(t, "rate"))}
		begin := time.Unix(1e9, 0)
		now, p, taken := begin, pace{}, 0
		r.fill(&p, now)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				now = now.Add(time.Duration(rapid.Int64Range(0, 3e9).Draw(t, "time")))
			case 1:
				if taken > 0 {
					r.giveBack(&p)
					taken--
				}
			default:
				wait := r.next(&p, now)
				got := r.take(&p, now)
				if got != (wait == 0) {
					t.Fatalf("taken: %v, after a wait of %v", got, wait)
				}
				if wait > 0 {
					now = now.Add(wait)
					if got = r.take(&p, now); !got {
						t.Fatalf("%+v has nothing after its wait of %v", p, wait)
					}
				}
				taken++
			}
			if most := float64(r.burst) + p.at.Sub(begin).Seconds()*r.perSecond + 1e-6; float64(taken) > most {
				t.Fatalf("%d were taken of %v", taken, most)
			}
		}
	})
}

// inside returns how many connections linger, and how many addresses have some that
// are held.
func inside(d *Door) (lingering, turns int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lingering, len(d.turns)
}

// TestPacesAreBounded: however many addresses come, those that have used nothing up
// are forgotten first.
func TestPacesAreBounded(t *testing.T) {
	ps, now := paces{rate{2, 1}, map[string]*pace{}}, time.Unix(1e9, 0)
	guilty := ps.get("guilty", now)
	ps.rate.take(guilty, now)
	for i := range 3 * maxPaces {
		ps.get(fmt.Sprint(i), now)
		if len(ps.of) > maxPaces {
			t.Fatalf("%d buckets", len(ps.of))
		}
	}
	if ps.of["guilty"] != guilty {
		t.Error("an address with a used bucket was forgotten, and others have full ones")
	}
	for i := range 2 * maxPaces { // no bucket is full
		ps.rate.take(ps.get(fmt.Sprint("used", i), now), now)
	}
	if len(ps.of) > maxPaces {
		t.Errorf("%d buckets", len(ps.of))
	}
}

// TestGuiltyAddressIsHeld: connections that come to nothing use the pace of their
// address up. Its next ones are held, each for its turn; other addresses, and
// connections with authenticated calls, never are.
func TestGuiltyAddressIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var crowd atomic.Int64
		d := New(Options{Refused: func(Cause) { crowd.Add(1) }, Limits: Limits{WaitingPeer: 4, PeerBurst: 4, PeerRate: 2, Linger: time.Second}})
		var went sync.Map
		forwarded := func(c *Conn) bool { _, ok := went.Load(c); return ok }
		come := func(address string) (client net.Conn, c *Conn) {
			client, server := net.Pipe()
			c = d.enter(far{server, address}, func(c *Conn) { went.Store(c, true) })
			t.Cleanup(func() { _ = client.Close(); _ = c.Close() })
			return client, c
		}
		for range 10 { // authenticated: no bucket empties
			_, c := come("192.0.2.1:1")
			if !d.own(c, auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel"}) || !forwarded(c) {
				t.Fatal("an honest connection is held")
			}
		}
		for range 4 {
			if _, c := come("192.0.2.9:1"); !forwarded(c) {
				t.Fatal("held before the bucket was empty")
			} else {
				_ = c.Close()
			}
		}
		firstClient, first := come("192.0.2.9:2")
		_, second := come("192.0.2.9:3")
		if forwarded(first) || forwarded(second) {
			t.Fatal("a fifth connection goes on at once")
		}
		if _, c := come("192.0.2.1:2"); !forwarded(c) {
			t.Error("another address is held")
		}
		time.Sleep(510 * time.Millisecond)
		if !forwarded(first) || forwarded(second) || ended(firstClient) {
			t.Errorf("after its turn: %v, the next %v", forwarded(first), forwarded(second))
		}
		time.Sleep(500 * time.Millisecond)
		if !forwarded(second) {
			t.Error("the second had no turn")
		}
		synctest.Wait()

		// What is shed while it is held stays open for a while.
		for range 2 {
			come("192.0.2.9:4")
		}
		shed, _ := come("192.0.2.9:5")
		for range 4 {
			come("192.0.2.9:6")
		}
		if n, _ := inside(d); ended(shed) || crowd.Load() == 0 || n == 0 {
			t.Errorf("shed at once: %d were shed, %d linger", crowd.Load(), n)
		}
		time.Sleep(1100 * time.Millisecond)
		if n, _ := inside(d); !ended(shed) || n != 0 {
			t.Errorf("%d linger after the time", n)
		}
	})
}

// TestHonestCrowd: of many connections of one address that come at once, each that is
// authenticated lets the next one on. None waits for time to pass, and none is lost.
func TestHonestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Options{Limits: Limits{WaitingPeer: 200, PeerBurst: 4, PeerRate: 1}})
		begin := time.Now()
		caller := auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel"}
		var served atomic.Int64
		for range 200 {
			client, server := net.Pipe()
			t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
			d.enter(far{server, "192.0.2.9:1"}, func(c *Conn) {
				go func() {
					if d.own(c, caller) {
						served.Add(1)
					}
				}()
			})
		}
		synctest.Wait()
		for served.Load() < 200 && time.Since(begin) < time.Second {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(begin); served.Load() != 200 || took >= time.Second {
			t.Errorf("%d were served in %v", served.Load(), took)
		}
		if _, turns := inside(d); d.Waiting() != 0 || turns != 0 {
			t.Errorf("%d wait, %d turns", d.Waiting(), turns)
		}
	})
}

// TestTurnNeverComes: a connection that is held for the whole grace ends, and what
// was held leaves nothing behind.
func TestTurnNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused atomic.Int64
		d := New(Options{Refused: func(Cause) { refused.Add(1) }, Limits: Limits{WaitingPeer: 200, PeerBurst: 200, PeerRate: 1}})
		var clients []net.Conn
		for range 400 {
			client, server := net.Pipe()
			d.enter(far{server, "192.0.2.9:1"}, func(c *Conn) { go func() { _, _ = io.Copy(io.Discard, c) }() })
			clients = append(clients, client)
		}
		time.Sleep(30 * time.Second)
		for _, c := range clients {
			if !ended(c) {
				t.Error("a connection is open for ever")
			}
			_ = c.Close()
		}
		lingering, turns := inside(d)
		if d.Waiting() != 0 || turns != 0 || lingering != 0 || refused.Load() != 400 {
			t.Errorf("%d wait, %d turns, %d linger, %d were refused", d.Waiting(), turns, lingering, refused.Load())
		}
	})
}

// TestListener: connections, errors and the end go through.
func TestListener(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{Limits: Limits{WaitingPeer: 2, PeerBurst: 2, PeerRate: 1}})
	l := d.Listen(ln, false)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for range 4 { // two of them are held, and have their turn
		_, _ = dial().Write([]byte("x"))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
	last := dial()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
	_ = last.Close()
}
