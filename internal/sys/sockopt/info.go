package sockopt

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TCPInfo is what the kernel has measured of a connection.
type TCPInfo struct {
	RTT, RTTVariation time.Duration // smoothed
	Retransmits       uint32        // segments that were sent again, in all
}

// Info returns what the kernel has measured of the connected socket fd.
func Info(fd int) (TCPInfo, error) {
	i, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
	if err != nil {
		return TCPInfo{}, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return TCPInfo{
		RTT: time.Duration(i.Rtt) * time.Microsecond, RTTVariation: time.Duration(i.Rttvar) * time.Microsecond, Retransmits: i.Total_retrans,
	}, nil
}
