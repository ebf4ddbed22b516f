package nft

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

func TestKernelHoldsWhatWasApplied(t *testing.T) {
	for name, cfg := range configs() {
		t.Run(name, func(t *testing.T) {
			ns := netnstest.New(t)
			before := dump(t, ns)
			if differs := check(t, ns, cfg); len(differs) == 0 {
				t.Error("an empty namespace passes the check")
			}
			for range 2 {
				apply(t, ns, cfg)
				if differs := check(t, ns, cfg); len(differs) > 0 {
					t.Errorf("after Apply: %q", differs)
				}
			}
			if err := Remove(ns); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, dump(t, ns)); diff != "" {
				t.Errorf("not restored:\n%s", diff)
			}
			if err := Remove(ns); err != nil {
				t.Errorf("removing from a clean namespace: %v", err)
			}
		})
	}
}

func TestEveryConfigBecomesEveryOther(t *testing.T) {
	ns := netnstest.New(t)
	before := dump(t, ns)
	for from, a := range configs() {
		for to, b := range configs() {
			apply(t, ns, a)
			apply(t, ns, b)
			if differs := check(t, ns, b); len(differs) > 0 {
				t.Errorf("from %s to %s: %q", from, to, differs)
			}
		}
	}
	if err := Remove(ns); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, dump(t, ns)); diff != "" {
		t.Errorf("not restored:\n%s", diff)
	}
}

func apply(t *testing.T, ns *netns.NS, cfg Config) {
	t.Helper()
	if err := Apply(ns, cfg); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, ns *netns.NS, cfg Config) []string {
	t.Helper()
	differs, err := Check(ns, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return differs
}

func dump(t *testing.T, ns *netns.NS) string {
	t.Helper()
	s, err := Dump(ns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestNoRoomForASocket: a process that has no file descriptor left for a socket in a pod
// gets an error.
func TestNoRoomForASocket(t *testing.T) {
	pod, _ := netnstest.Link(t)
	apply(t, pod, Config{})
	var free [2]int // the namespace to come back to takes the first, and the socket would take the second
	for i := range free {
		fd, err := unix.Dup(0)
		if err != nil {
			t.Fatal(err)
		}
		free[i] = fd
	}
	for _, fd := range free {
		_ = unix.Close(fd)
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free[1]), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := dialNetfilter(pod)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("error %v", err)
	}
}
