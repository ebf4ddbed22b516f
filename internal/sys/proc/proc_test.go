package proc

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	r := Of(cmd.Process.Pid)
	if r.Start == 0 || !r.Alive() {
		t.Fatalf("%+v", r)
	}
	// The same number with another start: somebody else.
	other := Run{r.PID, r.Start + 1}
	if h, err := other.Open(); h != nil || err != nil || other.Alive() {
		t.Errorf("took another run for it: %v, %v", h, err)
	}
	h, err := r.Open()
	if h == nil || err != nil {
		t.Fatal(h, err)
	}
	defer h.Close()
	if h.Wait(10 * time.Millisecond) {
		t.Error("ended by itself")
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Nobody has reaped it yet: it has ended nevertheless.
	if !h.Wait(10 * time.Second) {
		t.Fatal("killed, and has not ended")
	}
	if r.Alive() {
		t.Error("what nobody has reaped is taken for alive")
	}
	_ = cmd.Wait()
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Errorf("a signal to what is gone: %v", err)
	}
	if h, err := r.Open(); h != nil || err != nil {
		t.Errorf("opened what is gone: %v, %v", h, err)
	}
}

func TestNone(t *testing.T) {
	for _, r := range []Run{{}, {PID: -5, Start: 3}, {PID: 1}, {PID: os.Getpid()}} {
		if h, err := r.Open(); h != nil || err != nil || r.Alive() {
			t.Errorf("%+v: %v, %v", r, h, err)
		}
	}
}
