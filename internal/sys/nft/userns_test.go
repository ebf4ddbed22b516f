package nft

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// A pod with users of its own (hostUsers: false) has a network namespace that
// belongs to these: the agent, outside, has every right there nevertheless.
func TestNamespaceOfAnotherUserNamespace(t *testing.T) {
	pod := exec.Command("sleep", "60")
	pod.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}},
	}
	if err := pod.Start(); err != nil {
		t.Fatalf("a process with users of its own: %v", err)
	}
	t.Cleanup(func() { _ = pod.Process.Kill(); _ = pod.Wait() })
	ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pod.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	cfg := Config{IPv6: true, CaptureDNS: true}
	apply(t, ns, cfg)
	if differs := check(t, ns, cfg); len(differs) > 0 {
		t.Errorf("after Apply: %q", differs)
	}
	if err := Remove(ns); err != nil {
		t.Error(err)
	}
}
