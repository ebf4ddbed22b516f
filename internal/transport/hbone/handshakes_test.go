package hbone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/arrivals"
	"github.com/ambit-mesh/ambit/internal/transport/arrivals/arrivalstest"
	"github.com/ambit-mesh/ambit/internal/transport/tunnel"
)

// ample is a quota that counts; of is how much there is.
type ample struct {
	of   int64
	used atomic.Int64
}

func (a *ample) Take(n int64) bool {
	if a.used.Add(n) > a.of {
		a.used.Add(-n)
		return false
	}
	return true
}
func (a *ample) Give(n int64) { a.used.Add(-n) }
func (a *ample) Room() int64  { return (a.of - a.used.Load()) / 2 }

// reach connects to the tunnel's port from an address of this machine.
func (w *world) reach(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return d.Dial("tcp", w.tunnelAddr.String())
}

// comeBack is how long an attacker that was reset stays away: the way to another
// machine and back.
const comeBack = 20 * time.Millisecond

// Peers that send nothing, a byte at a time, or nothing after their hello, and come
// back whenever they are reset, keep no other peer from making a tunnel.
func TestPeersThatWaitTakeNoSlot(t *testing.T) {
	hello := arrivalstest.Hello(t)
	attacks := map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"dribbling": func(c net.Conn) {
			for i := range hello {
				if _, err := c.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		},
		"half a hello":  func(c net.Conn) { _, _ = c.Write(hello[:len(hello)/2]) },
		"stalled":       func(c net.Conn) { _, _ = c.Write(hello) },
		"stalled later": func(c net.Conn) { _, _ = c.Write(append(bytes.Clone(hello), 22, 3, 3, 0, 1)) },
	}
	for name, attack := range attacks {
		for sources := range 2 {
			t.Run(fmt.Sprintf("%s/%d", name, sources), func(t *testing.T) {
				w := newWorld(t, echo, func(_ *world, _ *PoolConfig, s *ServerConfig) {
					// Few slots, and no time limit that could help.
					s.MaxHandshakes = 8
					s.HelloTimeout, s.AnswerTimeout, s.HandshakeTimeout = time.Hour, time.Hour, time.Hour
					s.OnHandshakeError = nil
				})
				stop := make(chan struct{})
				var attackers sync.WaitGroup
				var rounds atomic.Int64 // connections that attackers made
				defer attackers.Wait()
				defer close(stop)
				for i := range 60 {
					attackers.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							c, err := w.reach(fmt.Sprintf("127.0.1.%d", 1+i*sources))
							if err != nil {
								continue
							}
							rounds.Add(1)
							end := make(chan struct{})
							go func() {
								defer close(end)
								attack(c)
								_, _ = io.Copy(io.Discard, c) // until it is reset
							}()
							select {
							case <-stop:
							case <-end:
							}
							_ = c.Close()
							<-end
							time.Sleep(comeBack)
						}
					})
				}
				if sources > 0 && strings.HasPrefix(name, "stalled") {
					// Each source owes more than the honest one will: until then nothing
					// tells them apart.
					eventually(t, "the attack is under way", func() bool { return rounds.Load() > 5*60 })
				}
				for range 3 {
					w.pool.CloseWorkload("uid-1") // a new tunnel each time
					c := w.connect()
					roundTrip(t, c, "hello")
					_ = c.Close()
				}
			})
		}
	}
}

