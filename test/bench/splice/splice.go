// Package splice is a plain proxy, which a node proxy is compared with.
package splice

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// Command makes the benchmark a plain proxy: bench relay LISTEN TO.
const Command = "relay"

// dialTimeout is for the plain proxy's way on, which is one hop.
const dialTimeout = 5 * time.Second

// Main is what a node proxy would be without TLS, HTTP/2, identity,
// policy and telemetry: the price of two more sockets and the copies between
// them, on the same event loop. It says its process number when it listens.
func Main(args []string) int {
	if len(args) != 2 {
		return complain(fmt.Errorf("usage: bench %s LISTEN TO", Command))
	}
	if err := serve(args[0], args[1]); err != nil {
		return complain(err)
	}
	select {} // until it is killed
}

func serve(listen, to string) error {
	target, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	at, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return err
	}
	addr := at.AddrPort()
	if at.IP == nil {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	}
	fd, err := sockopt.Listen(netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), sockopt.ListenOptions{})
	if err != nil {
		return err
	}
	// As in a node proxy: a loop on every processor, and room beside them.
	loops := runtime.NumCPU()
	runtime.GOMAXPROCS(loops + 1)
	g, err := poll.NewGroup(loops)
	if err != nil {
		return err
	}
	_, err = poll.Listen(g, fd, func(l *poll.Loop, down int, _ netip.AddrPort) {
		up, err := sockopt.Stream(target.Addr())
		if err != nil {
			poll.ResetFD(down)
			return
		}
		_ = sockopt.NoDelay(down)
		_ = sockopt.NoDelay(up)
		relay.Connect(l, up, target, dialTimeout, func(err error) {
			if err != nil {
				poll.ResetFD(down)
				poll.CloseFD(up)
				return
			}
			relay.Start(l, relay.Pair{Down: down, Up: up})
		})
	})
	if err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	return nil
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}
