// Package session is one run of the command line: its input and output, and the lab or
// the cluster that it is about.
package session

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// Session is what the commands share.
type Session struct {
	In       io.Reader
	Out, Err *printer.Printer // all output: much of what is shown was named by others

	LabName, stateDir string

	Plugin bool // called as kubectl-ambit
}

// CodeError ends the program with a code, saying nothing: what failed has
// spoken for itself.
type CodeError int

// Error implements error.
func (c CodeError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// New returns a session.
func New(in io.Reader, out, errOut io.Writer) *Session {
	return &Session{In: in, Out: printer.NewPrinter(out), Err: printer.NewPrinter(errOut)}
}

// Output formats.
const (
	FormatTable = "table"
	FormatShort = "short" // what istioctl calls a table
	FormatJSON  = "json"
	FormatYAML  = "yaml"
)

// OutputFlag adds -o, for the format of the output.
func OutputFlag(cmd *cobra.Command, into *string, def string) {
	cmd.Flags().StringVarP(into, "output", "o", def, "output format: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{FormatTable, FormatJSON, FormatYAML}, cobra.ShellCompDirectiveNoFileComp))
}

// defaultLab is the lab that is meant when none is named.
func defaultLab() string { return cmp.Or(os.Getenv("AMBIT_LAB"), "demo") }

// LabFlags say which lab a command is about.
func (a *Session) LabFlags(cmd *cobra.Command, name string) {
	cmd.PersistentFlags().StringVar(&a.LabName, name, defaultLab(), "name of the lab (default also by $AMBIT_LAB)")
	cmd.PersistentFlags().StringVar(&a.stateDir, "state-dir", "", "state directory of the lab (default by its name)")
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
}

// StateDir returns the directory of the lab.
func (a *Session) StateDir() string {
	if a.stateDir != "" {
		return a.stateDir
	}
	return lab.DefaultStateDir(a.LabName)
}

// Attach connects to the lab.
func (a *Session) Attach() (*lab.Lab, error) { return lab.Attach(a.StateDir()) }

// Printf prints to the output.
func (a *Session) Printf(format string, args ...any) error {
	return a.Out.Printf(format, args...)
}

// Encode prints a value as JSON or YAML.
func (a *Session) Encode(format string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	asJSON := append(printer.JSON(b), '\n')
	switch format {
	case FormatJSON:
		b = asJSON
	case FormatYAML:
		if b, err = yaml.JSONToYAML(b); err != nil {
			return err
		}
		if !printer.Clean(b) {
			b = asJSON // which is YAML as well, and can escape any character
		}
	default:
		return fmt.Errorf("output format %q: there are table, json and yaml", format)
	}
	_, err = a.Out.Write(b)
	return err
}

// Spaces between columns.
const (
	Narrow = 1
	Wide   = 5
)

// Table prints rows under a header, in columns with pad spaces between them.
func (a *Session) Table(pad int, header []string, rows [][]string) error {
	return a.Out.Table(pad, header, rows)
}

// OrNone returns the text, or a dash in the place of none.
func OrNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// NameArg repeats a name that is not the default in suggestions, for commands
// that take it by this flag.
func (a *Session) NameArg(flag string) string {
	if a.stateDir != "" {
		return " --state-dir " + a.stateDir
	}
	if a.LabName != defaultLab() {
		return " --" + flag + " " + a.LabName
	}
	return ""
}

// Mebibytes returns a number of bytes in MiB, or a dash for none.
func Mebibytes(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// LabStatus asks the lab about itself.
func (a *Session) LabStatus(ctx context.Context) (*lab.Status, error) {
	l, err := a.Attach()
	if err != nil {
		return nil, err
	}
	return l.Status(ctx)
}
