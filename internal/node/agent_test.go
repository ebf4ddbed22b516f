package node

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

func expect(t *testing.T, b *bubble, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, b.w.take()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

var enabled = map[string]string{"ambient.istio.io/redirection": "enabled"}

func withPod(b *bubble) {
	b.SetNamespace("default", ambient)
	b.Set(b.pod)
}

func TestLivePodJoinsListenersFirst(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		expect(t, b)
		b.Set(b.pod)
		synctest.Wait()
		expect(t, b)
		b.label(ambient)
		expect(t, b, "served", "rules capture", `announced "enabled"`)
		b.heard()
		sleep(3 * DefaultResync)
		expect(t, b)
	})
}

func TestLivePodWaitsForAProxyInPlaintext(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.connected = false
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		expect(t, b, `announced "pending"`)
		b.heard()
		sleep(10 * time.Second)
		expect(t, b)
		b.w.set(func() { b.w.connected = true })
		b.ProxiesChanged()
		synctest.Wait()
		expect(t, b, "served", "rules capture", `announced "enabled"`)
	})
}

func TestLivePodLeavesRulesFirst(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.take()
		b.w.set(func() { b.w.connections = 3 })
		b.label(map[string]string{})
		expect(t, b, `announced ""`)
		b.heard()
		sleep(DefaultSettle)
		expect(t, b, "rules quiesce")
		sleep(2 * time.Second)
		expect(t, b)
		b.w.set(func() { b.w.connections = 0 })
		sleep(drainPoll)
		expect(t, b, "no longer served", "rules removed")
		sleep(3 * DefaultResync)
		expect(t, b)
		if b.states["uid"].ns != nil {
			t.Error("the namespace is held open")
		}
	})
}

func TestDrainEnds(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.set(func() { b.w.connections = 1 })
		b.label(map[string]string{})
		b.heard()
		b.w.take()
		sleep(DefaultSettle + DefaultDrain + drainPoll)
		expect(t, b, "rules quiesce", "no longer served", "rules removed")
	})
}

func TestPodComesBackWhileLeaving(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.set(func() { b.w.connections = 1 })
		b.label(map[string]string{})
		sleep(DefaultSettle + time.Second)
		b.heard()
		b.w.take()
		b.label(ambient)
		expect(t, b, "rules capture", `announced "enabled"`)
		b.heard()
		sleep(time.Minute)
		expect(t, b)
	})
}

// A pod that looks enrolled and is not, as after a reboot of the node: no
// moment in plaintext, also when there is no proxy.
func TestAnnouncedPodWithoutRulesFailsClosed(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.connected = false
		b.pod.Annotations = enabled
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		expect(t, b, "rules capture")
		b.w.set(func() { b.w.connected = true })
		b.ProxiesChanged()
		synctest.Wait()
		expect(t, b, "served")
	})
}

func TestRulesThatWereTouchedAreRepaired(t *testing.T) {
	inBubble(t, withPod, func(t *testing.T, b *bubble) {
		b.heard()
		b.w.take()
		b.w.set(func() { b.w.rules = "broken" })
		sleep(DefaultResync)
		expect(t, b, "rules capture")
	})
}

func TestRestartFindsWhatWasDone(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.rules = "capture"
		b.pod.Annotations = enabled
		withPod(b)
		lost := b.pod
		lost.UID, lost.Name = "lost", "lost"
		b.Set(lost)
	}, func(t *testing.T, b *bubble) {
		b.w.set(func() {
			if b.w.listed["uid"] != b.ns.ID() || !b.w.listedKept["lost"] {
				t.Errorf("the first list has %v and keeps %v", b.w.listed, b.w.listedKept)
			}
		})
		expect(t, b, "served")
	})
}

// The agent was away while the label was taken off.
func TestRestartFinishesWhatAFormerAgentDidNot(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.rules = "quiesce"
		b.w.served["uid"] = b.ns.ID()
		b.pod.Annotations = enabled
		b.Set(b.pod)
	}, func(t *testing.T, b *bubble) {
		expect(t, b, `announced ""`)
		b.heard()
		sleep(DefaultSettle)
		expect(t, b, "rules quiesce", "no longer served", "rules removed")
	})
}

func TestPodThatEndsIsForgotten(t *testing.T) {
	for name, end := range map[string]func(b *bubble){
		"deleted":  func(b *bubble) { b.Delete("uid") },
		"terminal": func(b *bubble) { b.pod.Terminal = true; b.Set(b.pod) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, withPod, func(t *testing.T, b *bubble) {
				b.heard()
				b.w.take()
				end(b)
				synctest.Wait()
				expect(t, b, "no longer served", `announced ""`)
			})
		})
	}
}

