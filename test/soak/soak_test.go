//go:build soak

package soak

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

var (
	length = flag.Duration("soak", 5*time.Minute, "how long the mesh runs, its warm-up included; at least twice the warm-up")
	report = flag.String("soak.report", "", "file that gets the table")
	rate   = flag.Int("soak.rate", 50, "new connections a second of each client")
)

// warmUp is how long nothing is sampled: a quarter of the whole, and at least this. The kernel
// tracks connections for two minutes after their end, and metrics and certificates of what is
// gone are kept for some time.
const warmUp = 150 * time.Second

// pace is how long a round takes, on a machine that has room. Certificates and tracked
// connections outlive their round for some time: how many there are follows from the pace,
// and must not follow from what else the machine does.
const pace = 2 * time.Second

func TestMain(m *testing.M) { rig.Main(m) }

const waypoint = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: behind}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
`

// mesh is a shop with a waypoint, and a pod whose look-ups are captured.
func mesh() string {
	looker := rig.PodObject("shop", "looker", "node2", "")
	return rig.Shop + waypoint + rig.ServerObject("shop", "behind", "node1", "app: behind") + strings.Replace(looker, "labels: {}}", `labels: {}, annotations: {`+wellknown.AnnotationDNSCapture+`: "true"}}`, 1)
}

// guests, entry and policy are what comes and goes. Each has a name of its own, so that what
// is kept of a former one adds up.
func guests(n int) string {
	return rig.ServerObject("shop", fmt.Sprintf("guest%d", n), []string{"node1", "node2"}[n%2], "app: web") +
		rig.ServerObject("shop", fmt.Sprintf("inner%d", n), []string{"node2", "node1"}[n%2], "app: behind")
}

func entry(n int) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: entry%[1]d, namespace: shop}
spec:
  hosts: [soak%[1]d.example]
  addresses: [240.240.%[2]d.%[3]d]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  resolution: STATIC
  workloadSelector: {labels: {app: web}}
`, n, n/250%250+1, n%250+1)
}

func policy(n int) string {
	return rig.PolicyObject("shop", fmt.Sprintf("deny%d", n), "DENY", fmt.Sprintf(`rules: [{to: [{operation: {ports: ["%d"]}}]}]`, 20000+n%1000))
}

