package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/install"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

// installFlags are those by which people say what to install, as istioctl has
// them.
type installFlags struct {
	session.Kube
	files, settings []string
	revision        string
	channel         string
	yes, force      bool
	dryRun          bool
	output          string
	timeout         time.Duration
}

// specFlags say what.
func (f *installFlags) specFlags(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "`file` of values: an IstioOperator, or what that has below spec; - is standard input; may be repeated")
	fs.StringArrayVarP(&f.settings, "set", "s", nil, "`path=value`, such as profile=ambient, values.global.hub=registry/path, meshConfig.trustDomain=example.org; may be repeated")
	fs.StringVarP(&f.revision, "revision", "r", "", "`name` of the control plane, to have several")
	fs.StringVar(&f.channel, "gateway-api-channel", "", "`channel` of the Gateway API's kinds: standard (default), experimental, or none for kinds of another owner")
}

// runFlags say how.
func (f *installFlags) runFlags(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.yes, "skip-confirmation", "y", false, "do not ask")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only say what would happen; the API server checks it")
	fs.DurationVar(&f.timeout, "readiness-timeout", 300*time.Second, "how long to wait for each part to become ready")
}

// spec reads what the flags say.
func (f *installFlags) spec(cmd *cobra.Command, in io.Reader) (*install.Spec, error) {
	var texts [][]byte
	for _, name := range f.files {
		text, err := readFile(name, in)
		if err != nil {
			return nil, fmt.Errorf("values: %w", err)
		}
		texts = append(texts, text)
	}
	settings := f.settings
	if f.revision != "" {
		settings = append(settings, "revision="+f.revision)
	}
	if f.channel != "" {
		settings = append(settings, "values.gatewayAPI.channel="+f.channel)
	}
	if flag := cmd.Flag("istioNamespace"); flag != nil && flag.Changed || cmd.Flag("istio-namespace") != nil && cmd.Flag("istio-namespace").Changed {
		settings = append(settings, "namespace="+f.IstioNamespace)
	}
	return install.Parse(texts, settings)
}

func readFile(name string, in io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

// installCommands are those that put a mesh into a cluster and out of it.
func installCommands(a *session.Session) []*cobra.Command {
	return []*cobra.Command{installCommand(a), upgradeCommand(a), uninstallCommand(a), manifestCommand(a), checkCommand(a)}
}

func installCommand(a *session.Session) *cobra.Command {
	f := &installFlags{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the mesh into a Kubernetes cluster, or change its settings",
		Long: `Install applies kinds, control plane, node agent and node proxy, and waits until
they are ready. Nothing in the cluster is restarted; no pod is in the mesh until it
or its namespace is labelled. Installing again with other settings changes them.`,
		Example: `  ambit install
  ambit install --set profile=ambient --set meshConfig.trustDomain=example.org
  ambit install -f mesh.yaml --dry-run
  ambit install --set values.global.platform=gke -y`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInstall(a, cmd, f, false) },
	}
	applyFlags(a, cmd, f)
	return cmd
}

func upgradeCommand(a *session.Session) *cobra.Command {
	f := &installFlags{}
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Replace the mesh in a cluster by the version of this program",
		Long: `Upgrade says what changes, then applies it part by part. It goes forward, one minor
version at a time; settings are given again, as for install. Connections of pods in the
mesh go on while the node proxy is replaced, for as long as its
terminationGracePeriodSeconds.`,
		Example: `  ambit upgrade --dry-run
  ambit upgrade -f mesh.yaml -y`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInstall(a, cmd, f, true) },
	}
	applyFlags(a, cmd, f)
	return cmd
}

func applyFlags(a *session.Session, cmd *cobra.Command, f *installFlags) {
	f.AddFlags(cmd.Flags())
	f.CompleteFlags(cmd)
	f.specFlags(cmd.Flags())
	f.runFlags(cmd.Flags())
	cmd.Flags().BoolVar(&f.force, "force", false, "take over what others installed; allow any version")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "with --dry-run: yaml for the manifests, json for the changes")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{session.FormatJSON, session.FormatYAML}, cobra.ShellCompDirectiveNoFileComp))
}

