package describe

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/admin"
)

// traffic adds the rules and routes that a node proxy has for the service. A service with a
// waypoint is the waypoint's business.
func (r *serviceReport) traffic(t *admin.Traffic) {
	if t == nil || r.Hostname == "" {
		return
	}
	key := r.Namespace + "/" + r.Hostname
	clients := func(list ...string) string {
		if text := strings.Join(list, ", "); text != "" {
			return ", for clients of " + text
		}
		return ""
	}
	for _, route := range t.Routes {
		if route.Service == key {
			names := ""
			if len(route.Names) > 0 {
				names = ", for TLS to " + strings.Join(route.Names, ", ")
			}
			r.Traffic = append(r.Traffic, fmt.Sprintf("port %d: %s%s%s: %s", route.Port, route.Object, names, clients(route.Clients), strings.Join(route.Backends, ", ")))
		}
	}
	for _, l := range t.Limits {
		if l.Namespace == r.Namespace && slices.Contains(l.Hosts, r.Hostname) {
			r.Traffic = append(r.Traffic, fmt.Sprintf("%s: %s; allowed: %d, refused: %d", l.Object, l.Settings, l.Allowed, l.Refused))
		}
	}
	for _, rule := range t.Rules {
		seen := clients(rule.Clients...)
		if rule.Own {
			seen = ", for clients of its namespace"
		}
		met := false
		for _, g := range rule.Groups {
			if g.Service == key {
				met = true
				r.Traffic = append(r.Traffic, fmt.Sprintf("port %d: %s, for clients of %s: %s; open: %d, refused: %d, endpoints ejected: %d",
					g.Port, rule.Object, g.Clients, g.Settings, g.Connections, g.Refused, len(g.Ejected)))
			}
		}
		if !met && rule.Host == r.Hostname {
			r.Traffic = append(r.Traffic, fmt.Sprintf("%s%s: %s", rule.Object, seen, rule.Settings))
		}
	}
}
