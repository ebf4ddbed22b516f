package labcmd

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func labStatus(a *session.Session) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show nodes, components, pods and services",
		Example: "  ambit lab status\n  ambit lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := a.LabStatus(cmd.Context())
			if err != nil {
				return err
			}
			if output != session.FormatTable {
				return a.Encode(output, st)
			}
			return printStatus(a, st)
		},
	}
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

func printStatus(a *session.Session, st *lab.Status) error {
	kind := "root"
	if st.Unprivileged {
		kind = "in a user namespace"
	}
	if err := a.Printf("Lab %s (%s, pid %d, %s)\n\n", st.Name, kind, st.PID, st.StateDir); err != nil {
		return err
	}
	var rows [][]string
	for _, n := range st.Nodes {
		rows = append(rows, []string{n.Name, strings.Join(n.IPs, ",")})
	}
	err := a.Table(3, []string{"NODE", "ADDRESSES"}, rows)
	rows = nil
	for _, c := range st.Components {
		rows = append(rows, []string{c.Name, c.State, yesNo(c.Ready), fmt.Sprint(c.Restarts), session.Mebibytes(c.RSS), c.Message})
	}
	if len(rows) > 0 {
		err = errors.Join(err, a.Printf("\n"), a.Table(3, []string{"COMPONENT", "STATE", "READY", "RESTARTS", "MEMORY", "MESSAGE"}, rows))
	}
	rows = nil
	for _, p := range st.Pods {
		rows = append(rows, []string{p.Namespace, p.Name, p.Phase, yesNo(p.Ready), fmt.Sprint(p.Restarts), session.Mebibytes(p.RSS), p.Node, strings.Join(p.IPs, ","), yesNo(p.Captured), p.Message})
	}
	err = errors.Join(err, a.Printf("\n"), a.Table(3, []string{"NAMESPACE", "POD", "PHASE", "READY", "RESTARTS", "MEMORY", "NODE", "ADDRESSES", "MESH", "MESSAGE"}, rows))
	rows = nil
	for _, s := range st.Services {
		rows = append(rows, []string{s.Namespace, s.Name, session.OrNone(strings.Join(s.IPs, ",")), fmt.Sprint(s.Endpoints)})
	}
	if len(rows) > 0 {
		err = errors.Join(err, a.Printf("\n"), a.Table(3, []string{"NAMESPACE", "SERVICE", "ADDRESSES", "ENDPOINTS"}, rows))
	}
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