func runInstall(a *session.Session, cmd *cobra.Command, f *installFlags, upgrade bool) error {
	spec, err := f.spec(cmd, a.In)
	if err != nil {
		return err
	}
	c, err := f.Client()
	if err != nil {
		return err
	}
	if err := printIgnored(a, spec); err != nil {
		return err
	}
	screen := newScreen(a.Out)
	i := &install.Installer{
		Client: c, Spec: spec, Version: version.Get().Version, Force: f.force, Timeout: f.timeout, Progress: screen.show,
	}
	plan, err := i.Plan(cmd.Context())
	if err != nil {
		return session.Explain(err)
	}
	if upgrade && plan.From == "" {
		return fmt.Errorf("no mesh is installed in namespace %s: `ambit install` installs one; another namespace is named with -i, another control plane with --revision", spec.Namespace)
	}
	if f.dryRun {
		return printPlan(a, plan, f.output)
	}
	if err := confirmPlan(a, plan, spec, f.yes, upgrade); err != nil {
		return err
	}
	if err := i.Apply(cmd.Context(), plan); err != nil {
		screen.end()
		return session.Explain(err)
	}
	screen.end()
	if err := printTakenOver(a, plan.TakenOver); err != nil {
		return err
	}
	if upgrade {
		return a.Printf("The mesh is at version %s. `ambit check` looks at all of it.\n", plan.To)
	}
	return a.Printf("The mesh is installed. Pods join it by a label:\n  kubectl label namespace <name> istio.io/dataplane-mode=ambient\n")
}

// printIgnored names the values that do nothing.
func printIgnored(a *session.Session, spec *install.Spec) error {
	paths, err := spec.Ignored()
	for _, path := range paths {
		_ = a.Err.Printf("note: %s has no effect: no chart knows it\n", path)
	}
	return err
}

// printTakenOver says how Helm forgets what is not its own any more.
func printTakenOver(a *session.Session, releases []string) error {
	if len(releases) == 0 {
		return nil
	}
	if err := a.Printf("Helm still lists releases whose objects were taken over. To have it forget them:\n"); err != nil {
		return err
	}
	for _, release := range releases {
		namespace, name, _ := strings.Cut(release, "/")
		if err := a.Printf("  kubectl delete secret -n %s -l owner=helm,name=%s\n", namespace, name); err != nil {
			return err
		}
	}
	return nil
}

// printPlan says what would change.
func printPlan(a *session.Session, p *install.Plan, output string) error {
	switch output {
	case session.FormatJSON:
		return a.Encode(session.FormatJSON, p)
	case session.FormatYAML:
		return install.Manifest(a.Out.Under(), p.Parts()) // of our charts and the user's values: as it is
	case "":
	default:
		return fmt.Errorf("output format %q: there are yaml (manifests) and json (changes)", output)
	}
	return errors.Join(printChanges(a, p), a.Printf("nothing was changed: this was a dry run\n"))
}

func printChanges(a *session.Session, p *install.Plan) error {
	for _, c := range p.Changes {
		if c.Action == install.Keep {
			continue
		}
		if err := a.Printf("%s\n", c); err != nil {
			return err
		}
	}
	return a.Printf("%d to create, %d to update, %d to delete, %d unchanged\n",
		p.Count(install.Create), p.Count(install.Update), p.Count(install.Delete), p.Count(install.Keep))
}

func confirmPlan(a *session.Session, p *install.Plan, spec *install.Spec, yes, upgrade bool) error {
	if upgrade || p.Count(install.Delete) > 0 {
		if err := printChanges(a, p); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("Install Ambit %s (profile %s) into namespace %s", p.To, spec.Profile, spec.Namespace)
	if p.From != "" {
		what = fmt.Sprintf("Change Ambit in namespace %s from %s to %s", spec.Namespace, p.From, p.To)
	}
	return confirm(a, what+"?", yes)
}

// confirm asks a person; without one, -y has to say it.
func confirm(a *session.Session, question string, yes bool) error {
	if yes {
		return nil
	}
	if err := a.Printf("%s [y/N] ", question); err != nil {
		return err
	}
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && answer == "" {
		return errors.New("nobody is there to answer: -y says yes beforehand")
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not confirmed, nothing was changed")
}

func uninstallCommand(a *session.Session) *cobra.Command {
	f := &installFlags{}
	var purge bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the mesh out of a cluster",
		Long: `Uninstall takes the pods out of the mesh first, then removes what ` + "`ambit install`" + ` made.
Kinds with their objects, the key of the certificate authority and the roots stay, so that a
mesh that is installed again goes on where this one ended. --purge removes these as well.`,
		Example: `  ambit uninstall
  ambit uninstall --revision canary -y
  ambit uninstall --purge`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if purge && f.revision != "" {
				return errors.New("--purge removes what all revisions share: leave --revision out, or leave --purge out")
			}
			return runUninstall(a, cmd, f, purge)
		},
	}
	f.AddFlags(cmd.Flags())
	f.CompleteFlags(cmd)
	f.runFlags(cmd.Flags())
	cmd.Flags().StringVarP(&f.revision, "revision", "r", "", "`name` of the control plane to remove; all of them without it")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove kinds with every object of them, the key of the certificate authority and the roots as well")
	return cmd
}

