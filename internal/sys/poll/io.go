package poll

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below, but for epollWait, never block, so they tell the scheduler nothing
// (RawSyscall): entering and leaving a system call the usual way costs as much
// as a small transfer itself.

// Again is the error of a call that would have to wait.
const Again = unix.EAGAIN

// epollPoll collects what is ready without waiting.
func epollPoll(epfd int, events []unix.EpollEvent) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// epollWait collects what is ready and waits for it, milliseconds at the most or
// for ever when that is negative. Unlike the others here it may block, and
// tells the scheduler.
func epollWait(epfd int, events []unix.EpollEvent, milliseconds int) (int, error) {
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(milliseconds), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Read reads from a non-blocking descriptor. The error is nil or an Errno:
// Again when there is nothing. 0 bytes without an error is the end of the
// stream. len(p) must not be 0.
func Read(fd int, p []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// readv is Read for several pieces, at least one and none of them empty.
func readv(fd int, pieces []unix.Iovec) (int, error) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(&pieces[0])), uintptr(len(pieces)))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// Peek is Read for a socket that leaves the bytes there.
func Peek(fd int, p []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// Write writes to a non-blocking socket and returns how much it took. The
// error is nil or an Errno: Again when it took nothing. It raises no SIGPIPE.
func Write(fd int, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// writev is Write for several pieces, at least one and none of them empty.
func writev(fd int, pieces []unix.Iovec) (int, error) {
	msg := unix.Msghdr{Iov: &pieces[0]}
	msg.SetIovlen(len(pieces))
	for {
		n, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// CloseFD closes a descriptor that no loop watches; a socket's peer gets what
// was written and then the end of the stream.
func CloseFD(fd int) {
	if fd >= 0 {
		closeFD(fd)
	}
}

// closeFD is close of a socket, which never waits: none has SO_LINGER with a time.
func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// ResetFD closes a TCP socket so that its peer gets a reset. What was written
// and did not reach it yet is lost.
func ResetFD(fd int) {
	SetReset(fd)
	CloseFD(fd)
}

// SetReset makes the next close of the socket a reset.
func SetReset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// ShutdownWrite sends the end of the stream; reading goes on.
func ShutdownWrite(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }

// Unsent is how many bytes written to a TCP socket its peer has not
// acknowledged.
func Unsent(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// Dup duplicates a descriptor, close-on-exec.
func Dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// pipeSize is asked for every pipe: the most an unprivileged process gets
// (fs.pipe-max-size).
const pipeSize = 1 << 20

// maxPipes bounds the idle pipes a loop keeps.
const maxPipes = 16

// MaxPipes bounds the pipes of a loop, idle or not, each of two descriptors and up
// to pipeSize bytes of the kernel's memory: those of connections whose other side
// does not read stay with them. Without a pipe, bytes are copied.
const MaxPipes = 256

// errPipes is returned when a loop has MaxPipes.
var errPipes = errors.New("the event loop has too many pipes")

// Pipe carries bytes from one socket to another without copying them into
// this process. The zero value is no pipe.
type Pipe struct {
	r, w int
	// Len is how many bytes are inside.
	Len int
}

// Pipe takes a pipe from the loop, or makes one.
func (l *Loop) Pipe() (Pipe, error) {
	if n := len(l.pipes); n > 0 {
		p := l.pipes[n-1]
		l.pipes = l.pipes[:n-1]
		return p, nil
	}
	if l.piped >= MaxPipes {
		return Pipe{}, errPipes
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return Pipe{}, err
	}
	// Refused when the user has many: a small pipe works too.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	l.piped++
	return Pipe{r: fds[0], w: fds[1]}, nil
}

// PutPipe gives a pipe back; one that is not empty is closed.
func (l *Loop) PutPipe(p Pipe) {
	if p == (Pipe{}) {
		return
	}
	if p.Len > 0 || len(l.pipes) >= maxPipes {
		p.close()
		l.piped--
		return
	}
	l.pipes = append(l.pipes, p)
}

func (p Pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

const spliceFlags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK

// Fill moves bytes from a socket into the pipe, like Read.
func (p *Pipe) Fill(fd int) (int, error) {
	n, err := splice(fd, p.w, pipeSize)
	p.Len += n
	return n, err
}

// Drain moves bytes from the pipe to a socket, like Write.
func (p *Pipe) Drain(fd int) (int, error) {
	n, err := splice(p.r, fd, p.Len)
	p.Len -= n
	return n, err
}

func splice(from, to, n int) (int, error) {
	for {
		m, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), spliceFlags)
		switch e {
		case 0:
			return int(m), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}
