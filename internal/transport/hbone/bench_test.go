package hbone

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// contender is one way from a program to another: through two plain proxies,
// or through a tunnel between two nodes. Compare them in one run:
//
//	go test -run xxx -bench . -benchmem -cpu 2 ./internal/transport/hbone
type contender struct {
	name string
	make func(tb testing.TB, app func(net.Conn)) *world
}

var contenders = []contender{
	{"plain", plainWorld},
	{"hbone", func(tb testing.TB, app func(net.Conn)) *world {
		return newWorld(tb, app, func(w *world, _ *PoolConfig, _ *ServerConfig) { w.quiet = true })
	}},
	{"hbone-crypto-tls", func(tb testing.TB, app func(net.Conn)) *world {
		return newWorld(tb, app, func(w *world, p *PoolConfig, s *ServerConfig) {
			w.quiet = true
			p.LibraryRecords, s.LibraryRecords = true, true
		})
	}},
}

// plainWorld has the same programs behind two proxies that only relay.
func plainWorld(tb testing.TB, app func(net.Conn)) *world {
	w := newWorld(tb, app, func(w *world, _ *PoolConfig, _ *ServerConfig) { w.quiet = true })
	far := plainTo(w, w.far, w.appListener.Addr().(*net.TCPAddr).AddrPort())
	w.entry = net.TCPAddrFromAddrPort(plainTo(w, w.near, far))
	return w
}

func compare(b *testing.B, f func(b *testing.B, c contender)) {
	for _, c := range contenders {
		b.Run(c.name, func(b *testing.B) { f(b, c) })
	}
}

// The 1 KiB echo over 1, 16 and 64 connections: round trips per second.
func BenchmarkEcho(b *testing.B) {
	for _, n := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			compare(b, func(b *testing.B, c contender) {
				w := c.make(b, echo)
				conns := warm(w, n)
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for _, c := range conns {
					wg.Add(1)
					go func() {
						defer wg.Done()
						buf := make([]byte, 1024)
						for left.Add(-1) >= 0 {
							if !pingPong(c, buf) {
								b.Error("echo failed")
								return
							}
						}
					}()
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "echo/s")
				closeAll(conns)
			})
		})
	}
}

func pingPong(c net.Conn, buf []byte) bool {
	if _, err := c.Write(buf); err != nil {
		return false
	}
	_, err := io.ReadFull(c, buf)
	return err == nil
}

func warm(w *world, n int) []*net.TCPConn {
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i] = w.connect()
		_ = conns[i].SetDeadline(time.Time{})
		if !pingPong(conns[i], make([]byte, 1024)) {
			w.tb.Fatal("no echo")
		}
	}
	return conns
}

func closeAll(conns []*net.TCPConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// Bulk over 1 and 16 connections: one way, bytes per second, and the process's
// processor time per gigabyte (with both programs in it).
func BenchmarkBulk(b *testing.B) {
	const piece = 1 << 20
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			compare(b, func(b *testing.B, c contender) {
				got := make(chan int64, n)
				w := c.make(b, func(c net.Conn) {
					_, _ = io.ReadFull(c, make([]byte, 1024))
					_, _ = c.Write(make([]byte, 1024))
					buf := make([]byte, 256<<10)
					total := int64(0)
					for {
						m, err := c.Read(buf)
						total += int64(m)
						if err != nil {
							break
						}
					}
					got <- total
				})
				conns := warm(w, n)
				var left atomic.Int64
				left.Store(int64(b.N))
				data := make([]byte, piece)
				b.SetBytes(piece)
				b.ReportAllocs()
				cpu := processorTime()
				b.ResetTimer()
				for _, c := range conns {
					go func() {
						for left.Add(-1) >= 0 {
							if _, err := c.Write(data); err != nil {
								b.Error(err)
								return
							}
						}
						_ = c.CloseWrite()
					}()
				}
				total := int64(0)
				for range conns {
					total += <-got
				}
				b.StopTimer()
				if total != int64(b.N)*piece {
					b.Errorf("%d bytes arrived of %d", total, int64(b.N)*piece)
				}
				b.ReportMetric((processorTime()-cpu).Seconds()/(float64(total)/1e9), "cpu-s/GB")
				closeAll(conns)
			})
		})
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// New connections, 1 and 16 at a time: connect, one echo, close.
func BenchmarkConnect(b *testing.B) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			compare(b, func(b *testing.B, c contender) {
				w := c.make(b, echo)
				closeAll(warm(w, 1))
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for range n {
					wg.Add(1)
					go func() {
						defer wg.Done()
						buf := make([]byte, 64)
						for left.Add(-1) >= 0 {
							c, err := net.DialTCP("tcp", nil, w.entry.(*net.TCPAddr))
							if err != nil {
								b.Error(err)
								return
							}
							if !pingPong(c, buf) {
								b.Error("echo failed")
							}
							_ = c.SetLinger(0) // no ports in TIME_WAIT
							_ = c.Close()
						}
					}()
				}
				wg.Wait()
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
			})
		})
	}
}

// Memory of one held, idle connection in both proxies. The programs are raw
// sockets, so that nothing else grows.
func BenchmarkHeld(b *testing.B) {
	const n = 1000
	compare(b, func(b *testing.B, c contender) {
		w := c.make(b, func(net.Conn) {})
		_ = w.appListener.Close()
		var accepted []int
		var mu sync.Mutex
		sink := w.listen(w.far, func(_ *poll.Loop, fd int, _, _ netip.AddrPort) {
			mu.Lock()
			accepted = append(accepted, fd)
			mu.Unlock()
		})
		if c.name == "plain" {
			w.entry = net.TCPAddrFromAddrPort(plainTo(w, w.near, plainTo(w, w.far, sink)))
		} else {
			w.handle(func(r *Request) {
				fd, _ := sockopt.Stream(sink.Addr())
				relay.Connect(r.Loop, fd, sink, patience, func(err error) {
					r.Accept(fd, nil, ResponseHeader{}, nil)
				})
			})
		}
		entry := netip.MustParseAddrPort(w.entry.String())
		open := func(k int) []int {
			fds := make([]int, k)
			for i := range fds {
				fd, err := sockopt.Stream(entry.Addr())
				check(b, err)
				check(b, sockopt.Connect(fd, entry))
				fds[i] = fd
			}
			return fds
		}
		count := func() int { mu.Lock(); defer mu.Unlock(); return len(accepted) }
		fds := open(10)
		eventually(b, "first connections are up", func() bool { return count() == 10 })
		before := heap()
		fds = append(fds, open(n)...)
		eventually(b, "all connections are up", func() bool { return count() == n+10 })
		after := heap()
		b.ReportMetric(float64(after-before)/n, "B/held")
		for _, fd := range fds {
			sockopt.Close(fd)
		}
		for _, fd := range accepted {
			sockopt.Close(fd)
		}
	})
}

func plainTo(w *world, g *poll.Group, to netip.AddrPort) netip.AddrPort {
	return w.listen(g, func(l *poll.Loop, down int, _, _ netip.AddrPort) {
		_ = sockopt.NoDelay(down)
		up, err := sockopt.Stream(to.Addr())
		if err != nil {
			poll.ResetFD(down)
			return
		}
		_ = sockopt.NoDelay(up)
		relay.Connect(l, up, to, patience, func(err error) {
			if err != nil {
				poll.CloseFD(up)
				poll.ResetFD(down)
				return
			}
			relay.Start(l, relay.Pair{Down: down, Up: up})
		})
	})
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
