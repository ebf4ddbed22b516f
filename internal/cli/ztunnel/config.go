// Package ztunnel has `ambit ztunnel-config`, which shows the state of a node proxy, and
// `ambit proxy-status`.
package ztunnel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// ztunnelConfig is `ambit ztunnel-config`: where the dump comes from, which
// part of it counts, and how it is printed.
type ztunnelConfig struct {
	*session.Session
	session.Kube
	node, file, output string
	port               int
	withHeaders        bool

	namespace, ofNode, address, direction string
	raw                                   bool
	now                                   func() time.Time
}

// Columns are those of istioctl, so that scripts read both.
var (
	workloadColumns    = []string{"NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"}
	serviceColumns     = []string{"NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"}
	policyColumns      = []string{"NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"}
	connectionColumns  = []string{"WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"}
	certificateColumns = []string{"CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"}
)

// Config returns `ambit ztunnel-config`.
func Config(a *session.Session) *cobra.Command {
	z := &ztunnelConfig{Session: a, now: time.Now}
	cmd := &cobra.Command{
		Use:     "ztunnel-config",
		Aliases: []string{"zc"},
		Short:   "Show what a node's proxy knows and does",
		Long: `Shows what the proxy of a node (ztunnel) knows and does: the workloads and
services it can reach, the policies it enforces, the certificates it holds, the
connections it carries.

In a cluster it asks the ztunnel that is named, as POD or POD.NAMESPACE, or that
of --node, or else the first; in a lab that of --node, or else the first. log asks
all of them unless one is named. With -f it reads a config_dump from a file.`,
		Example: `  ambit ztunnel-config workload
  ambit ztunnel-config workload ztunnel-x7k2p --workload-namespace shop
  ambit ztunnel-config connections --node node2 -o json
  ambit ztunnel-config log --level info,access=debug
  curl -s localhost:15000/config_dump | ambit ztunnel-config certificate -f -`,
	}
	a.LabFlags(cmd, "lab")
	f := cmd.PersistentFlags()
	z.AddFlags(f)
	z.CompleteFlags(cmd)
	f.StringVar(&z.node, "node", "", "node whose proxy to ask (default: the first; log: all)")
	f.StringVarP(&z.file, "file", "f", "", "read a config_dump from a file instead (- is standard input)")
	f.StringVarP(&z.output, "output", "o", session.FormatShort, "output format: short (a table), json or yaml")
	f.IntVar(&z.port, "proxy-admin-port", wellknown.PortAdmin, "port of ztunnel's admin endpoint, in a cluster")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{session.FormatShort, session.FormatJSON, session.FormatYAML}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("node", z.completeNodes)
	cmd.AddCommand(z.workload(), z.service(), z.policy(), z.certificate(), z.connections(), z.dns(), z.egress(), z.traffic(), z.all(), z.log())
	return cmd
}

func (z *ztunnelConfig) sub(use, short string, show func(*dump.Dump) error, aliases ...string) *cobra.Command {
	return &cobra.Command{
		Use: use + " [ZTUNNEL]", Aliases: aliases, Short: short, Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: z.CompleteKube(z.ztunnels),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := z.read(cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return show(d)
		},
	}
}

// read gets the dump of the proxy that is named, if one is.
func (z *ztunnelConfig) read(cmd *cobra.Command, name string) (*dump.Dump, error) {
	switch z.output {
	case session.FormatShort, session.FormatTable, session.FormatJSON, session.FormatYAML:
	default:
		return nil, fmt.Errorf("output format %q: there are short, json and yaml", z.output)
	}
	var b []byte
	var err error
	switch z.file {
	case "":
		b, err = z.ask(cmd, name, http.MethodGet, "/config_dump")
	case "-":
		b, err = session.ReadAll(z.In)
	default:
		b, err = os.ReadFile(z.file)
	}
	if err != nil {
		return nil, err
	}
	return dump.Parse(b)
}

func (z *ztunnelConfig) table() bool {
	return z.output == session.FormatShort || z.output == session.FormatTable
}