func runUninstall(a *session.Session, cmd *cobra.Command, f *installFlags, purge bool) error {
	c, err := f.Client()
	if err != nil {
		return err
	}
	screen := newScreen(a.Out)
	u := &install.Uninstaller{Client: c, Namespace: f.IstioNamespace, Revision: f.revision, Purge: purge, Timeout: f.timeout, Progress: screen.show}
	removal, err := u.Look(cmd.Context())
	if err != nil {
		return session.Explain(err)
	}
	if removal.Empty() {
		return a.Printf("nothing that `ambit install` installed is in namespace %s; what Helm installed is removed by `helm uninstall`\n", f.IstioNamespace)
	}
	for _, o := range removal.Objects {
		if err := a.Printf("delete %s\n", o); err != nil {
			return err
		}
	}
	for _, k := range removal.Kept {
		if err := a.Printf("keep %s\n", k); err != nil {
			return err
		}
	}
	if n := len(removal.Enrolled); n > 0 {
		if err := a.Printf("%d pods are in the mesh (%s): the node agents take them out first, and they speak plaintext from then on\n", n, some(removal.Enrolled)); err != nil {
			return err
		}
	}
	if f.dryRun {
		return a.Printf("nothing was removed: this was a dry run\n")
	}
	question := "Remove these objects?"
	if purge {
		question = "Remove these objects, every policy and route that users made of these kinds, and the mesh's root key?"
	}
	if err := confirm(a, question, f.yes); err != nil {
		return err
	}
	err = u.Remove(cmd.Context(), removal)
	screen.end()
	if err != nil {
		return session.Explain(err)
	}
	if f.revision != "" {
		return a.Printf("Revision %s is removed.\n", f.revision)
	}
	return a.Printf("The mesh is removed.\n")
}

// some names a few of many.
func some(names []string) string {
	const few = 3
	if len(names) > few {
		return strings.Join(names[:few], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

func manifestCommand(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "manifest", Short: "See the objects that an installation is made of"}
	f := &installFlags{}
	var kubeVersion string
	generate := &cobra.Command{
		Use:   "generate",
		Short: "Print the objects as YAML, without asking a cluster",
		Example: `  ambit manifest generate > mesh.yaml
  ambit manifest generate --set components.ztunnel.enabled=false | kubectl apply --server-side -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := f.spec(cmd, a.In)
			if err != nil {
				return err
			}
			if err := printIgnored(a, spec); err != nil {
				return err
			}
			parts, err := install.Render(spec, install.RenderOptions{Version: version.Get().Version, KubeVersion: kubeVersion})
			if err != nil {
				return err
			}
			return install.Manifest(a.Out.Under(), parts)
		},
	}
	f.specFlags(generate.Flags())
	generate.Flags().StringVarP(&f.IstioNamespace, "istioNamespace", "i", "", "namespace of the mesh's own pods")
	generate.Flags().StringVar(&kubeVersion, "kube-version", "", "`version` of Kubernetes that the objects are for")
	cmd.AddCommand(generate)
	return cmd
}

// screen shows progress: on a terminal in lines that are written over, else in
// one line per piece of news.
type screen struct {
	out     *printer.Printer
	tty     bool
	pending string // the step whose line is open
	last    map[string]string
}

func newScreen(out *printer.Printer) *screen {
	return &screen{out: out, tty: isTerminal(out.Under()), last: map[string]string{}}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

var marks = map[install.State]string{install.Working: "…", install.Done: "✔", install.Failed: "✘"}

// show writes one piece of news. What cannot be written is not worth failing an
// installation for.
func (s *screen) show(e install.Event) {
	if s.tty {
		s.showTTY(e)
		return
	}
	// Every object that is applied is too much for a log; what is waited for is
	// not.
	if e.State == install.Working && strings.HasPrefix(e.Text, "applying ") {
		e.Text = "applying"
	}
	if s.last[e.Step] == e.Text {
		return
	}
	s.last[e.Step] = e.Text
	_ = s.out.Printf("%s %s: %s\n", marks[e.State], e.Step, printer.Block(strings.ReplaceAll(e.Text, "\n", "\n    ")))
}

func (s *screen) showTTY(e install.Event) {
	const rewrite = "\r\033[K"
	if s.pending != "" {
		_, _ = io.WriteString(s.out.Under(), rewrite)
	}
	if e.State == install.Working {
		line, _, _ := strings.Cut(e.Text, "\n")
		_ = s.out.Printf("%s %s: %s", marks[e.State], e.Step, shorten(line, 110-len(e.Step)))
		s.pending = e.Step
		return
	}
	_ = s.out.Printf("%s %s: %s\n", marks[e.State], e.Step, printer.Block(e.Text))
	s.pending = ""
}

// shorten keeps a line within the width of a terminal: one that wraps cannot be
// written over.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// end closes an open line.
func (s *screen) end() {
	if s.tty && s.pending != "" {
		_, _ = io.WriteString(s.out, "\n")
		s.pending = ""
	}
}
