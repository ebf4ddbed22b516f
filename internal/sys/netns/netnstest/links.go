package netnstest

import (
	"encoding/hex"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Numbers of an interface's attributes that count what passes (linux/if_link.h).
const (
	iflaStats64    = 23
	inet6Stats     = 3
	inet6Cache     = 5
	inet6ICMPStats = 6
)

// Attributes returns everything that the kernel has of the interfaces of a namespace,
// but counters: values by "interface/attribute".
func Attributes(t testing.TB, ns *netns.NS) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			info := nl.DeserializeIfInfomsg(m)
			attrs, err := nl.ParseRouteAttr(m[info.Len():])
			if err != nil {
				return err
			}
			name := fmt.Sprint(info.Index)
			all[name+"/header"] = fmt.Sprintf("%+v", *info)
			for _, a := range attrs {
				switch a.Attr.Type {
				case unix.IFLA_STATS, iflaStats64:
				case unix.IFLA_AF_SPEC:
					settings(all, name, a.Value)
				default:
					all[fmt.Sprintf("%s/%d", name, a.Attr.Type)] = hex.EncodeToString(a.Value)
				}
			}
		}
		return nil
	}))
	return all
}

// settings adds what a family of addresses has of an interface.
func settings(all map[string]string, name string, value []byte) {
	families, _ := nl.ParseRouteAttr(value)
	for _, f := range families {
		inner, _ := nl.ParseRouteAttr(f.Value)
		for _, a := range inner {
			if f.Attr.Type == unix.AF_INET6 && (a.Attr.Type == inet6Stats || a.Attr.Type == inet6ICMPStats || a.Attr.Type == inet6Cache) {
				continue
			}
			all[fmt.Sprintf("%s/af%d/%d", name, f.Attr.Type, a.Attr.Type)] = hex.EncodeToString(a.Value)
		}
	}
}

// WithoutIPv6 switches IPv6 off in a namespace, as a cluster without it does.
func WithoutIPv6(t testing.TB, ns *netns.NS) {
	t.Helper()
	must(t, ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0) }))
	with(t, ns, func(h *netlink.Handle) {
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		must(t, err)
		if len(addrs) > 0 {
			t.Fatalf("IPv6 is on: %v", addrs)
		}
	})
}
