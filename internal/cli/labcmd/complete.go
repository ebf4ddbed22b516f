package labcmd

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func completePods(a *session.Session, cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		st, err := a.LabStatus(cmd.Context())
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, p := range st.Pods {
			out = append(out, p.Namespace+"/"+p.Name)
		}
		for _, n := range st.Nodes {
			out = append(out, n.Name)
		}
		return append(out, "lan"), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeComponents lists components, and pods as well when they have logs.
func completeComponents(a *session.Session, pods bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var out []string
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		st, err := a.LabStatus(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, c := range st.Components {
			out = append(out, c.Name)
		}
		for _, p := range st.Pods {
			if pods {
				out = append(out, p.Namespace+"/"+p.Name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag with what a lab has.
func completeFlag(a *session.Session, cmd *cobra.Command, flag string, of func(*lab.Status) []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		st, err := a.LabStatus(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return of(st), cobra.ShellCompDirectiveNoFileComp
	})
}

func namespaces(st *lab.Status) []string {
	var out []string
	for _, p := range st.Pods {
		out = append(out, p.Namespace)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
