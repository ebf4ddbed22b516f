package network

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Capture returns a socket that receives every frame that comes into the namespace; buffer
// is its room for frames that were not read yet, in bytes.
func (s *Space) Capture(buffer int) (*os.File, error) {
	fd, err := s.Ns.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	f := os.NewFile(uintptr(fd), "capture")
	// Without this every frame would be seen twice: from its node, and to it.
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
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
