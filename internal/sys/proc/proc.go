// Package proc tells one run of a process from another that was given its
// number since.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Run is one run of a process. The zero Run is none.
type Run struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after boot
}

// Of returns the present run of a process; its start is zero when there is
// none, or it has ended.
func Of(pid int) Run { return Run{pid, startTime(pid)} }

// Alive reports whether the run has not ended.
func (r Run) Alive() bool { return r.PID > 0 && r.Start != 0 && startTime(r.PID) == r.Start }

// startTime is 0 when there is no such process, or it has ended.
func startTime(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the name, in parentheses, which may hold anything, the state is
	// field 3 and the start time field 22.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || string(f[0]) == "Z" || string(f[0]) == "X" {
		return 0
	}
	t, _ := strconv.ParseUint(string(f[19]), 10, 64)
	return t
}

// Handle is a descriptor of a run: what is done by it cannot hit another.
type Handle struct{ fd int }

// Open returns a handle on the run, nil when it has ended.
func (r Run) Open() (*Handle, error) {
	if r.PID <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", r.PID, err)
	}
	// Checked after opening: from here on the descriptor cannot mean another.
	if !r.Alive() {
		_ = unix.Close(fd)
		return nil, nil
	}
	return &Handle{fd}, nil
}

// Signal sends a signal; it is no error when the run has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(h.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// Wait waits until the run has ended, for at most d, and reports whether it has.
// The first process of a PID namespace ends after all others in it.
func (h *Handle) Wait(d time.Duration) bool {
	deadline := time.Now().Add(d)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}, int(left.Milliseconds())) //nolint:gosec // a descriptor
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n == 1
	}
}

// Close gives the descriptor back.
func (h *Handle) Close() { _ = unix.Close(h.fd) }
