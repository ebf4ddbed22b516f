package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

// parseString reads the four forms of a string: exact, prefix*, *suffix and *.
func parseString(s string) (*securitypb.StringMatch, error) {
	inner := strings.TrimSuffix(strings.TrimPrefix(s, "*"), "*")
	switch {
	case s == "*":
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Presence{Presence: &emptypb.Empty{}}}, nil
	case strings.Contains(inner, "*"), len(s)-len(inner) == 2:
		return nil, fmt.Errorf("%q: one * is allowed, at the beginning or the end", s)
	case strings.HasPrefix(s, "*"):
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Suffix{Suffix: inner}}, nil
	case strings.HasSuffix(s, "*"):
		return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Prefix{Prefix: inner}}, nil
	}
	return &securitypb.StringMatch{MatchType: &securitypb.StringMatch_Exact{Exact: s}}, nil
}

// principals adds the other names of the trust domain to a list.
func (c *compiler) principals(list []string, negative bool) []string {
	refuses := c.deny != negative
	return c.domains.Expand(list, refuses)
}

func parsePrincipal(s string) (*securitypb.StringMatch, error) {
	if strings.HasPrefix(s, "spiffe://") {
		return nil, fmt.Errorf("%q: principals are written without spiffe://", s)
	}
	return parseString(s)
}

func (c *compiler) parseAccount(s string) (*securitypb.ServiceAccountMatch, error) {
	ns, name, qualified := strings.Cut(s, "/")
	if !qualified {
		ns, name = c.namespace, s
	}
	if ns == "" || name == "" || strings.ContainsAny(name, "/*") || strings.Contains(ns, "*") {
		return nil, fmt.Errorf("%q is not <namespace>/<service account>", s)
	}
	return &securitypb.ServiceAccountMatch{Namespace: ns, ServiceAccount: name}, nil
}

func parsePort(s string) (uint32, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return uint32(p), nil
}

// parseBlock reads an address or a block. An IPv6 block that has all of IPv4
// inside, in its IPv6 form, is none: whether it is meant to match IPv4 clients
// cannot be known, and node proxies differ. ::/0 is every IPv6 client.
func parseBlock(s string) (*securitypb.Address, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		addr, aerr := netip.ParseAddr(s)
		if aerr != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an address nor a CIDR block", s)
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	if rbac.Straddles(prefix) {
		return nil, fmt.Errorf("%q is larger than IPv4 in its IPv6 form and has it inside; write 0.0.0.0/0 for IPv4 and ::/0 for IPv6", s)
	}
	prefix = prefix.Masked()
	return &securitypb.Address{Address: prefix.Addr().AsSlice(), Length: uint32(prefix.Bits())}, nil
}

// sortedKeys is for maps whose order must not show.
func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