// round changes everything once. Afterwards as much is there as before.
func round(w *rig.World, n int) {
	w.MustApply(guests(n) + entry(n) + policy(n))
	w.Eventually("the new name is answered", func() error {
		out, err := w.Run(w.T().Context(), lab.InPod("shop", "looker"), rig.Bin("echo"), "get", "-url", fmt.Sprintf("http://soak%d.example/", n))
		if err == nil && !strings.Contains(out, " answers ") {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})
	w.MustDelete("Pod", "shop", fmt.Sprintf("guest%d", n-1))
	w.MustDelete("Pod", "shop", fmt.Sprintf("inner%d", n-1))
	w.MustDelete("ServiceEntry", "shop", fmt.Sprintf("entry%d", n-1))
	w.MustDelete("AuthorizationPolicy", "shop", fmt.Sprintf("deny%d", n-1))
}

// sampler takes one sample of everything.
type sampler struct {
	w      *rig.World
	stays  map[string]*netns.NS // of pods and nodes that stay
	order  []string
	series map[string]*Series
}

func (s *sampler) add(name string, k Kind, v float64) {
	x := s.series[name]
	if x == nil {
		x = &Series{Name: name, Kind: k}
		s.series[name] = x
		s.order = append(s.order, name)
	}
	x.Samples = append(x.Samples, v)
}

// process samples a program by its metrics.
func (s *sampler) process(name string, in lab.Where, port int) {
	t := s.w.T()
	t.Helper()
	b, err := s.w.Lab.Get(context.WithoutCancel(t.Context()), in, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatalf("metrics of %s: %v", name, err)
	}
	for _, m := range []struct {
		metric, what string
		kind         Kind
	}{
		{"process_resident_memory_bytes", "MiB resident", Memory}, {"process_open_fds", "descriptors", Count}, {"go_goroutines", "goroutines", Count},
	} {
		all, err := traffic.Samples(string(b), m.metric)
		if err != nil || len(all) != 1 {
			t.Fatalf("%s of %s: %v, error %v", m.metric, name, all, err)
		}
		s.add(name+": "+m.what, m.kind, all[0].Value)
	}
	s.add(name+": series of metrics", Count, float64(strings.Count(string(b), "\n")))
}

func (s *sampler) sample() {
	t := s.w.T()
	t.Helper()
	st, err := s.w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.process("ambitd", lab.LAN, wellknown.PortControlMonitor)
	for _, p := range st.Pods {
		if strings.HasPrefix(p.Name, "waypoint-") {
			s.process("waypoint", lab.InPod("shop", p.Name), wellknown.PortMetrics)
		}
	}
	for _, n := range st.Nodes {
		s.process("ztunnel/"+n.Name, lab.InZtunnel(n.Name), wellknown.PortMetrics)
		s.process("ambit-cni/"+n.Name, lab.InNode(n.Name), wellknown.PortControlMonitor)
		d, err := s.w.Dump(n.Name)
		if err != nil {
			t.Fatal(err)
		}
		for what, n2 := range map[string]int{"workloads": len(d.Workloads), "services": len(d.Services), "policies": len(d.Policies), "certificates": len(d.Certificates), "pods": len(d.Pods)} {
			s.add("ztunnel/"+n.Name+": "+what, Count, float64(n2))
		}
	}
	s.add("lab: MiB resident", Memory, float64(st.RSS))
	for name, ns := range s.stays {
		text, err := nft.Dump(ns)
		if err != nil {
			t.Fatal(err)
		}
		s.add(name+": nftables, rules and routes", Count, float64(strings.Count(text, "\n")))
		flows, zones := tracked(t, ns)
		s.add(name+": tracked connections", Count, float64(flows))
		s.add(name+": conntrack zones", Count, float64(zones))
	}
}

// tracked counts the connections that the kernel tracks in a namespace, and their zones.
func tracked(t testing.TB, ns *netns.NS) (flows, zones int) {
	t.Helper()
	seen := map[uint16]bool{}
	err := ns.Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range all {
				flows++
				seen[f.Zone] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return flows, len(seen)
}

// TestSoak: a mesh under load, in which pods, accounts, names and policies come and go all the
// time, holds as much at the end as after its warm-up.
func TestSoak(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: mesh() + guests(0) + entry(0) + policy(0)})
	s := &sampler{w: w, stays: map[string]*netns.NS{}, series: map[string]*Series{}}
	for name, at := range map[string]lab.Where{"web": rig.Web, "far": rig.Far, "node1": lab.InNode("node1"), "node2": lab.InNode("node2")} {
		s.stays[name] = w.Netns(at)
	}
	v4 := func(service string) netip.AddrPort { return netip.AddrPortFrom(w.Service("shop", service, false), 80) }
	v6 := func(service string) netip.AddrPort { return netip.AddrPortFrom(w.Service("shop", service, true), 80) }
	w.MustGet(rig.Far, v4("front"))
	loads := map[string]*rig.Load{
		"new connections":                        w.StartConnections(rig.Far, v4("web"), *rate),
		"new connections of IPv6":                w.StartConnections(rig.Near, v6("web"), *rate),
		"new connections through the waypoint":   w.StartConnections(rig.Far, v4("front"), *rate),
		"connections that are kept, by waypoint": w.StartKept(rig.Far, v6("front"), *rate, "http1"),
	}
	begun := time.Now()
	n, samples := 0, 0
	next := time.NewTicker(pace)
	defer next.Stop()
	for time.Since(begun) < max(*length, 2*warmUp) || samples < fewest {
		n++
		round(w, n)
		for _, l := range loads {
			l.Seconds(1)
		}
		<-next.C
		if time.Since(begun) > max(*length/4, warmUp) {
			s.sample()
			samples++
		}
	}
	for name, l := range loads {
		// Pods of the churn end without a grace period: a request that they have may fail.
		r := l.Stop()
		t.Logf("%s: %d of %d failed: %v\n%s", name, r.Failed, r.Sent, r.Errors, strings.Join(r.First, "\n"))
		if r.OK == 0 || r.Failed > n*8 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	all := make([]Series, 0, len(s.order))
	for _, name := range s.order {
		all = append(all, *s.series[name])
	}
	text, bad := Table(all, samples)
	text = fmt.Sprintf("%d rounds in %s, %d samples\n%s\n", n, time.Since(begun).Round(time.Second), samples, text)
	t.Log(text)
	if *report != "" {
		if err := os.WriteFile(*report, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d series are not flat", bad, len(all))
	}
}
