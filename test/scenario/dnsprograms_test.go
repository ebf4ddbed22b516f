package scenario

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestDNSPrograms: real resolvers get the mesh's names and those of outside: glibc's by
// getent and by Python, c-ares by Node, and Go's.
func TestDNSPrograms(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	nameServerIn(world, "street", "tower")
	programs := map[string][]string{
		"getent": {"getent", "ahosts", "NAME"},
		"Python": {"/usr/bin/env", "python3", "-c", `import socket; print({a[4][0] for a in socket.getaddrinfo("NAME", 80)})`},
		"Node": {"node", "-e", `const r = new (require("dns").promises.Resolver)();
Promise.all([r.resolve4("NAME"), r.resolve6("NAME")]).then(a => console.log(a.flat()))`},
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		resolv := fmt.Sprintf("nameserver %s\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", w.Pod("street", "tower", v6))
		w.MustRun(looker, "/bin/sh", "-c", "printf '"+resolv+"' > /etc/resolv.conf")
		for program, argv := range programs {
			for name, want := range map[string][]string{
				"ledger.example":   {"240.240.7.1", "2001:2::701"},
				"www.outside.test": {"192.0.2.9", "2001:db8::9"},
			} {
				command := slices.Clone(argv)
				for i := range command {
					command[i] = strings.ReplaceAll(command[i], "NAME", name)
				}
				out := w.MustRun(looker, command...)
				for _, a := range want {
					if !strings.Contains(out, a) {
						t.Errorf("%s does not find %s of %s: %s", program, a, name, out)
					}
				}
			}
		}
		// Go's resolver, and a request through the mesh by name alone.
		out := w.MustRun(looker, rig.Bin("echo"), "get", "-url", "http://ledger.example/")
		if !strings.HasPrefix(out, "web ") {
			t.Errorf("a request by name: %s", out)
		}
	})
}

// TestDNSSwitch: a namespace's label and a pod's annotation turn it on and off, while the
// pods run.
func TestDNSSwitch(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	nameServerIn(world, "street", "tower")
	namespace := func(label string) string {
		return strings.Replace(rig.NamespaceObject("shop", true), "istio.io/dataplane-mode: ambient", "istio.io/dataplane-mode: ambient"+label, 1)
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		becomes := func(from lab.Where, want int) {
			t.Helper()
			w.Eventually(fmt.Sprintf("%s is answered with code %d", from, want), func() error {
				m, err := look(w, from, at, "udp", ask("ledger.example", dns.TypeA))
				if err == nil && m.Rcode != want {
					err = fmt.Errorf("code %d", m.Rcode)
				}
				return err
			})
		}
		becomes(far, dns.RcodeNameError)
		becomes(looker, dns.RcodeSuccess)
		w.MustApply(namespace(`, ambient.istio.io/dns-capture: "true"`))
		becomes(far, dns.RcodeSuccess)
		w.MustApply(namespace(`, ambient.istio.io/dns-capture: "false"`))
		becomes(far, dns.RcodeNameError)
		becomes(looker, dns.RcodeSuccess) // its annotation comes first
		w.MustApply(namespace(""))
	})
}

// TestDNSOnDemand: a proxy that follows only what its pods meet asks the control plane for
// names as well.
func TestDNSOnDemand(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named, Env: map[string][]string{"ztunnel": {"XDS_ON_DEMAND=true"}}})
	nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		for name, want := range map[string]string{
			"ledger.example":                        "240.240.7.1",
			"web.shop.svc.cluster.local":            w.Service("shop", "web", false).String(),
			"web.peers.shop.svc.cluster.local":      w.Pod("shop", "web", false).String(),
			"ledger.example.shop.svc.cluster.local": "240.240.7.1",
			"www.outside.test":                      "192.0.2.9",
		} {
			for _, network := range []string{"udp", "tcp"} {
				m, err := look(w, looker, at, network, ask(name, dns.TypeA))
				if err != nil || !slices.Contains(found(m), want) {
					t.Errorf("%s over %s: %v, %v", name, network, m, err)
				}
			}
		}
	})
}

// TestDNSHandover: look-ups are answered while one generation of the proxy takes over from
// the other.
func TestDNSHandover(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	nameServerIn(world, "street", "tower")
	at := world.Pod("street", "tower", false)
	var stop atomic.Bool
	var n, lost atomic.Int64
	done := make(chan struct{})
	for _, name := range []string{"ledger.example", "www.outside.test"} {
		go func() {
			defer func() { done <- struct{}{} }()
			for !stop.Load() {
				m, err := look(world, looker, at, "udp", ask(name, dns.TypeA))
				if n.Add(1); err != nil || len(m.Answer) != 1 {
					lost.Add(1)
					t.Logf("%s: %v, %v", name, m, err)
				}
			}
		}()
	}
	for range 2 {
		if err := world.Restart(t.Context(), "ztunnel/node2", lab.RestartGraceful); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	for range 2 {
		<-done
	}
	if lost.Load() > 0 {
		t.Errorf("%d of %d look-ups got no answer", lost.Load(), n.Load())
	}
}
