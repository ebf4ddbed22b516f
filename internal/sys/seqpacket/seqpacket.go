// Package seqpacket carries packets and open files over a unix socket of type
// SOCK_SEQPACKET: packets keep their boundaries and their order, and a packet
// can bring descriptors with it.
package seqpacket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/unixsock"
)

// maxFiles is how many descriptors one packet may bring before the kernel cuts
// the list. More than one is a mistake of the sender's; they are received so
// that they can be closed.
const maxFiles = 4

// ErrTruncated tells that a packet was larger than the buffer, or brought more
// descriptors than anybody sends.
var ErrTruncated = errors.New("packet does not fit")

// Conn is one end of a connection. One goroutine may receive while another
// sends.
type Conn struct {
	c   *net.UnixConn
	oob []byte
}

// Listen makes the socket, in the place of one that a former process left
// behind. Only the user of this process may connect.
func Listen(path string) (*Listener, error) {
	l, err := unixsock.Listen("unixpacket", path)
	if err != nil {
		return nil, err
	}
	return &Listener{l: l}, nil
}

// Listener accepts connections.
type Listener struct{ l *net.UnixListener }

// Accept waits for the next connection.
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return wrap(c), nil
}

// Close stops to listen. The socket stays at its path, and refuses.
func (l *Listener) Close() error { return l.l.Close() }

// Dial connects to a listener.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return wrap(c.(*net.UnixConn)), nil
}

func wrap(c *net.UnixConn) *Conn {
	return &Conn{c: c, oob: make([]byte, unix.CmsgSpace(maxFiles*4))}
}

// Send sends one packet, with a descriptor if file is not nil. The file stays
// the caller's. A zero deadline waits for as long as it takes.
func (c *Conn) Send(p []byte, file *os.File, deadline time.Time) error {
	var oob []byte
	if file != nil {
		oob = unix.UnixRights(int(file.Fd()))
	}
	if err := c.c.SetWriteDeadline(deadline); err != nil {
		return err
	}
	n, oobn, err := c.c.WriteMsgUnix(p, oob, nil)
	if err == nil && (n != len(p) || oobn != len(oob)) {
		err = io.ErrShortWrite
	}
	return err
}

// Receive reads one packet into buf. The files that came with it are the
// caller's, unless there is an error: then they are closed. The end of the
// connection is io.EOF.
func (c *Conn) Receive(buf []byte, deadline time.Time) (int, []*os.File, error) {
	if err := c.c.SetReadDeadline(deadline); err != nil {
		return 0, nil, err
	}
	n, oobn, flags, _, err := c.c.ReadMsgUnix(buf, c.oob)
	// What came has to be taken even when the packet is no good, or the
	// descriptors stay open for ever.
	files, ferr := takeFiles(c.oob[:oobn])
	if err == nil {
		err = ferr
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = ErrTruncated
	}
	if err != nil {
		closeAll(files)
		return 0, nil, err
	}
	return n, files, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

func takeFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("ancillary data: %w", err)
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // another kind of message, which brings no descriptor
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received descriptor"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