func TestForeignNamespacesAreRefused(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.pod.IPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		sleep(time.Second)
		expect(t, b)
		err := b.AddNew(context.Background(), newPod("/proc/self/ns/net", "web"))
		if err == nil || !strings.Contains(err.Error(), "host") {
			t.Errorf("the host's namespace: %v", err)
		}
		err = b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", "192.0.2.7"))
		if err == nil || !strings.Contains(err.Error(), "another pod's") {
			t.Errorf("another pod's namespace: %v", err)
		}
		expect(t, b)
	})
}

func TestHostNetworkIsNeverTouched(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.rules = "capture" // whoever it belongs to
		b.pod.HostNetwork = true
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		sleep(2 * DefaultResync)
		expect(t, b)
	})
}

func newPod(netns, name string, ips ...string) NewPod {
	n := NewPod{Netns: netns, PodName: name, PodNamespace: "default"}
	for _, ip := range ips {
		n.IPs = append(n.IPs, struct{ Address Address }{Address{netip.MustParseAddr(ip)}})
	}
	return n
}

func TestNewPodIsClosedBeforeItStarts(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.connected = false
		b.pod.IPs = nil
		delete(b.w.found, "uid")
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		expect(t, b)
		add := func() error {
			return b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String()))
		}
		if err := add(); err == nil || !strings.Contains(err.Error(), "ztunnel pod of this node") {
			t.Errorf("a pod that starts without a proxy: %v", err)
		}
		synctest.Wait()
		expect(t, b, "rules capture", `announced "pending"`)
		b.w.set(func() { b.w.connected = true })
		if err := add(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		expect(t, b, "served", `announced "enabled"`)
		b.heard()
		expect(t, b)
	})
}

func TestNewPodOutsideTheMeshStarts(t *testing.T) {
	inBubble(t, func(b *bubble) { b.Set(b.pod) }, func(t *testing.T, b *bubble) {
		b.w.take()
		if err := b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String())); err != nil {
			t.Error(err)
		}
		expect(t, b)
	})
}

func TestNewPodIsWaitedFor(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bubble) {
		b.w.take()
		b.SetNamespace("default", ambient)
		done := make(chan error, 1)
		go func() {
			done <- b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String()))
		}()
		time.Sleep(podPatience / 2)
		b.pod.IPs = nil
		b.Set(b.pod)
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// The news of the pod and the plugin may each have announced it.
		if diff := cmp.Diff([]string{"rules capture", "served", `announced "enabled"`}, slices.Compact(b.w.take())); diff != "" {
			t.Error(diff)
		}
		if err := b.AddNew(context.Background(), newPod(fdPath(b.ns), "unknown")); err == nil || !strings.Contains(err.Error(), "not known") {
			t.Errorf("a pod nobody knows: %v", err)
		}
	})
}

func TestFailuresAreTriedAgain(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.kernelErr = errBroken
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		sleep(time.Minute)
		expect(t, b)
		b.w.set(func() { b.w.kernelErr = nil })
		sleep(lastRetry)
		expect(t, b, "served", "rules capture", `announced "enabled"`)
	})
}

// Nobody may be told for as long as the API server is gone: that is no reason
// to keep a pod from starting that is captured and served.
func TestNewPodDoesNotWaitForItsAnnouncement(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.mute = true
		b.pod.IPs = nil
		delete(b.w.found, "uid")
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		if err := b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String())); err != nil {
			t.Error(err)
		}
		expect(t, b, "rules capture", "served")
		b.w.set(func() { b.w.mute = false })
		sleep(lastRetry)
		expect(t, b, `announced "enabled"`)
	})
}

// A StatefulSet's new pod has the name of the old one, of which the agent may
// still believe that it is there.
func TestNewPodIsNotTakenForItsPredecessor(t *testing.T) {
	inBubble(t, func(b *bubble) { b.Set(b.pod) }, func(t *testing.T, b *bubble) {
		add := func(uid string) error {
			n := newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String())
			n.PodUID = uid
			return b.AddNew(context.Background(), n)
		}
		if err := add("uid"); err != nil {
			t.Errorf("the pod itself: %v", err)
		}
		if err := add("successor"); err == nil || !strings.Contains(err.Error(), "not known") {
			t.Errorf("its successor: %v", err)
		}
		static := b.pod
		static.UID, static.Name = "mirror", "static"
		static.StaticUID = "f00d"
		b.Set(static)
		n := newPod(fdPath(b.ns), "static", netnstest.PodIPv4.String())
		n.PodUID = "f00d"
		if err := b.AddNew(context.Background(), n); err != nil {
			t.Errorf("a static pod: %v", err)
		}
	})
}

