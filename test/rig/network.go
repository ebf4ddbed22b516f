package rig

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft/nfttest"
)

// network describes where packets of a namespace may have been lost: neighbours that do
// not answer, rules that have matched, and the kernel's counters of what it dropped.
func network(ns *netns.NS) string {
	var b strings.Builder
	if err := ns.Do(func() error {
		neighbours(&b)
		dropped(&b)
		return nil
	}); err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, rule := range nfttest.Matched(ns) {
		fmt.Fprintln(&b, "rule of", rule)
	}
	return b.String()
}

func neighbours(b *strings.Builder) {
	const lost = netlink.NUD_FAILED | netlink.NUD_INCOMPLETE | netlink.NUD_PROBE
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.NeighList(0, family)
		if err != nil {
			fmt.Fprintln(b, "neighbours:", err)
		}
		for i := range all {
			if all[i].State&lost != 0 {
				fmt.Fprintf(b, "neighbour %s on interface %d: state %#x\n", all[i].IP, all[i].LinkIndex, all[i].State)
			}
		}
	}
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		addrs, _ := i.Addrs()
		fmt.Fprintf(b, "interface %d %s: %s %v\n", i.Index, i.Name, i.Flags, addrs)
	}
}

// dropped lists the counters of the kernel that name a loss and are not zero.
func dropped(b *strings.Builder) {
	losses := []string{"Discards", "NoRoutes", "Errors", "Drop", "Overflow", "Timeouts", "RetransSegs", "Retrans", "Unreach"}
	count := func(name, value string) {
		for _, l := range losses {
			if value != "0" && strings.Contains(name, l) {
				fmt.Fprintf(b, "%s %s\n", name, value)
				return
			}
		}
	}
	for _, file := range []string{"snmp", "netstat"} {
		text, _ := os.ReadFile("/proc/thread-self/net/" + file)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := 0; i+1 < len(lines); i += 2 { // names, then values
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < min(len(names), len(values)); j++ {
				count(names[0]+names[j], values[j])
			}
		}
	}
	text, _ := os.ReadFile("/proc/thread-self/net/snmp6")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 {
			count(f[0], f[1])
		}
	}
	tracked(b)
}

// tracked sums the counters of connection tracking over the processors.
func tracked(b *strings.Builder) {
	text, _ := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	names := strings.Fields(lines[0])
	sums := make([]uint64, len(names))
	for _, line := range lines[1:] {
		for i, f := range strings.Fields(line) {
			if v, err := strconv.ParseUint(f, 16, 64); err == nil && i < len(sums) {
				sums[i] += v
			}
		}
	}
	for i, sum := range sums {
		if sum > 0 && i > 0 { // the first one is how many connections there are
			fmt.Fprintf(b, "conntrack %s %d\n", names[i], sum)
		}
	}
}

// dumpNetwork prints what a failed test may have lost on its way.
func (w *World) dumpNetwork(s *lab.Status) {
	if s.Unprivileged {
		return // its namespaces cannot be entered
	}
	at := []lab.Where{lab.LAN}
	for _, n := range s.Nodes {
		at = append(at, lab.InNode(n.Name))
	}
	for i := range s.Pods {
		at = append(at, lab.InPod(s.Pods[i].Namespace, s.Pods[i].Name))
	}
	for _, where := range at {
		f, err := w.Lab.Netns(context.Background(), where)
		if err != nil {
			w.t.Logf("---- network of %s: %v", where, err)
			continue
		}
		ns, err := netns.FromFile(f)
		if err != nil {
			w.t.Logf("---- network of %s: %v", where, err)
			continue
		}
		w.t.Logf("---- network of %s\n%s", where, network(ns))
		_ = ns.Close()
	}
}