func (z *ztunnelConfig) workload() *cobra.Command {
	cmd := z.sub("workload", "Workloads that the proxy knows", z.printWorkloads, "workloads", "w")
	cmd.Flags().StringVar(&z.namespace, "workload-namespace", "", "only those of a namespace")
	cmd.Flags().StringVar(&z.ofNode, "workload-node", "", "only those of a node")
	cmd.Flags().StringVar(&z.address, "address", "", "only the one with an address")
	return cmd
}

func (z *ztunnelConfig) printWorkloads(d *dump.Dump) error {
	list := slices.DeleteFunc(d.Workloads, func(w dump.Element[admin.Workload]) bool {
		return z.namespace != "" && w.V.Namespace != z.namespace ||
			z.ofNode != "" && w.V.Node != z.ofNode ||
			z.address != "" && !slices.Contains(w.V.WorkloadIPs, z.address)
	})
	if !z.table() {
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, w := range list {
		address := w.V.Hostname
		if len(w.V.WorkloadIPs) > 0 {
			address = w.V.WorkloadIPs[0]
		}
		rows = append(rows, []string{w.V.Namespace, w.V.Name, address, w.V.Node, d.Waypoint(w.V.Waypoint), w.V.Protocol})
	}
	return z.Table(session.Narrow, workloadColumns, rows)
}

func (z *ztunnelConfig) service() *cobra.Command {
	cmd := z.sub("service", "Services that the proxy knows", z.printServices, "services", "s", "svc")
	cmd.Flags().StringVar(&z.namespace, "service-namespace", "", "only those of a namespace")
	return cmd
}

func (z *ztunnelConfig) printServices(d *dump.Dump) error {
	list := slices.DeleteFunc(slices.Clone(d.Services), func(s dump.Element[admin.Service]) bool {
		return z.namespace != "" && s.V.Namespace != z.namespace
	})
	if !z.table() {
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		vip, healthy := "", 0
		if len(s.V.VIPs) > 0 {
			vip = dump.AfterSlash(s.V.VIPs[0])
		}
		for _, e := range s.V.Endpoints {
			if e.Status == "" || e.Status == "Healthy" {
				healthy++
			}
		}
		rows = append(rows, []string{s.V.Namespace, s.V.Name, vip, d.Waypoint(s.V.Waypoint), fmt.Sprintf("%d/%d", healthy, len(s.V.Endpoints))})
	}
	return z.Table(session.Narrow, serviceColumns, rows)
}

func (z *ztunnelConfig) policy() *cobra.Command {
	cmd := z.sub("policy", "Policies that the proxy enforces", z.printPolicies, "policies", "p", "pol")
	cmd.Flags().StringVar(&z.namespace, "policy-namespace", "", "only those of a namespace")
	return cmd
}

func (z *ztunnelConfig) printPolicies(d *dump.Dump) error {
	list := slices.DeleteFunc(d.Policies, func(p dump.Element[admin.Policy]) bool {
		return z.namespace != "" && p.V.Namespace != z.namespace
	})
	if !z.table() {
		return z.Encode(z.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		rows = append(rows, []string{p.V.Namespace, p.V.Name, p.V.Action, p.V.Scope})
	}
	return z.Table(session.Narrow, policyColumns, rows)
}

func (z *ztunnelConfig) certificate() *cobra.Command {
	return z.sub("certificate", "Certificates that the proxy holds", z.printCertificates, "certificates", "certs", "cert", "c")
}

func (z *ztunnelConfig) printCertificates(d *dump.Dump) error {
	if !z.table() {
		return z.Encode(z.output, d.Certificates)
	}
	var rows [][]string
	for _, c := range d.Certificates {
		state := c.V.State
		if strings.Contains(state, "Unavailable") {
			state = "Unavailable"
		}
		if len(c.V.CertChain) == 0 {
			rows = append(rows, []string{c.V.Identity, "NA", state, "false", "NA", "NA", "NA"})
			continue
		}
		add := func(kind string, cert admin.Certificate) {
			rows = append(rows, []string{c.V.Identity, kind, state, fmt.Sprint(z.valid(cert)), serial(cert.SerialNumber), moment(cert.ExpirationTime), moment(cert.ValidFrom)})
		}
		for i, cert := range c.V.CertChain {
			kind := "Leaf"
			if i > 0 {
				kind = "Intermediate"
			}
			add(kind, cert)
		}
		for _, cert := range c.V.RootCerts {
			add("Root", cert)
		}
	}
	return z.Table(session.Wide, certificateColumns, rows)
}

func (z *ztunnelConfig) valid(c admin.Certificate) bool {
	now := z.now()
	return !now.Before(c.ValidFrom) && now.Before(c.ExpirationTime)
}

// serial is a certificate's number in the base that certificates are shown in.
func serial(decimal string) string {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		return cmp.Or(decimal, notAvailable)
	}
	return n.Text(16)
}

// notAvailable stands for what a dump does not have, as in Istio's tables.
const notAvailable = "NA"

func moment(t time.Time) string {
	if t.IsZero() {
		return notAvailable
	}
	return t.Format(time.RFC3339)
}

func (z *ztunnelConfig) connections() *cobra.Command {
	cmd := z.sub("connections", "Connections that the proxy carries", z.printConnections, "cons", "connection")
	cmd.Flags().StringVar(&z.namespace, "workload-namespace", "", "only those of a namespace")
	cmd.Flags().StringVar(&z.direction, "direction", "", "only inbound or outbound ones")
	cmd.Flags().BoolVar(&z.raw, "raw", false, "addresses instead of names")
	return cmd
}

func (z *ztunnelConfig) printConnections(d *dump.Dump) error {
	if z.direction != "" && z.direction != "inbound" && z.direction != "outbound" {
		return fmt.Errorf("--direction %q: there are inbound and outbound", z.direction)
	}
	list := z.pods(d)
	if !z.table() {
		return z.Encode(z.output, list)
	}
	names := d.Names()
	name := func(addr string) string {
		host, port, err := net.SplitHostPort(addr)
		if n := names[host]; err == nil && n != "" && !z.raw {
			return net.JoinHostPort(n, port)
		}
		return addr
	}
	var rows [][]string
	for _, p := range list {
		if p.V.Connections == nil {
			continue
		}
		who := p.V.Info.Name + "." + p.V.Info.Namespace
		if z.direction != "outbound" {
			for _, c := range p.V.Connections.Inbound {
				var called string
				if c.OriginalDst != nil {
					called = *c.OriginalDst
				}
				rows = append(rows, []string{who, "Inbound", name(c.ActualDst), name(c.Src), name(called), c.Protocol})
			}
		}
		if z.direction != "inbound" {
			for _, c := range p.V.Connections.Outbound {
				rows = append(rows, []string{who, "Outbound", name(c.Src), name(c.ActualDst), name(c.OriginalDst), c.Protocol})
			}
		}
	}
	return z.Table(session.Narrow, connectionColumns, rows)
}

// pods returns the pods that the proxy serves, by name.
func (z *ztunnelConfig) pods(d *dump.Dump) []dump.Element[admin.Pod] {
	var list []dump.Element[admin.Pod]
	for _, uid := range slices.Sorted(maps.Keys(d.WorkloadState)) {
		if p := d.WorkloadState[uid]; z.namespace == "" || p.V.Info.Namespace == z.namespace {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b dump.Element[admin.Pod]) int {
		return strings.Compare(a.V.Info.Namespace+"\x00"+a.V.Info.Name, b.V.Info.Namespace+"\x00"+b.V.Info.Name)
	})
	return list
}

func (z *ztunnelConfig) all() *cobra.Command {
	sections := []struct {
		title string
		print func(*dump.Dump) error
	}{
		{"Workloads", z.printWorkloads}, {"Services", z.printServices}, {"Policies", z.printPolicies},
		{"Certificates", z.printCertificates}, {"Connections", z.printConnections},
	}
	cmd := z.sub("all", "All of it", func(d *dump.Dump) error {
		if !z.table() {
			return z.Encode(z.output, d)
		}
		var err error
		for i, s := range sections {
			if i > 0 {
				err = errors.Join(err, z.Printf("\n"))
			}
			if z.withHeaders {
				err = errors.Join(err, z.Printf("%s:\n", s.title))
			}
			err = errors.Join(err, s.print(d))
		}
		return err
	})
	cmd.Flags().BoolVar(&z.withHeaders, "with-headers", false, "a title above every table")
	return cmd
}
