package lab

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab/trace"
)

// CaptureBuffer is the kernel's room for frames that were not read yet, bytes.
const CaptureBuffer = 16 << 20

// Capture listens on the links between the nodes until Stop.
type Capture struct {
	f    *os.File
	done chan struct{}
	stop atomic.Bool
	// from are the interfaces that lead to nodes: on others, the same frames
	// would be seen again.
	from map[int]bool

	mu     sync.Mutex
	tracer *trace.Tracer // guarded by mu
}

// Capture begins to listen between the nodes, and counts packets in which mark
// can be read; an empty mark looks for none. The caller ends it with Stop.
func (l *Lab) Capture(ctx context.Context, mark string) (*Capture, error) {
	r, files, err := l.call(ctx, Request{Op: "capture"})
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		CloseAll(files)
		return nil, errors.New("the lab sent no socket")
	}
	fd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	CloseAll(files)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// Made anew: a file only waits by the poller when it is non-blocking from
	// the beginning.
	c := &Capture{f: os.NewFile(uintptr(fd), "capture"), done: make(chan struct{}), from: map[int]bool{}, tracer: trace.NewTracer(mark)}
	for _, n := range r.Text {
		index, _, _ := strings.Cut(n, "=")
		i, _ := strconv.Atoi(index)
		c.from[i] = true
	}
	raw, err := c.f.SyscallConn()
	if err != nil {
		_ = c.f.Close()
		return nil, err
	}
	go c.listen(raw)
	return c, nil
}

func (c *Capture) listen(raw syscall.RawConn) {
	defer close(c.done)
	buf := make([]byte, 1<<17)
	drain := func(fd uintptr) {
		for {
			n, from, err := unix.Recvfrom(int(fd), buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return
			}
			if ll, ok := from.(*unix.SockaddrLinklayer); ok && c.from[ll.Ifindex] {
				c.mu.Lock()
				c.tracer.Frame(buf[:n])
				c.mu.Unlock()
			}
		}
	}
	for !c.stop.Load() {
		// Returning false means: wait until there is more.
		if raw.Read(func(fd uintptr) bool { drain(fd); return c.stop.Load() }) != nil {
			break
		}
	}
	_ = raw.Control(func(fd uintptr) {
		drain(fd) // what came before Stop
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.mu.Lock()
			c.tracer.Dropped(int(st.Drops))
			c.mu.Unlock()
		}
	})
}

// Report tells what was seen so far.
func (c *Capture) Report() trace.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tracer.Report()
}

// Stop ends the capture and reports on all of it.
func (c *Capture) Stop() trace.Report {
	c.stop.Store(true)
	_ = c.f.SetReadDeadline(time.Now())
	<-c.done
	_ = c.f.Close()
	return c.Report()
}
