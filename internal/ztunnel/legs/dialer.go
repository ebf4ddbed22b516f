package legs

import (
	"context"
	"net"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

// Dialer marks the proxy's own connections where it lives in the network that
// it captures, or they would come back to it; nil where it does not.
func Dialer(c *config.Config) func(context.Context, string) (net.Conn, error) {
	if c.Mode != config.Dedicated || c.PacketMark == 0 {
		return nil
	}
	d := net.Dialer{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if cerr := conn.Control(func(fd uintptr) { err = sockopt.Mark(int(fd), c.PacketMark) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}
