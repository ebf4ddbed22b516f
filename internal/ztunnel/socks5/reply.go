package socks5

import (
	"errors"
	"net/http"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

// CodeOf returns the code for a connection that failed. status is what the
// destination's proxy answered, 0 for nothing.
func CodeOf(err *reason.Error, status int) Code {
	switch err.Reason {
	case reason.PolicyDenied, reason.NotAllowed, reason.PolicyChanged, reason.PolicyUnavailable, reason.PolicyUnsupported,
		reason.NotInRegistry, reason.EgressDenied, reason.WaypointRequired, reason.RecursiveCall:
		return NotAllowed
	case reason.UnknownDestination, reason.NoHealthyUpstream, reason.WaypointUnavailable, reason.ConnectTimeout:
		return HostUnreachable
	case reason.UnknownGateway:
		return NetworkUnreachable
	case reason.TunnelRefused:
		switch status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return NotAllowed
		case http.StatusServiceUnavailable:
			return ConnectionRefused
		}
	case reason.ConnectFailure:
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return ConnectionRefused
		case errors.Is(err, syscall.ENETUNREACH):
			return NetworkUnreachable
		case errors.Is(err, syscall.EHOSTUNREACH):
			return HostUnreachable
		}
	default: // no code of SOCKS says more
	}
	return GeneralFailure
}

// Accept sends the program of a socket the reply that it is connected. The reply always fits: the
// program has sent its request after the only bytes before.
func Accept(fd int) {
	var b [10]byte
	_, _ = poll.Write(fd, AppendReply(b[:0], Succeeded)) // a program that is gone is found by what carries it
}

// Refuse sends the program of a socket the code of an error, and closes the socket.
func Refuse(fd int, err *reason.Error, status int) {
	var b [10]byte
	end(fd, AppendReply(b[:0], CodeOf(err, status)))
}

// maxEarly is how many bytes of a program that did not wait for the reply are read before
// its socket is closed: what is not read turns the end into a reset, which can overtake
// the reply.
const maxEarly = 64 << 10

// end sends the last answer and closes.
func end(fd int, answer []byte) {
	_, _ = poll.Write(fd, answer) // whoever does not get it gets the end
	_ = poll.ShutdownWrite(fd)
	var b [4096]byte
	for read := 0; read < maxEarly; {
		n, err := poll.Read(fd, b[:])
		if n <= 0 || err != nil {
			break
		}
		read += n
	}
	poll.CloseFD(fd)
}
