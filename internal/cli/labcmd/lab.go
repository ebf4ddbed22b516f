// Package labcmd has the commands of `ambit lab`.
package labcmd

import (
	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// Command returns `ambit lab`.
func Command(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run a mesh on this machine",
		Long: `A lab is a mesh on this machine: nodes and pods are network namespaces, made from
ordinary Kubernetes YAML, and the mesh is the real one. Pods run programs of this
machine (images are ignored). Without root, a lab runs in a user namespace.
When it ends, in whatever way, nothing of it stays.`,
		Example: `  # two nodes, in the background
  ambit lab up -f examples/shop --nodes 2 --detach
  # a program in a pod
  ambit lab exec client -n shop -- curl -s http://web
  # what can be read on the wire between the nodes?
  ambit lab trace --for 5s
  # put the namespace into the mesh, and look again
  ambit lab label namespace shop istio.io/dataplane-mode=ambient
  ambit lab trace --for 5s
  ambit lab down`,
	}
	a.LabFlags(cmd, "name")
	cmd.AddCommand(labUp(a), labDown(a), labApply(a), labDelete(a), labLabel(a), labStatus(a),
		labExec(a), labShell(a), labLogs(a), labTrace(a), labRestart(a))
	return cmd
}

func lines(a *session.Session, said []string) error {
	for _, s := range said {
		if err := a.Printf("%s\n", s); err != nil {
			return err
		}
	}
	return nil
}

func namespaceFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVarP(into, "namespace", "n", "default", "namespace")
}
