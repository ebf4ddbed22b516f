// Package cli is the command line of `ambit`: what a person types to run a mesh
// on one machine, to see what a mesh does, and why.
package cli

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/dashboard"
	"github.com/ambit-mesh/ambit/internal/cli/describe"
	"github.com/ambit-mesh/ambit/internal/cli/labcmd"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/cli/waypoint"
	"github.com/ambit-mesh/ambit/internal/cli/ztunnel"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

// Main runs one command line, args[0] being the name of the program, and
// returns the exit code. As kubectl-ambit it is a plugin of kubectl.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := session.New(in, out, errOut)
	a.Plugin = strings.TrimSuffix(filepath.Base(args[0]), ".exe") == "kubectl-ambit"
	return run(ctx, a, args[1:])
}

// Run runs one command line and returns the exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return run(ctx, session.New(in, out, errOut), args)
}

func run(ctx context.Context, a *session.Session, args []string) int {
	cmd := root(a)
	cmd.SetArgs(args)
	cmd.SetIn(a.In)
	cmd.SetOut(a.Out)
	cmd.SetErr(a.Err)
	ran, err := cmd.ExecuteContextC(ctx)
	err = errors.Join(err, a.Out.Flush(), a.Err.Flush())
	var code session.CodeError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	_ = a.Err.Printf("error: %v\n", err)
	if _, own := ran.Annotations[failedCode]; own {
		return codeFailed
	}
	return 1
}

func root(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ambit",
		Short: "A service mesh without sidecars",
		Long: `Ambit is a service mesh without sidecars: label a namespace, and every pod in it
speaks mutual TLS under its own identity. No restart, no change to the programs.

Begin on this machine, without a cluster:

  ambit lab up -f examples/shop --nodes 2 --detach
  ambit lab status

Or in a cluster:

  ambit install
  kubectl label namespace shop istio.io/dataplane-mode=ambient
  ambit describe pod web -n shop`,
		Version:       version.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.AddCommand(labcmd.Command(a), statusCommand(a), caCommand(a), tokenCommand(a), createCommand(a), ztunnel.Config(a),
		ztunnel.ProxyStatus(a), ztunnel.Egress(a), describe.Command(a), describe.Experimental(a), analyzeCommand(a), bugReportCommand(a), versionCommand(a),
		waypoint.Command(a), waypoint.Config(a), whyCommand(a), dashboard.Command(a))
	cmd.AddCommand(installCommands(a)...)
	if a.Plugin {
		cmd.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl ambit"}
	}
	teach(cmd)
	return cmd
}
