// Package process starts the programs of a lab and collects the ended ones: their first
// process in a pod, their environment, their log.
package process

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Children starts processes and collects the ended ones. The supervisor is
// PID 1 of its namespace: orphans of the pods become its children too, and
// nobody else may wait for any of them.
type Children struct {
	mu    sync.Mutex
	byPID map[int]*Child
}

// Child is a process that the supervisor has started.
type Child struct {
	Pid    int
	Done   chan struct{} // closed after status is set
	status unix.WaitStatus
}

// NewChildren returns children of which none runs.
func NewChildren() *Children { return &Children{byPID: map[int]*Child{}} }

// Start runs a program in a network namespace. attr's files are the caller's.
func (c *Children) Start(ns *netns.NS, path string, argv []string, attr *os.ProcAttr) (*Child, error) {
	ch := &Child{Done: make(chan struct{})}
	// Held until the child is known, so that it cannot be collected before.
	c.mu.Lock()
	defer c.mu.Unlock()
	err := ns.Do(func() error {
		pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
			Dir: attr.Dir, Env: attr.Env, Files: descriptors(attr.Files), Sys: attr.Sys,
		})
		ch.Pid = pid
		return err
	})
	if err != nil {
		return nil, err
	}
	c.byPID[ch.Pid] = ch
	return ch, nil
}

func descriptors(files []*os.File) []uintptr {
	out := make([]uintptr, len(files))
	for i, f := range files {
		out[i] = f.Fd()
	}
	return out
}

// Reap collects all that have ended; to be called at every SIGCHLD.
func (c *Children) Reap() {
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
			close(ch.Done)
		}
		c.mu.Unlock()
	}
}

// Signal reaches the child's process group, which it leads. A child that has
// been collected gets none: its number may be another's meanwhile.
func (c *Children) Signal(ch *Child, sig unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPID[ch.Pid] == ch {
		_ = unix.Kill(-ch.Pid, sig)
	}
}

// ExitCode is the code as a shell would give it.
func (ch *Child) ExitCode() int {
	if ch.status.Signaled() {
		return 128 + int(ch.status.Signal())
	}
	return ch.status.ExitStatus()
}