func TestWhyAPeerIsGivenUp(t *testing.T) {
	for name, tc := range map[string]struct {
		send func(net.Conn)
		want error
	}{
		"silent":   {func(net.Conn) {}, arrivals.ErrSilent},
		"partial":  {func(c net.Conn) { _, _ = c.Write([]byte{22, 3}) }, arrivals.ErrSilent},
		"stalled":  {func(c net.Conn) { _, _ = c.Write(arrivalstest.Hello(t)) }, arrivals.ErrSilent},
		"HTTP":     {func(c net.Conn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, arrivals.ErrForeign},
		"gone":     {func(c net.Conn) { _ = c.Close() }, arrivals.ErrEnded},
		"half end": {func(c net.Conn) { _, _ = c.Write([]byte{22, 3}); _ = c.(*net.TCPConn).CloseWrite() }, arrivals.ErrEnded},
	} {
		t.Run(name, func(t *testing.T) {
			sockets := &ample{of: 10}
			w := newWorld(t, echo, func(_ *world, _ *PoolConfig, s *ServerConfig) {
				s.HelloTimeout, s.AnswerTimeout = 200*time.Millisecond, 200*time.Millisecond
				s.Sockets = sockets
			})
			c, err := w.reach("127.0.0.1")
			check(t, err)
			defer func() { _ = c.Close() }()
			tc.send(c)
			err = get(t, w.handshakeErrs, "the connection is given up")
			var re *reason.Error
			if !errors.Is(err, tc.want) || !errors.As(err, &re) || re.Reason != reason.TunnelHandshake {
				t.Errorf("given up because of %v, not %v", err, tc.want)
			}
			eventually(t, "its unit is given back", func() bool { return sockets.used.Load() == 0 })
		})
	}
}

// What is taken of budgets comes back, whatever becomes of connections, and a
// silent connection gives way to one that comes when there are no more.
func TestServerBudgets(t *testing.T) {
	sockets, tunnels, dials := &ample{of: 4}, &ample{of: 100}, &ample{of: 2}
	w := newWorld(t, echo, func(_ *world, p *PoolConfig, s *ServerConfig) {
		s.Sockets, s.Tunnels, p.Sockets = sockets, tunnels, dials
		s.HelloTimeout = time.Hour
	})
	var idle []net.Conn
	for range 6 {
		c, err := w.reach("127.0.0.9")
		check(t, err)
		idle = append(idle, c)
	}
	for range 2 {
		if err := get(t, w.handshakeErrs, "a silent connection goes"); !errors.Is(err, arrivals.ErrTooManySilent) {
			t.Error(err)
		}
	}
	c := w.connect()
	roundTrip(t, c, "hello")
	_ = c.Close()
	if err := get(t, w.handshakeErrs, "one more silent connection goes"); !errors.Is(err, arrivals.ErrTooManySilent) {
		t.Error(err)
	}
	if n, m, d := sockets.used.Load(), tunnels.used.Load(), dials.used.Load(); n != 4 || m != 1 || d != 1 {
		t.Errorf("with a tunnel and 3 silent connections, %d sockets, %d tunnels and %d dialled are counted", n, m, d)
	}
	for _, c := range idle {
		_ = c.Close()
	}
	w.pool.CloseWorkload("uid-1")
	for what, q := range map[string]*ample{"sockets": sockets, "tunnels": tunnels, "dialled": dials} {
		eventually(t, what+" are given back", func() bool { return q.used.Load() == 0 })
	}
}

func TestTunnelsOfOnePeerAreBounded(t *testing.T) {
	var client atomic.Uint32 // the last byte of the client's address: each has a tunnel of its own
	w := newWorld(t, echo, func(w *world, _ *PoolConfig, s *ServerConfig) {
		s.MaxPeerTunnels = 2
		w.key = func() Key {
			return Key{SrcIdentity: alice, SrcIP: netip.AddrFrom4([4]byte{10, 0, 0, byte(client.Load())}), Dst: w.tunnelAddr, DstIdentities: bob.String(), DstUID: "uid-1"}
		}
	})
	for i := range 3 {
		client.Store(uint32(i))
		c := w.connect()
		if i < 2 {
			roundTrip(t, c, "hello")
		} else if err := get(t, w.handshakeErrs, "the third tunnel is refused"); !errors.Is(err, errPeer) {
			t.Error(err)
		}
		_ = c.Close()
	}
}

// Programs that do not read cannot make the proxy hold more than the budget, and
// another tunnel's streams go on.
func TestQueuedBytesAreBounded(t *testing.T) {
	release := make(chan struct{})
	var programs atomic.Int64
	const total = 1 << 20
	queues, near := &ample{of: total}, &ample{of: 1 << 40}
	w := newWorld(t, func(c net.Conn) {
		if programs.Add(1) <= 50 {
			<-release
			_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
			return
		}
		echo(c)
	}, func(_ *world, p *PoolConfig, s *ServerConfig) { s.Queues, p.Queues = queues, near })
	var writers sync.WaitGroup
	for range 50 {
		c := w.connect()
		get(t, w.flows, "a stream is up")
		writers.Go(func() {
			_, _ = io.CopyN(struct{ io.Writer }{c}, zeros{}, 16<<20) // until it is reset
			_ = c.SetLinger(0)
			_ = c.Close()
		})
	}
	if r := get(t, w.closedServer, "a stream is reset"); r.Reason != reason.ResourceExhausted || !errors.Is(r.Err, tunnel.ErrQueues) {
		t.Errorf("%+v", r)
	}
	if n := queues.used.Load(); n > total {
		t.Errorf("%d bytes are queued, and the budget is %d", n, total)
	}
	c := w.connect()
	roundTrip(t, c, "hello")
	_ = c.Close()
	close(release)
	writers.Wait()
	eventually(t, "all is given back", func() bool { return queues.used.Load() == 0 && near.used.Load() == 0 })
}
