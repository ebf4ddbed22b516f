package ztunnel

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

var trafficColumns = []string{"OBJECT", "FOR", "CLIENTS", "CONNECTIONS", "REFUSED", "EJECTED", "SETTINGS"}

func (z *ztunnelConfig) traffic() *cobra.Command {
	return z.sub("traffic", "DestinationRules, TCPRoutes, TLSRoutes and RateLimits that the proxy honours, and what they limit and eject", z.printTraffic)
}

// printTraffic prints each rule, for each service whose connections it has met, and each
// route.
func (z *ztunnelConfig) printTraffic(d *dump.Dump) error {
	t := d.Traffic
	if t == nil {
		t = &admin.Traffic{Rules: []admin.TrafficRule{}, Routes: []admin.TrafficRoute{}}
	}
	if !z.table() {
		return z.Encode(z.output, t)
	}
	var rows [][]string
	for _, r := range t.Rules {
		clients := cmp.Or(strings.Join(r.Clients, ","), "all")
		if r.Own {
			clients = "its namespace"
		}
		for _, g := range r.Groups {
			rows = append(rows, []string{
				r.Object, fmt.Sprintf("%s:%d", dump.AfterSlash(g.Service), g.Port), g.Clients, strconv.FormatInt(g.Connections, 10),
				strconv.FormatUint(g.Refused, 10), strconv.Itoa(len(g.Ejected)), g.Settings,
			})
		}
		if len(r.Groups) == 0 {
			rows = append(rows, []string{r.Object, r.Host, clients, "0", "0", "0", r.Settings})
		}
	}
	for _, r := range t.Routes {
		to := fmt.Sprintf("%s:%d", dump.AfterSlash(r.Service), r.Port)
		if len(r.Names) > 0 {
			to += " (TLS to " + strings.Join(r.Names, ",") + ")"
		}
		rows = append(rows, []string{r.Object, to, cmp.Or(r.Clients, "all"), "", "", "", strings.Join(r.Backends, ", ")})
	}
	for _, l := range t.Limits {
		to := strings.Join(l.Hosts, ",")
		if n := len(l.Workloads); n > 0 {
			to = strconv.Itoa(n) + " pods"
		}
		rows = append(rows, []string{l.Object, to, "all", "", strconv.FormatUint(l.Refused, 10), "", fmt.Sprintf("%s; allowed: %d%s", l.Settings, l.Allowed, reported(&l))})
	}
	return z.Table(session.Narrow, trafficColumns, rows)
}

// reported describes what a dry run would have refused.
func reported(l *admin.RateLimit) string {
	if !l.DryRun {
		return ""
	}
	return fmt.Sprintf(", too many: %d", l.Reported)
}
