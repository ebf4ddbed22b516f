package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/install/check"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

func checkCommand(a *session.Session) *cobra.Command {
	k := &session.Kube{}
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell what speaks for and against the mesh in a cluster, before and after it is installed",
		Long: `Check looks at Kubernetes, nodes, network plugin, network policies, kinds and rights
before an installation, and at the parts, their versions, redirection on every node, admission,
certificates and the pods of the mesh afterwards. Nothing is changed. It ends with code 1 if
there is an error.`,
		Example: `  ambit check
  ambit check -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := k.Client()
			if err != nil {
				return err
			}
			seen, err := check.Gather(cmd.Context(), c, k.IstioNamespace, version.Get().Version)
			if err != nil {
				return session.Explain(err)
			}
			findings := check.Judge(seen, time.Now())
			if err := printFindings(a, findings, output); err != nil {
				return err
			}
			if check.Worst(findings) == check.Error {
				return session.CodeError(1)
			}
			return nil
		},
	}
	k.AddFlags(cmd.Flags())
	k.CompleteFlags(cmd)
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

var levelMarks = map[check.Level]string{check.OK: "✔", check.Info: "ℹ", check.Warning: "!", check.Error: "✘"}

func printFindings(a *session.Session, findings []check.Finding, output string) error {
	if output != session.FormatTable {
		return a.Encode(output, findings)
	}
	count := map[check.Level]int{}
	for _, f := range findings {
		count[f.Level]++
		text := []string{levelMarks[f.Level], f.Check + ":"}
		if f.Object != "" {
			text = append(text, f.Object+":")
		}
		if err := a.Printf("%s\n", strings.Join(append(text, f.Message), " ")); err != nil {
			return err
		}
		if f.Next != "" {
			if err := a.Printf("    → %s\n", f.Next); err != nil {
				return err
			}
		}
	}
	return a.Printf("%d errors, %d warnings\n", count[check.Error], count[check.Warning])
}
