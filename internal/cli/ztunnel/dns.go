package ztunnel

import (
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

var dnsColumns = []string{"NAMESPACE", "POD NAME", "LOOK-UPS", "PASSED ON", "WAITING"}

func (z *ztunnelConfig) dns() *cobra.Command {
	cmd := z.sub("dns", "Look-ups of the pods that the proxy serves", z.printDNS)
	cmd.Flags().StringVar(&z.namespace, "workload-namespace", "", "only those of a namespace")
	return cmd
}

// printDNS prints what the pods have asked, and what of that was passed to their name
// servers.
func (z *ztunnelConfig) printDNS(d *dump.Dump) error {
	list := slices.DeleteFunc(z.pods(d), func(p dump.Element[admin.Pod]) bool { return p.V.DNS == nil })
	if !z.table() {
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		s := p.V.DNS
		rows = append(rows, []string{
			p.V.Info.Namespace, p.V.Info.Name, strconv.FormatUint(s.Requests, 10), strconv.FormatUint(s.UpstreamRequests, 10), strconv.FormatInt(s.Waiting, 10),
		})
	}
	return z.Table(session.Narrow, dnsColumns, rows)
}
