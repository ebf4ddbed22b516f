package lab

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// children starts processes and collects the ended ones. The supervisor is
// PID 1 of its namespace: orphans of the pods become its children too, and
// nobody else may wait for any of them.
type children struct {
	mu    sync.Mutex
	byPID map[int]*child
}

// child is a process that the supervisor has started.
type child struct {
	pid    int
	done   chan struct{} // closed after status is set
	status unix.WaitStatus
}

func newChildren() *children { return &children{byPID: map[int]*child{}} }

// start runs a program in a network namespace. attr's files are the caller's.
func (c *children) start(ns *netns.NS, path string, argv []string, attr *os.ProcAttr) (*child, error) {
	ch := &child{done: make(chan struct{})}
	// Held until the child is known, so that it cannot be collected before.
	c.mu.Lock()
	defer c.mu.Unlock()
	err := ns.Do(func() error {
		pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
			Dir: attr.Dir, Env: attr.Env, Files: descriptors(attr.Files), Sys: attr.Sys,
		})
		ch.pid = pid
		return err
	})
	if err != nil {
		return nil, err
	}
	c.byPID[ch.pid] = ch
	return ch, nil
}

func descriptors(files []*os.File) []uintptr {
	out := make([]uintptr, len(files))
	for i, f := range files {
		out[i] = f.Fd()
	}
	return out
}

// reap collects all that have ended; to be called at every SIGCHLD.
func (c *children) reap() {
	for {
		c.mu.Lock()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			c.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			c.mu.Unlock()
			return
		}
		if ch := c.byPID[pid]; ch != nil {
			delete(c.byPID, pid)
			ch.status = status
			close(ch.done)
		}
		c.mu.Unlock()
	}
}

// signal reaches the child's process group, which it leads. A child that has
// been collected gets none: its number may be another's meanwhile.
func (c *children) signal(ch *child, sig unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPID[ch.pid] == ch {
		_ = unix.Kill(-ch.pid, sig)
	}
}

// exitCode is the code as a shell would give it.
func (ch *child) exitCode() int {
	if ch.status.Signaled() {
		return 128 + int(ch.status.Signal())
	}
	return ch.status.ExitStatus()
}
