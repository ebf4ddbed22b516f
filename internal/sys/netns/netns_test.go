package netns_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

func TestNewIsAnotherNamespace(t *testing.T) {
	here, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	pod, peer := netnstest.Link(t)
	if pod.ID() == here.ID() || pod.ID() == peer.ID() {
		t.Error("namespaces are the same")
	}
	again, err := pod.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != pod.ID() || again.File().Fd() == pod.File().Fd() {
		t.Error("a duplicate is another namespace, or the same descriptor")
	}
	_ = again.Close()
	addrs, err := pod.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(addrs, netnstest.PodIPv4) || !slices.Contains(addrs, netnstest.PodIPv6) || len(addrs) != 2 {
		t.Errorf("addresses %v", addrs)
	}
	after, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = after.Close() }()
	if after.ID() != here.ID() {
		t.Error("the thread did not come home")
	}
}

func TestOtherFilesAreNoNamespaces(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := netns.FromFile(f); err == nil {
		t.Error("a device passes for a namespace")
	}
}

// TestCloseWhileInside: a call of Do that is under way when the namespace is closed returns
// to the own namespace. Later calls fail.
func TestCloseWhileInside(t *testing.T) {
	ns := netnstest.New(t)
	inside, closed, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- ns.Do(func() error {
			close(inside)
			<-closed
			return nil
		})
	}()
	<-inside
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	close(closed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := ns.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("entering it: %v", err)
	}
	if err := ns.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing it again: %v", err)
	}
}