func TestNewPodWaitsForItsNamespace(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.cfg.NamespacesListed = true
		b.pod.IPs = nil
		b.Set(b.pod)
	}, func(t *testing.T, b *bubble) {
		add := func() error {
			return b.AddNew(context.Background(), newPod(fdPath(b.ns), "web", netnstest.PodIPv4.String()))
		}
		if err := add(); err == nil || !strings.Contains(err.Error(), "namespace default is not known") {
			t.Errorf("without news of the namespace: %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- add() }()
		synctest.Wait()
		b.SetNamespace("default", ambient)
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if events := b.w.take(); !slices.Contains(events, "served") {
			t.Errorf("the pod starts with %q", events)
		}
	})
}

// A node on which nothing can be enrolled is no reason to keep the others from
// starting.
func TestBeforeRunOnlyPodsOfTheMeshAreHeld(t *testing.T) {
	ns, _ := netnstest.Link(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		a, err := New(Config{Policy: Policy{Selectors: DefaultSelectors()}, Proxies: w, Resolver: w, Annotator: w, Kernel: w, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		a.Hold("this node does not redirect")
		a.SetNamespace("default", map[string]string{})
		a.Set(Pod{UID: "1", Name: "in", Namespace: "default", Labels: ambient})
		a.Set(Pod{UID: "2", Name: "out", Namespace: "default"})
		add := func(name string) error { return a.AddNew(context.Background(), newPod(fdPath(ns), name)) }
		if err := add("out"); err == nil || !strings.Contains(err.Error(), "not heard") {
			t.Errorf("before everything is known: %v", err)
		}
		a.Synced()
		if err := add("out"); err != nil {
			t.Errorf("a pod outside of the mesh: %v", err)
		}
		began := time.Now()
		if err := add("in"); err == nil || err.Error() != "this node does not redirect" {
			t.Errorf("a pod of the mesh: %v", err)
		}
		if took := time.Since(began); took >= 5*time.Second {
			t.Errorf("the answer comes after %s, when no plugin waits any more", took)
		}
	})
}

func TestOwnersAreTold(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.w.connected = false
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		sleep(time.Minute) // once, however often it is tried
		b.w.set(func() { b.w.connected = true })
		b.ProxiesChanged()
		synctest.Wait()
		b.w.mu.Lock()
		defer b.w.mu.Unlock()
		want := []Notice{
			{Warning: true, Reason: ReasonWaiting, Message: "cannot enrol the pod, and goes on trying: " +
				"no ztunnel is connected to the node agent: see whether the ztunnel pod of this node runs and is ready"},
			{Reason: ReasonEnrolled, Message: "the pod is in the mesh now: its traffic is captured and served"},
		}
		if diff := cmp.Diff(want, b.w.told); diff != "" {
			t.Error(diff)
		}
	})
}

// The addresses that a node probes from are its own, and change.
func TestProbeSourcesFollowTheNode(t *testing.T) {
	sources := []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}
	inBubble(t, func(b *bubble) {
		b.cfg.ProbeSources = func() []netip.Prefix { return sources }
		b.pod.ProbePorts = []uint16{8080}
		withPod(b)
	}, func(t *testing.T, b *bubble) {
		b.w.mu.Lock()
		got := b.w.applied.Probes
		b.w.mu.Unlock()
		want := []nft.Probe{{Source: sources[0], Ports: []uint16{8080}, Host: true}}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		noPorts := b.pod
		noPorts.ProbePorts = nil
		if got := b.redirection(noPorts).Probes; len(got) > 0 {
			t.Errorf("a pod without probes is open to %v", got)
		}
	})
}

// The agent is a pod of its node, too.
func TestAgentsOwnPodIsLeftAlone(t *testing.T) {
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	inBubble(t, func(b *bubble) {
		b.w.found["own"] = own
		b.Set(Pod{UID: "own", Name: "ambit-cni-x", Namespace: "istio-system", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	}, func(t *testing.T, b *bubble) {
		sleep(time.Minute)
		expect(t, b)
		b.w.mu.Lock()
		defer b.w.mu.Unlock()
		if len(b.w.told) > 0 {
			t.Errorf("its owners are told %+v", b.w.told)
		}
	})
}
