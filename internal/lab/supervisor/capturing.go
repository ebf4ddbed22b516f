package supervisor

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
)

// captureSocket hears every frame that comes from a node into the LAN.
func (s *supervisor) captureSocket() (*os.File, error) {
	fd, err := s.lan.Ns.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	f := os.NewFile(uintptr(fd), "capture")
	// Without this every frame would be seen twice: from its node, and to it.
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, lab.CaptureBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, lab.CaptureBuffer)
		}
		var all [2]byte
		binary.BigEndian.PutUint16(all[:], unix.ETH_P_ALL)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all[:])})
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("capture: %w", err)
	}
	return f, nil
}

// captureNames lists the interfaces that lead to nodes, as "index=name".
func (s *supervisor) captureNames() []string {
	var out []string
	for _, n := range s.nodes {
		if index, err := s.lan.Index(network.PortName(n.n)); err == nil {
			out = append(out, fmt.Sprintf("%d=%s", index, n.name))
		}
	}
	return out
}
