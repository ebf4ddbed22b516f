package nft

import (
	"errors"
	"fmt"
	"net"
	"sort"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
)

// Replies of the pod's programs to connections that the proxy made under the
// client's address would leave the pod. They carry MarkReturn, and a rule sends
// what is marked so to a table in which every address is local.

// withRouting runs fn with a netlink handle in the namespace and with the
// families that policy routing is possible and wanted for.
func withRouting(ns *netns.NS, ipv6 bool, fn func(h *netlink.Handle, lo netlink.Link, families []int) error) error {
	var h *netlink.Handle
	err := ns.Do(func() error {
		var err error
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("opening route netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for the loopback interface: %w", err)
	}
	families := []int{unix.AF_INET}
	if ipv6 {
		addrs, err := h.AddrList(lo, unix.AF_INET6)
		if err != nil {
			return fmt.Errorf("listing loopback addresses: %w", err)
		}
		// Without ::1, IPv6 is switched off for the loopback interface, and the
		// kernel refuses routes over it.
		if len(addrs) > 0 {
			families = append(families, unix.AF_INET6)
		}
	}
	return fn(h, lo, families)
}

func returnRule(family int) *netlink.Rule {
	r := netlink.NewRule()
	mask := uint32(wellknown.MarkMask)
	r.Family, r.Priority, r.Table = family, wellknown.RulePriority, wellknown.RouteTable
	r.Mark, r.Mask = wellknown.MarkReturn, &mask
	return r
}

func returnRoute(lo netlink.Link, family int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{
		Family: family, LinkIndex: lo.Attrs().Index, Dst: all, Table: wellknown.RouteTable,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	}
}

func applyRouting(ns *netns.NS, cfg Config) error {
	return withRouting(ns, cfg.IPv6, func(h *netlink.Handle, lo netlink.Link, families []int) error {
		for _, f := range families {
			missing, err := missingRouting(h, f)
			if err != nil {
				return err
			}
			if missing.route {
				if err := h.RouteAdd(returnRoute(lo, f)); err != nil && !errors.Is(err, unix.EEXIST) {
					return fmt.Errorf("adding the local route of table %d: %w", wellknown.RouteTable, err)
				}
			}
			if missing.rule {
				if err := h.RuleAdd(returnRule(f)); err != nil && !errors.Is(err, unix.EEXIST) {
					return fmt.Errorf("adding rule %d: %w", wellknown.RulePriority, err)
				}
			}
		}
		return nil
	})
}

func removeRouting(ns *netns.NS) error {
	return withRouting(ns, true, func(h *netlink.Handle, lo netlink.Link, families []int) error {
		for _, f := range families {
			missing, err := missingRouting(h, f)
			if err != nil {
				return err
			}
			if !missing.rule {
				if err := h.RuleDel(returnRule(f)); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("deleting rule %d: %w", wellknown.RulePriority, err)
				}
			}
			if !missing.route {
				if err := h.RouteDel(returnRoute(lo, f)); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("deleting the local route of table %d: %w", wellknown.RouteTable, err)
				}
			}
		}
		return nil
	})
}

func checkRouting(ns *netns.NS, cfg Config) ([]string, error) {
	var differs []string
	err := withRouting(ns, cfg.IPv6, func(h *netlink.Handle, _ netlink.Link, families []int) error {
		for _, f := range families {
			missing, err := missingRouting(h, f)
			if err != nil {
				return err
			}
			name := "IPv4"
			if f == unix.AF_INET6 {
				name = "IPv6"
			}
			if missing.rule {
				differs = append(differs, fmt.Sprintf("%s routing rule %d is missing", name, wellknown.RulePriority))
			}
			if missing.route {
				differs = append(differs, fmt.Sprintf("%s local route of table %d is missing", name, wellknown.RouteTable))
			}
		}
		return nil
	})
	return differs, err
}

type missing struct{ rule, route bool }

func missingRouting(h *netlink.Handle, family int) (missing, error) {
	m := missing{rule: true, route: true}
	rules, err := h.RuleList(family)
	if err != nil {
		return m, fmt.Errorf("listing routing rules: %w", err)
	}
	for _, r := range rules {
		if r.Priority == wellknown.RulePriority && r.Table == wellknown.RouteTable &&
			r.Mark == wellknown.MarkReturn && r.Mask != nil && *r.Mask == wellknown.MarkMask {
			m.rule = false
		}
	}
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: wellknown.RouteTable}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return m, fmt.Errorf("listing routes of table %d: %w", wellknown.RouteTable, err)
	}
	for _, r := range routes {
		if r.Type == unix.RTN_LOCAL && isDefault(r.Dst) {
			m.route = false
		}
	}
	return m, nil
}

func isDefault(n *net.IPNet) bool {
	if n == nil {
		return true
	}
	ones, _ := n.Mask.Size()
	return ones == 0
}

func dumpRouting(ns *netns.NS) (string, error) {
	var lines []string
	err := withRouting(ns, true, func(h *netlink.Handle, _ netlink.Link, _ []int) error {
		for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := h.RuleList(f)
			if err != nil {
				return err
			}
			for _, r := range rules {
				mask := uint32(0)
				if r.Mask != nil {
					mask = *r.Mask
				}
				lines = append(lines, fmt.Sprintf("rule family %d %s mark %#x/%#x", f, r, r.Mark, mask))
			}
			routes, err := h.RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				lines = append(lines, fmt.Sprintf("route family %d type %d %s", f, r.Type, r))
			}
		}
		return nil
	})
	sort.Strings(lines)
	return strings.Join(lines, "\n") + "\n", err
}
