package connect

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// Baggage describes a workload for the other side's telemetry. It is never
// proof of anything. Empty fields are unknown.
type Baggage struct {
	Cluster, Namespace string
	// WorkloadType is deployment, pod, job or cronjob.
	WorkloadType, Workload string
	Service, Version       string
	Region, Zone           string
}

// BaggageOf describes a workload.
func BaggageOf(w *workload.Workload) Baggage {
	return Baggage{
		Cluster: w.ClusterID, Namespace: w.Namespace, WorkloadType: w.WorkloadType, Workload: w.WorkloadName,
		Service: w.CanonicalName, Version: w.CanonicalRevision, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// String renders the header; empty fields are left out.
func (b Baggage) String() string {
	var s strings.Builder
	put := func(key, value string) {
		if value == "" {
			return
		}
		if s.Len() > 0 {
			s.WriteByte(',')
		}
		s.WriteString(key)
		s.WriteByte('=')
		s.WriteString(value)
	}
	kind := b.WorkloadType
	if kind == "" {
		kind = "pod"
	}
	put("k8s.cluster.name", b.Cluster)
	put("k8s.namespace.name", b.Namespace)
	put("k8s."+kind+".name", b.Workload)
	put("service.name", b.Service)
	put("service.version", b.Version)
	put("cloud.region", b.Region)
	put("cloud.availability_zone", b.Zone)
	return s.String()
}

// ParseBaggage reads the header. Members that are not understood are skipped,
// as the standard asks; values that could disturb a log or a metric are too.
// Only its length can be an error.
func ParseBaggage(s string) (Baggage, error) {
	var b Baggage
	if len(s) > maxBaggage {
		return b, fmt.Errorf("%w: baggage has more than %d bytes", ErrMalformed, maxBaggage)
	}
	for member := range strings.SplitSeq(s, ",") {
		member, _, _ = strings.Cut(member, ";") // properties
		key, value, ok := strings.Cut(member, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || !plainValue(value) {
			continue
		}
		switch key {
		case "k8s.cluster.name":
			b.Cluster = value
		case "k8s.namespace.name":
			b.Namespace = value
		case "k8s.deployment.name", "k8s.pod.name", "k8s.job.name", "k8s.cronjob.name":
			b.WorkloadType = key[len("k8s.") : len(key)-len(".name")]
			b.Workload = value
		case "service.name":
			b.Service = value
		case "service.version":
			b.Version = value
		case "cloud.region":
			b.Region = value
		case "cloud.availability_zone":
			b.Zone = value
		}
	}
	return b, nil
}

func plainValue(s string) bool {
	if len(s) > maxValue {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// Forwarded renders RFC 7239's header: who calls, and which service it called;
// host may be empty.
func Forwarded(src netip.AddrPort, host string) string {
	s := `for="` + src.String() + `"`
	if host != "" {
		s += ";host=" + host
	}
	return s
}

// ForwardedFor is Forwarded for the connections that a client's requests share: without a
// port.
func ForwardedFor(src netip.Addr, host string) string {
	s := `for="` + src.String() + `"`
	if src.Is6() {
		s = `for="[` + src.String() + `]"`
	}
	if host != "" {
		s += ";host=" + host
	}
	return s
}

// MaxHops is how many waypoints may send a connection on, one to the other. Routes that
// lead in a circle end there.
const MaxHops = 4

// Hops is how many waypoints have sent a connection on.
type Hops uint8

// String renders the header, empty for none.
func (h Hops) String() string {
	if h == 0 {
		return ""
	}
	return strconv.Itoa(int(h))
}

// ParseHops reads the header: a number from 1 without leading zeros, or nothing. A client
// that writes it itself can only shorten its own way: each waypoint adds to it.
func ParseHops(s string) (Hops, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%w: %s %.40q is no number from 1 to 255", ErrMalformed, HeaderHops, s)
	}
	return Hops(n), nil
}

// ParseForwarded reads the header's first element: the caller's address (zero when
// it is none, with port 0 when it has none), and the host, in lower case ("" when
// absent or not a host name). What does not follow RFC 7239 is an error.
func ParseForwarded(s string) (src netip.AddrPort, host string, err error) {
	if len(s) > maxForwarded {
		return src, "", fmt.Errorf("%w: forwarded has more than %d bytes", ErrMalformed, maxForwarded)
	}
	for s != "" {
		name, rest, ok := strings.Cut(s, "=")
		if !ok || !token(name) {
			return netip.AddrPort{}, "", fmt.Errorf("%w: forwarded has no name=value at %.40q", ErrMalformed, s)
		}
		var value string
		if value, s, ok = forwardedValue(rest); !ok {
			return netip.AddrPort{}, "", fmt.Errorf("%w: forwarded has a broken value at %.40q", ErrMalformed, rest)
		}
		switch strings.ToLower(name) {
		case "for":
			src = forwardedNode(value)
		case "host":
			host = hostOnly(value)
		}
		switch {
		case s == "" || s[0] == ',':
			return src, host, nil
		case s[0] != ';':
			return netip.AddrPort{}, "", fmt.Errorf("%w: forwarded has %.40q after a value", ErrMalformed, s)
		}
		if s = s[1:]; s == "" {
			return netip.AddrPort{}, "", fmt.Errorf("%w: forwarded ends in ';'", ErrMalformed)
		}
	}
	return src, host, nil
}

// forwardedNode reads a node of RFC 7239, 6. An obfuscated one is legal, and says nothing.
func forwardedNode(v string) netip.AddrPort {
	if a, err := netip.ParseAddrPort(v); err == nil && a.Addr().Zone() == "" {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	if inner, ok := strings.CutPrefix(v, "["); ok {
		v, ok = strings.CutSuffix(inner, "]")
		if !ok {
			return netip.AddrPort{}
		}
	}
	if a, err := netip.ParseAddr(v); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a.Unmap(), 0)
	}
	return netip.AddrPort{}
}

// hostOnly drops a port; what is not a host name becomes empty.
func hostOnly(v string) string {
	h, port, ok := strings.Cut(v, ":")
	if ok {
		if _, ok := parsePort(port); !ok {
			return ""
		}
	}
	if !validHost(h) {
		return ""
	}
	return strings.ToLower(h)
}

// forwardedValue takes a token or quoted string from the front of s.
func forwardedValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ";,")
		if i < 0 {
			i = len(s)
		}
		// Peers send host=name:port unquoted, which the grammar does not
		// allow but everybody understands.
		return s[:i], s[i:], token(strings.ReplaceAll(s[:i], ":", ""))
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s) && printable(s[i+1]):
			i++
			b.WriteByte(s[i])
		case c == '\\' || !printable(c):
			return "", "", false
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

func printable(c byte) bool { return c >= ' ' && c <= '~' }

func token(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}
