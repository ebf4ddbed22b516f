package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/lab"
)

func (a *app) labCommand() *cobra.Command {
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
	a.labFlags(cmd, "name")
	cmd.AddCommand(a.labUp(), a.labDown(), a.labApply(), a.labDelete(), a.labLabel(), a.labStatus(),
		a.labExec(), a.labShell(), a.labLogs(), a.labTrace(), a.labRestart())
	return cmd
}

// nameArg repeats a name that is not the default in suggestions, for commands
// that take it by this flag.
func (a *app) nameArg(flag string) string {
	if a.stateDir != "" {
		return " --state-dir " + a.stateDir
	}
	if a.labName != defaultLab() {
		return " --" + flag + " " + a.labName
	}
	return ""
}

// status asks the lab about itself.
func (a *app) status(ctx context.Context) (*lab.Status, error) {
	l, err := a.attach()
	if err != nil {
		return nil, err
	}
	return l.Status(ctx)
}

func (a *app) lines(said []string) error {
	for _, s := range said {
		if err := a.printf("%s\n", s); err != nil {
			return err
		}
	}
	return nil
}

func namespaceFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVarP(into, "namespace", "n", "default", "namespace")
}
