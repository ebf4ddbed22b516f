// Package unixsock makes unix sockets that only their owner may use, whatever
// the umask of the process is.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// mode lets the owner connect, and no other user: the sockets of the mesh are
// between its own programs, which run as the same user.
const mode = 0o600

// Listen makes the socket, in the place of one that a former process left
// behind. network is "unix" or "unixpacket". The socket stays when the listener
// is closed: a successor may have made its own at this path.
func Listen(network, path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %w", err)
	}
	// The kernel gives the file of the socket the mode that the descriptor has
	// when it is bound, less the umask: there is no moment at which others can
	// connect.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), mode) })
		return errors.Join(err, chmod)
	}}
	l, err := lc.Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	// A umask that takes from the owner would keep the mesh from working.
	if err := os.Chmod(path, mode); err != nil {
		_ = ul.Close()
		return nil, err
	}
	return ul, nil
}
