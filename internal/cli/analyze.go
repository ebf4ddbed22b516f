package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/analysis"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// analyze is `ambit analyze`: what it reads, and which findings count.
type analyze struct {
	*session.Session
	session.Kube
	useKube, allNamespaces bool
	output                 string
	shown, fails           string // severities
	suppressions           []string
}

// exitFindings is the code with which the command ends when it found something;
// scripts know it from istioctl.
const exitFindings = 79

// formatLog is lines for people.
const formatLog = "log"

// annotationSuppress on an object names codes that are not reported for it.
const annotationSuppress = "galley.istio.io/analyze-suppress"

var severities = []string{string(analysis.Info), string(analysis.Warning), string(analysis.Error)}

func analyzeCommand(a *session.Session) *cobra.Command {
	z := &analyze{Session: a}
	cmd := &cobra.Command{
		Use:   "analyze [FILE|DIRECTORY|-]...",
		Short: "Find what is wrong, or not what it seems, in files and in a cluster",
		Long: `Finds what is wrong, or not what it seems, in the objects of a cluster: policies that
nobody enforces, labels that nobody reads, network policies that cut pods off. With
files it says what would be, were they applied; with --use-kube=false it looks at the
files alone. - reads standard input.

What is found about files is always shown; of the cluster, what is in the namespace
(-n) or in all (-A). It ends with code 79 if a finding is as grave as
--failure-threshold. docs/analysis.md explains each code. An object with the annotation
` + annotationSuppress + ` (codes with commas between, or *) is left in peace.`,
		Example: `  ambit analyze -A
  ambit analyze policies/ -n shop
  ambit analyze --use-kube=false -o json *.yaml
  ambit analyze -A --suppress 'AMB0019=Pod kube-system/*'`,
		RunE: func(cmd *cobra.Command, args []string) error { return z.run(cmd, args) },
	}
	f := cmd.Flags()
	z.AddFlags(f)
	z.CompleteFlags(cmd)
	f.BoolVarP(&z.allNamespaces, "all-namespaces", "A", false, "what is found in all namespaces")
	f.BoolVarP(&z.useKube, "use-kube", "k", true, "look at the cluster as well")
	f.StringVarP(&z.output, "output", "o", formatLog, "output format: log, json or yaml")
	f.StringVar(&z.shown, "output-threshold", string(analysis.Info), "least severity to show: Info, Warning or Error")
	f.StringVar(&z.fails, "failure-threshold", string(analysis.Error), "least severity to fail for: Info, Warning or Error")
	f.StringArrayVarP(&z.suppressions, "suppress", "S", nil, "leave out findings, as CODE=KIND NAMESPACE/NAME or CODE=KIND NAME.NAMESPACE, with * for any text")
	fixed := func(flag string, values ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed("output", formatLog, session.FormatJSON, session.FormatYAML)
	fixed("output-threshold", severities...)
	fixed("failure-threshold", severities...)
	return cmd
}

func (z *analyze) run(cmd *cobra.Command, args []string) error {
	shown, err := severity("output-threshold", z.shown)
	if err != nil {
		return err
	}
	fails, err := severity("failure-threshold", z.fails)
	if err != nil {
		return err
	}
	suppressed, err := parseSuppressions(z.suppressions)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{formatLog, session.FormatJSON, session.FormatYAML}, z.output) {
		return fmt.Errorf("output format %q: there are log, json and yaml", z.output)
	}
	set, err := z.gather(cmd, args)
	if err != nil {
		return err
	}
	findings := set.analyze(func(f analysis.Finding) bool {
		return f.Severity.AtLeast(shown) && !slices.ContainsFunc(suppressed, func(s suppression) bool { return s.covers(f) })
	})
	if err := z.print(findings, set.scope); err != nil {
		return err
	}
	if slices.ContainsFunc(findings, func(f analysis.Finding) bool { return f.Severity.AtLeast(fails) }) {
		return session.CodeError(exitFindings)
	}
	return nil
}

// severity reads one, in whatever case it is written.
func severity(flag, s string) (analysis.Severity, error) {
	for _, known := range severities {
		if strings.EqualFold(s, known) {
			return analysis.Severity(known), nil
		}
	}
	return "", fmt.Errorf("--%s %q: there are %s", flag, s, strings.Join(severities, ", "))
}

