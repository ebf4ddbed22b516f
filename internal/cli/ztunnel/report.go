package ztunnel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// formatPolicy prints the objects that allow what is reported.
const formatPolicy = "policy"

var reportColumns = []string{"NAMESPACE", "POD NAME", "HOST", "ADDRESS", "PORT", "DECISION", "COUNT"}

// called is what a pod has called outside of the mesh.
type called struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	admin.Call
}

// Egress returns `ambit egress`.
func Egress(a *session.Session) *cobra.Command {
	z := &ztunnelConfig{Session: a}
	pod := ""
	cmd := &cobra.Command{Use: "egress", Short: "Show and allow what pods call outside of the mesh"}
	report := &cobra.Command{
		Use:   "report",
		Short: "List what pods have called outside of the mesh, or write the policy that allows it",
		Long: `Lists what the pods of the mesh have called outside of it, as their node proxies have
counted it: pods whose outbound traffic policy is DRY_RUN or REGISTRY_ONLY, and pods that
an EgressPolicy selects. The name is that of a look-up which led to the address, where
look-ups are captured.

With -o policy it writes an EgressPolicy for each namespace that allows exactly this.`,
		Example: `  ambit egress report -n shop
  ambit egress report -n shop -o policy > policy.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch z.output {
			case session.FormatTable, session.FormatShort, session.FormatJSON, session.FormatYAML, formatPolicy:
			default:
				return fmt.Errorf("output format %q: there are table, json, yaml and policy", z.output)
			}
			list, others, err := z.calls(cmd, pod)
			if err != nil {
				return err
			}
			return z.printCalls(list, others)
		},
	}
	a.LabFlags(cmd, "lab")
	f := report.Flags()
	z.AddFlags(f)
	z.CompleteFlags(report)
	f.StringVar(&pod, "pod", "", "only what one pod has called")
	f.StringVar(&z.node, "node", "", "only pods of one node")
	f.StringVarP(&z.output, "output", "o", session.FormatTable, "output format: table, json, yaml or policy")
	f.IntVar(&z.port, "proxy-admin-port", wellknown.PortAdmin, "port of ztunnel's admin endpoint, in a cluster")
	_ = report.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{session.FormatTable, session.FormatJSON, session.FormatYAML, formatPolicy}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(report)
	return cmd
}

// calls asks all proxies. others counts connections that a proxy had no room to record.
func (z *ztunnelConfig) calls(cmd *cobra.Command, pod string) (list []called, others uint64, err error) {
	proxies, err := z.proxies(cmd, "")
	if err != nil {
		return nil, 0, err
	}
	for _, p := range proxies {
		b, err := p.ask(cmd.Context(), http.MethodGet, "/config_dump")
		if err != nil {
			return nil, 0, err
		}
		d, err := dump.Parse(b)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", p.name, err)
		}
		for _, s := range d.WorkloadState {
			info, e := s.V.Info, s.V.Egress
			if e == nil || z.Namespace != "" && info.Namespace != z.Namespace || pod != "" && info.Name != pod {
				continue
			}
			others += e.OtherCalls
			for _, c := range e.Calls {
				list = append(list, called{info.Namespace, info.Name, c})
			}
		}
	}
	slices.SortFunc(list, func(a, b called) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod), strings.Compare(a.Host, b.Host),
			strings.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), strings.Compare(a.Decision, b.Decision))
	})
	return list, others, nil
}

func (z *ztunnelConfig) printCalls(list []called, others uint64) error {
	switch z.output {
	case formatPolicy:
		text, err := policies(list)
		if err != nil {
			return err
		}
		if others > 0 {
			text += fmt.Sprintf("# %d connections are not in it: the proxies had no room to record where they went.\n", others)
		}
		return z.Printf("%s", printer.Block(text))
	case session.FormatJSON, session.FormatYAML:
		if list == nil {
			list = []called{}
		}
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, c := range list {
		rows = append(rows, []string{
			c.Namespace, c.Pod, cmp.Or(c.Host, "-"), cmp.Or(c.Address, "-"), strconv.Itoa(int(c.Port)), c.Decision, strconv.FormatUint(c.Count, 10),
		})
	}
	if err := z.Table(session.Narrow, reportColumns, rows); err != nil || others == 0 {
		return err
	}
	return z.Printf("%d more connections: the proxies had no room to record where they went\n", others)
}

// policies writes an EgressPolicy for each namespace, which allows what its pods have called
// and nothing else.
func policies(list []called) (string, error) {
	entries := map[string]map[string]map[uint16]bool{} // ports, by namespace and destination
	for _, c := range list {
		var to string
		if _, err := egress.ParseHost(c.Host); err == nil {
			to = "hosts: [" + strconv.Quote(c.Host) + "]"
		} else if a, err := netip.ParseAddr(c.Address); err == nil {
			to = "cidrs: [" + strconv.Quote(a.String()) + "]"
		} else {
			return "", fmt.Errorf("%s/%s has called port %d of a host without a name: turn the capture of look-ups on (docs/dns.md)", c.Namespace, c.Pod, c.Port)
		}
		if entries[c.Namespace] == nil {
			entries[c.Namespace] = map[string]map[uint16]bool{}
		}
		if entries[c.Namespace][to] == nil {
			entries[c.Namespace][to] = map[uint16]bool{}
		}
		entries[c.Namespace][to][c.Port] = true
	}
	if len(entries) == 0 {
		return "", errors.New("nothing was recorded: set the outbound traffic policy DRY_RUN, or apply an EgressPolicy with mode DryRun, and wait (docs/egress.md)")
	}
	var b strings.Builder
	for _, ns := range slices.Sorted(maps.Keys(entries)) {
		b.WriteString(printer.Sprintf("---\napiVersion: ambit.mesh/v1alpha1\nkind: EgressPolicy\nmetadata: {name: report, namespace: %s}\nspec:\n  to:\n", ns))
		for _, to := range slices.Sorted(maps.Keys(entries[ns])) {
			ports := make([]string, 0, len(entries[ns][to]))
			for _, p := range slices.Sorted(maps.Keys(entries[ns][to])) {
				ports = append(ports, strconv.Itoa(int(p)))
			}
			fmt.Fprintf(&b, "  - {%s, ports: [%s]}\n", to, strings.Join(ports, ", "))
		}
	}
	return b.String(), nil
}
