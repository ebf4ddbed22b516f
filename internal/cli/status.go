package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

func statusCommand(a *session.Session) *cobra.Command {
	c := &session.AdminClient{Session: a}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what became of every object: accepted, where it is enforced, or why not",
		Long: `Shows what became of the objects that the mesh reads: accepted, where they are
enforced, or why not and what to do. In a cluster that is what ambitd wrote into
their status.conditions, of all namespaces unless -n names one.`,
		Example: `  ambit status
  ambit status -n shop -o yaml
  ambit status --address localhost:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, problems, err := live.Status(cmd.Context(), c)
			if err != nil {
				return err
			}
			return printObjects(a, objects, problems, c.Namespace, output)
		},
	}
	c.Flags(cmd)
	cmd.Flag("namespace").Usage = "only objects of a namespace"
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

func printObjects(a *session.Session, objects []admin.Object, problems []admin.Problem, namespace, output string) error {
	kept := objects[:0]
	for _, o := range objects {
		if namespace == "" || o.Namespace == namespace {
			kept = append(kept, o)
		}
	}
	if output != session.FormatTable {
		return a.Encode(output, map[string]any{"objects": kept, "problems": problems})
	}
	if len(kept)+len(problems) == 0 {
		where := ""
		if namespace != "" {
			where = " in namespace " + namespace
		}
		return a.Printf("There is no policy and no other object of the mesh%s, and so no status.\n", where)
	}
	var rows [][]string
	for _, o := range kept {
		for _, c := range o.Conditions {
			rows = append(rows, []string{o.Kind, session.OrNone(o.Namespace), o.Name, c.Type, c.Status, c.Reason, c.Message})
		}
		for _, e := range o.Entries {
			for _, c := range e.Conditions {
				rows = append(rows, []string{o.Kind, session.OrNone(o.Namespace), o.Name, c.Type + " (" + live.Label(&e) + ")", c.Status, c.Reason, c.Message})
			}
		}
	}
	err := a.Table(3, []string{"KIND", "NAMESPACE", "NAME", "CONDITION", "STATUS", "REASON", "MESSAGE"}, rows)
	for i, p := range problems {
		if i == 0 {
			err = errors.Join(err, a.Printf("\nProblems (the last good state of these stays in force):\n"))
		}
		where := p.File
		if p.Line > 0 {
			where += fmt.Sprintf(":%d", p.Line)
		}
		parts := []string{where}
		if p.Field != "" {
			parts = append(parts, p.Field)
		}
		err = errors.Join(err, a.Printf("  %s: %s\n", strings.Join(parts, ": "), p.Message))
	}
	return err
}
