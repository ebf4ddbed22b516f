// Package datagrams counts the UDP datagrams of enrolled pods, which the mesh does not carry.
package datagrams

import (
	"iter"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Counts are datagrams of all sockets in a network namespace, in both families, since the
// namespace was made. Those over loopback count on both sides.
type Counts struct{ Sent, Received uint64 }

// Parse adds up the counters of /proc/net/snmp and /proc/net/snmp6 (proc_net(5), RFC 4113). A
// text without them, as that of a kernel without IPv6, counts nothing.
func Parse(snmp, snmp6 string) (c Counts) {
	var names []string
	for line := range strings.Lines(snmp) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] != "Udp:":
		case names == nil:
			names = f
		default:
			for i := range min(len(f), len(names)) {
				c.add(names[i], f[i])
			}
			names = nil
		}
	}
	for line := range strings.Lines(snmp6) {
		if f := strings.Fields(line); len(f) == 2 {
			if name, is := strings.CutPrefix(f[0], "Udp6"); is {
				c.add(name, f[1])
			}
		}
	}
	return c
}

func (c *Counts) add(name, value string) {
	n, err := strconv.ParseUint(value, 10, 64)
	switch {
	case err != nil:
	case name == "OutDatagrams":
		c.Sent += n
	case name == "InDatagrams":
		c.Received += n
	}
}

// In returns the counts of a namespace.
func In(ns *netns.NS) (c Counts, err error) {
	err = ns.Do(func() error {
		snmp, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		snmp6, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil && !os.IsNotExist(err) { // there is none without IPv6
			return err
		}
		c = Parse(string(snmp), string(snmp6))
		return nil
	})
	return c, err
}

// Pod is an enrolled pod with what was counted in it.
type Pod struct {
	Namespace, Name string
	Counts
}

// Collector has the counts of pods as a metric. They are read when it is collected.
type Collector struct{ Pods func() iter.Seq[Pod] }

var desc = prometheus.NewDesc("ambit_cni_pod_udp_datagrams_total",
	"UDP datagrams of enrolled pods, which the mesh does not carry; look-ups and loopback are among them (unstable).",
	[]string{"namespace", "pod", "direction"}, nil)

// Describe implements prometheus.Collector.
func (c Collector) Describe(ch chan<- *prometheus.Desc) { ch <- desc }

// Collect implements prometheus.Collector.
func (c Collector) Collect(ch chan<- prometheus.Metric) {
	type key struct{ namespace, name string }
	all := map[key]Counts{} // a pod and its successor can have one name
	for p := range c.Pods() {
		sum := all[key{p.Namespace, p.Name}]
		all[key{p.Namespace, p.Name}] = Counts{sum.Sent + p.Sent, sum.Received + p.Received}
	}
	for k, n := range all {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.Sent), k.namespace, k.name, "sent")
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.Received), k.namespace, k.name, "received")
	}
}