// analyzed is a set of objects, and what of it counts.
type analyzed struct {
	opts     analysis.Options
	events   []source.Event
	problems []analysis.Finding // of what could not be read
	// counts chooses objects of a cluster; those of files always count.
	counts func(source.Key) bool
	scope  string // in words
}

// gather reads files and the cluster. A later event replaces an earlier one:
// files come last, as if they were applied.
func (z *analyze) gather(cmd *cobra.Command, args []string) (*analyzed, error) {
	set := &analyzed{counts: func(source.Key) bool { return true }, scope: "in " + strings.Join(args, " ")}
	if len(args) == 0 && !z.useKube {
		return nil, fmt.Errorf("--use-kube=false and no file: there is nothing to look at (name files or directories)")
	}
	if z.useKube && len(args) > 0 && !cmd.Flag("use-kube").Changed && !z.Named(cmd) && !z.Configured() {
		z.useKube = false
		_ = z.Err.Printf("(no cluster is configured: the files are looked at alone)\n")
	}
	if z.useKube {
		if err := z.live(cmd.Context(), set); err != nil {
			return nil, err
		}
	} else {
		set.opts = analysis.Options{RootNamespace: z.IstioNamespace, Partial: true}
	}
	events, problems, err := z.files(args)
	if err == nil && len(args) > 0 && len(events)+len(problems) == 0 {
		err = fmt.Errorf("there is no object that the mesh knows in %s", strings.Join(args, ", "))
	}
	set.events, set.problems = append(set.events, events...), append(set.problems, problems...)
	return set, err
}

// live reads the cluster into a set.
func (z *analyze) live(ctx context.Context, set *analyzed) error {
	c, err := z.Client()
	if err != nil {
		return err
	}
	set.opts = live.MeshOptions(ctx, &z.Kube, c)
	if set.events, set.problems, err = live.Events(ctx, c); err != nil {
		return fmt.Errorf("%w (--use-kube=false looks at files alone)", err)
	}
	set.scope = "in all namespaces"
	if z.allNamespaces {
		return nil
	}
	ns := z.Ns(c)
	set.scope = "in namespace " + ns
	set.counts = func(k source.Key) bool {
		return k.Namespace == ns || k.Kind == source.Namespace.Kind && k.Name == ns
	}
	return nil
}

// files reads what the command line names.
func (z *analyze) files(args []string) ([]source.Event, []analysis.Finding, error) {
	opts := file.Options{Also: analysis.Kinds()}
	stdin := ""
	for _, arg := range args {
		if arg == "-" && stdin == "" {
			dir, err := os.MkdirTemp("", "ambit-analyze-*")
			if err != nil {
				return nil, nil, err
			}
			defer os.RemoveAll(dir) //nolint:errcheck // a directory of our own
			b, err := session.ReadAll(z.In)
			if err != nil {
				return nil, nil, err
			}
			stdin = filepath.Join(dir, "stdin.yaml")
			if err := os.WriteFile(stdin, b, 0o600); err != nil {
				return nil, nil, err
			}
			arg = stdin
		}
		st, err := os.Stat(arg)
		if err != nil {
			return nil, nil, err
		}
		if ext := filepath.Ext(arg); !st.IsDir() && ext != ".yaml" && ext != ".yml" && ext != ".json" {
			return nil, nil, fmt.Errorf("%s: a file's name ends in .yaml, .yml or .json (`ambit analyze - < %s` reads it anyway)", arg, arg)
		}
		opts.ConfigDirs = append(opts.ConfigDirs, arg)
	}
	events, problems := file.Load(opts)
	named := func(path string) string {
		if rest, ok := strings.CutPrefix(path, stdin); ok && stdin != "" {
			return "stdin" + rest
		}
		return path
	}
	for i := range events {
		events[i].Origin = named(events[i].Origin)
	}
	var out []analysis.Finding
	for _, p := range problems {
		if f, ok := analysis.Problem(p); ok {
			f.File = named(f.File)
			out = append(out, f)
		}
	}
	return events, out, nil
}

