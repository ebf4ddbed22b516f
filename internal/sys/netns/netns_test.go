package netns_test

import (
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
