package poll

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A loop that cannot wait any more ends, and says so.
func TestLoopThatFails(t *testing.T) {
	g, err := NewGroup(2)
	if err != nil {
		t.Fatal(err)
	}
	l := g.Loop(1)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(null) }()
	l.Post(func() {
		if err := unix.Dup3(null, l.epfd, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
	})
	select {
	case err := <-g.Failed():
		if !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no word of the loop's end")
	}
	<-l.Done()
	if l.Post(func() {}) {
		t.Error("the loop takes more")
	}
	g.Close()
	select {
	case err := <-g.Failed():
		t.Errorf("a loop that was closed has failed: %v", err)
	default:
	}
}