// analyze returns the findings that count and are wanted, what could not be
// read first.
func (s *analyzed) analyze(wanted func(analysis.Finding) bool) []analysis.Finding {
	quiet := map[source.Key]string{}
	for _, e := range s.events {
		delete(quiet, e.Key)
		if v := e.Object.GetAnnotations()[annotationSuppress]; v != "" {
			quiet[e.Key] = v
		}
	}
	all := append(slices.Clone(s.problems), analysis.Analyze(s.events, s.opts)...)
	return slices.DeleteFunc(all, func(f analysis.Finding) bool {
		return f.File == "" && !s.counts(f.Object) || quietened(quiet[f.Object], f) || !wanted(f)
	})
}

// quietened reports whether an annotation names the code of a finding.
func quietened(annotation string, f analysis.Finding) bool {
	for code := range strings.SplitSeq(annotation, ",") {
		if code = strings.TrimSpace(code); code == "*" || code != "" && (code == f.Code || code == f.Istio) {
			return true
		}
	}
	return false
}

// suppression is one --suppress.
type suppression struct {
	code   string
	object *regexp.Regexp
}

func parseSuppressions(list []string) ([]suppression, error) {
	var out []suppression
	for _, s := range list {
		code, object, ok := strings.Cut(s, "=")
		if !ok || object == "" {
			return nil, fmt.Errorf("--suppress %q: write CODE=KIND NAMESPACE/NAME, with * for any text, such as 'AMB0019=Pod shop/*'", s)
		}
		if analysis.Name(code) == "" && !istioCode.MatchString(code) {
			return nil, fmt.Errorf("--suppress %q: there is no code %q (docs/analysis.md lists them)", s, code)
		}
		pattern := strings.ReplaceAll(regexp.QuoteMeta(object), `\*`, ".*")
		re, err := regexp.Compile("^(?:" + pattern + ")$")
		if err != nil {
			return nil, fmt.Errorf("--suppress %q: %w", s, err)
		}
		out = append(out, suppression{code, re})
	}
	return out, nil
}

var istioCode = regexp.MustCompile(`^IST[0-9]{4}$`)

func (s suppression) covers(f analysis.Finding) bool {
	if s.code != f.Code && s.code != f.Istio {
		return false
	}
	k := f.Object
	return s.object.MatchString(live.ObjectName(k)) || k.Namespace != "" && s.object.MatchString(k.Kind.String()+" "+k.Name+"."+k.Namespace)
}

// findingRow is a finding as JSON; code, level, origin, reference and message
// are what istioctl calls them.
type findingRow struct {
	Code      string            `json:"code"`
	Name      string            `json:"name"`
	Istio     string            `json:"istioCode,omitempty"`
	Level     analysis.Severity `json:"level"`
	Origin    string            `json:"origin,omitempty"`
	Reference string            `json:"reference,omitempty"`
	Field     string            `json:"field,omitempty"`
	Message   string            `json:"message"`
	Next      string            `json:"next,omitempty"`
}

func rowOf(f analysis.Finding) findingRow {
	r := findingRow{f.Code, analysis.Name(f.Code), f.Istio, f.Severity, live.ObjectName(f.Object), f.File, f.Field, f.Message, f.Next}
	if f.Line > 0 {
		r.Reference = fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	return r
}

// text is a finding for people.
func (r findingRow) text() string {
	about := strings.TrimSpace(r.Origin + " " + r.Reference)
	message := r.Message
	if r.Field != "" {
		message = r.Field + ": " + message
	}
	s := printer.Sprintf("%s [%s] (%s) %s\n", r.Level, r.Code, cmp.Or(about, "-"), message)
	if r.Next != "" {
		s += "    → " + printer.Field(r.Next) + "\n"
	}
	return s
}

func (z *analyze) print(findings []analysis.Finding, scope string) error {
	rows := []findingRow{}
	for _, f := range findings {
		rows = append(rows, rowOf(f))
	}
	if z.output != formatLog {
		return z.Encode(z.output, rows)
	}
	if len(rows) == 0 {
		return z.Printf("✔ Nothing to report %s.\n", scope)
	}
	for _, r := range rows {
		if err := z.Printf("%s", printer.Block(r.text())); err != nil {
			return err
		}
	}
	return nil
}
