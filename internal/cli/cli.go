// Package cli is the command line of `ambit`: what a person types to run a mesh
// on one machine, to see what a mesh does, and why.
package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

// app is what the commands share.
type app struct {
	in       io.Reader
	out, err *printer.Printer // all output: much of what is shown was named by others

	labName, stateDir string

	plugin bool // called as kubectl-ambit
}

// codeError ends the program with a code, saying nothing: what failed has
// spoken for itself.
type codeError int

func (c codeError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// Main runs one command line, args[0] being the name of the program, and
// returns the exit code. As kubectl-ambit it is a plugin of kubectl.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := newApp(in, out, errOut)
	a.plugin = strings.TrimSuffix(filepath.Base(args[0]), ".exe") == "kubectl-ambit"
	return a.run(ctx, args[1:])
}

// Run runs one command line and returns the exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return newApp(in, out, errOut).run(ctx, args)
}

func newApp(in io.Reader, out, errOut io.Writer) *app {
	return &app{in: in, out: printer.NewPrinter(out), err: printer.NewPrinter(errOut)}
}

func (a *app) run(ctx context.Context, args []string) int {
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetIn(a.in)
	cmd.SetOut(a.out)
	cmd.SetErr(a.err)
	ran, err := cmd.ExecuteContextC(ctx)
	err = errors.Join(err, a.out.Flush(), a.err.Flush())
	var code codeError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	_ = a.err.Printf("error: %v\n", err)
	if _, own := ran.Annotations[failedCode]; own {
		return codeFailed
	}
	return 1
}

func (a *app) root() *cobra.Command {
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
	cmd.AddCommand(a.labCommand(), a.statusCommand(), a.caCommand(), a.tokenCommand(), a.createCommand(), a.ztunnelConfigCommand(),
		a.proxyStatusCommand(), a.describeCommand(), a.experimentalCommand(), a.analyzeCommand(), a.bugReportCommand(), a.versionCommand(), a.waypointCommand(), a.waypointConfigCommand(), a.whyCommand())
	cmd.AddCommand(a.installCommands()...)
	if a.plugin {
		cmd.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl ambit"}
	}
	teach(cmd)
	return cmd
}

// Output formats.
const (
	formatTable = "table"
	formatShort = "short" // what istioctl calls a table
	formatJSON  = "json"
	formatYAML  = "yaml"
)

func outputFlag(cmd *cobra.Command, into *string, def string) {
	cmd.Flags().StringVarP(into, "output", "o", def, "output format: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{formatTable, formatJSON, formatYAML}, cobra.ShellCompDirectiveNoFileComp))
}

// defaultLab is the lab that is meant when none is named.
func defaultLab() string { return cmp.Or(os.Getenv("AMBIT_LAB"), "demo") }

// labFlags say which lab a command is about.
func (a *app) labFlags(cmd *cobra.Command, name string) {
	cmd.PersistentFlags().StringVar(&a.labName, name, defaultLab(), "name of the lab (default also by $AMBIT_LAB)")
	cmd.PersistentFlags().StringVar(&a.stateDir, "state-dir", "", "state directory of the lab (default by its name)")
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
}

func (a *app) dir() string {
	if a.stateDir != "" {
		return a.stateDir
	}
	return lab.DefaultStateDir(a.labName)
}

func (a *app) attach() (*lab.Lab, error) { return lab.Attach(a.dir()) }

func (a *app) printf(format string, args ...any) error {
	return a.out.Printf(format, args...)
}

// encode prints a value as JSON or YAML.
func (a *app) encode(format string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	asJSON := append(printer.JSON(b), '\n')
	switch format {
	case formatJSON:
		b = asJSON
	case formatYAML:
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
		if !printer.Clean(b) {
			b = asJSON // which is YAML as well, and can escape any character
		}
	default:
		return fmt.Errorf("output format %q: there are table, json and yaml", format)
	}
	_, err = a.out.Write(b)
	return err
}

// table prints rows under a header, in columns with pad spaces between them.
func (a *app) table(pad int, header []string, rows [][]string) error {
	return a.out.Table(pad, header, rows)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
