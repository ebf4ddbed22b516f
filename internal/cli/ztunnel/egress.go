package ztunnel

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

var egressColumns = []string{"NAMESPACE", "POD NAME", "OUTBOUND TRAFFIC POLICY", "REFUSED", "REPORTED", "EGRESS POLICIES", "ALLOWED/REFUSED/REPORTED", "UDP"}

func (z *ztunnelConfig) egress() *cobra.Command {
	cmd := z.sub("egress", "Outbound traffic policies and EgressPolicies of the pods that the proxy serves", z.printEgress)
	cmd.Flags().StringVar(&z.namespace, "workload-namespace", "", "only those of a namespace")
	return cmd
}

// printEgress prints the policies of each pod, and what they did: the outbound traffic
// policy with connections to addresses in no registry, the EgressPolicies with all others to
// the outside of the mesh.
func (z *ztunnelConfig) printEgress(d *dump.Dump) error {
	list := slices.DeleteFunc(z.pods(d), func(p dump.Element[admin.Pod]) bool { return p.V.Egress == nil })
	if !z.table() {
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		s := p.V.Egress
		rows = append(rows, []string{
			p.V.Info.Namespace, p.V.Info.Name, s.Mode, strconv.FormatUint(s.Refused, 10), strconv.FormatUint(s.Reported, 10),
			session.OrNone(s.PolicyNames()), fmt.Sprintf("%d/%d/%d", s.PolicyAllowed, s.PolicyRefused, s.PolicyReported), cmp.Or(s.UDP, "Allowed"),
		})
	}
	return z.Table(session.Narrow, egressColumns, rows)
}
