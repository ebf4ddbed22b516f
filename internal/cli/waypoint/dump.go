package waypoint

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// waypointDumps is /config_dump of a waypoint, as far as tables need it.
type waypointDumps struct {
	Routes      []dump.Element[admin.Route]             `json:"routes"`
	Backends    []dump.Element[admin.Backend]           `json:"backends"`
	Policies    []dump.Element[admin.RequestPolicy]     `json:"policies"`
	Connections []dump.Element[admin.GatewayConnection] `json:"connections"`
	Omitted     int                                     `json:"connectionsOmitted"`
}

// backends renders the backends of a rule, with their weights if there are several.
func backendsText(r *admin.Route) string {
	if r.Dropped != "" {
		return "left out: " + r.Dropped
	}
	var all []string
	for _, b := range r.Backends {
		s := cmp.Or(short(b.Name), "none")
		if len(r.Backends) > 1 {
			s = fmt.Sprintf("%d %s", b.Weight, s)
		}
		if b.Invalid != "" {
			s += " (not usable: " + b.Invalid + ")"
		}
		all = append(all, s)
	}
	return session.OrNone(strings.Join(all, ", "))
}

func settingsText(r *admin.Route) string {
	if r.Kind == "TLSRoute" || r.Kind == "TCPRoute" {
		return ""
	}
	all := []string{fmt.Sprintf("retries %d", r.Retries)}
	if t := r.Timeouts; t != nil && t.Request != "" {
		all = append(all, "timeout "+t.Request)
	}
	if t := r.Timeouts; t != nil && t.Try != "" {
		all = append(all, "try "+t.Try)
	}
	if r.Session != "" {
		all = append(all, "session by "+r.Session)
	}
	return strings.Join(append(all, r.Filters...), ", ")
}

func limitsText(l *admin.Limits) string {
	if l == nil {
		return "-"
	}
	var all []string
	for _, x := range []struct {
		name string
		n    uint32
	}{{"connections", l.Connections}, {"pending", l.Pending}, {"requests", l.Requests}} {
		if x.n > 0 {
			all = append(all, fmt.Sprintf("%s %d", x.name, x.n))
		}
	}
	return session.OrNone(strings.Join(all, ", "))
}

// short renders namespace/name.namespace.svc.domain:port as name.namespace:port, and
// leaves other names as they are.
func short(s string) string {
	ns, host, ok := strings.Cut(s, "/")
	if !ok {
		return s
	}
	if name, rest, ok := strings.Cut(host, "."+ns+".svc."); ok {
		port := ""
		if i := strings.IndexAny(rest, ": "); i >= 0 {
			port = rest[i:]
		}
		return name + "." + ns + port
	}
	return host
}

func shortAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = short(s)
	}
	return out
}
