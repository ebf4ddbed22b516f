package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
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

func (a *app) labUp() *cobra.Command {
	var cfg lab.Config
	var plaintext, rootless bool
	cmd := &cobra.Command{
		Use:   "up -f FILE|DIR",
		Short: "Build a lab and run it until ^C, or in the background",
		Example: `  ambit lab up -f examples/shop --nodes 2
  ambit lab up -f pods.yaml --nodes 3 --detach
  ambit lab up -f pods.yaml --nodes 2 --ztunnel node2=/path/to/another/ztunnel`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringArrayVarP(&cfg.Manifests, "filename", "f", nil, "file or directory of Kubernetes YAML (may be given several times)")
	f.IntVar(&cfg.Nodes, "nodes", 2, "number of nodes")
	f.BoolVarP(&cfg.Detach, "detach", "d", false, "run in the background")
	f.StringVar(&cfg.BinDir, "bin", "", "directory of ambitd, ztunnel and ambit-cni (default: beside this program)")
	f.StringToStringVar(&cfg.PeerZtunnel, "ztunnel", nil, "another ztunnel for a node, as NODE=PATH")
	f.BoolVar(&plaintext, "plaintext", false, "no mesh: only nodes, pods and services")
	f.BoolVar(&rootless, "rootless", false, "use a user namespace even as root")
	f.DurationVar(&cfg.ReadyTimeout, "timeout", time.Minute, "how long to wait for components and pods")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg.Name, cfg.StateDir = a.labName, a.dir()
		cfg.Mesh, cfg.UserNamespace = !plaintext, rootless
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		began := time.Now()
		l, err := lab.Start(ctx, cfg)
		if err != nil {
			return err
		}
		return a.up(ctx, l, cfg, time.Since(began))
	}
	return cmd
}

// up tells about a new lab, and stays with it unless it runs in the background.
func (a *app) up(ctx context.Context, l *lab.Lab, cfg lab.Config, took time.Duration) error {
	st, err := l.Status(ctx)
	if err != nil {
		_ = l.Close()
		return err
	}
	err = a.printf("Lab %q is up after %.1f s: %d nodes, %d pods, %d components.\n\nNext:\n  ambit lab status%s\n",
		cfg.Name, took.Seconds(), len(st.Nodes), len(st.Pods), len(st.Components), a.nameArg())
	if i := slices.IndexFunc(st.Pods, func(p lab.PodStatus) bool { return p.Ready }); i >= 0 && err == nil {
		err = a.printf("  ambit lab shell %s -n %s%s\n", st.Pods[i].Name, st.Pods[i].Namespace, a.nameArg())
	}
	if cfg.Detach || err != nil {
		return err
	}
	if err := a.printf("\nIt runs until ^C.\n"); err != nil {
		return errors.Join(err, l.Close())
	}
	a.follow(ctx, l)
	return l.Close()
}

// follow prints what happens in a lab until ctx ends.
func (a *app) follow(ctx context.Context, l *lab.Lab) {
	last := time.Now()
	_, _ = l.Wait(ctx, func(s *lab.Status) bool {
		for _, e := range s.Events {
			if e.Time.After(last) {
				last = e.Time
				_ = a.printf("%s  %s: %s\n", e.Time.Format(time.TimeOnly), e.Object, e.Message)
			}
		}
		return false
	})
}

// nameArg repeats a name that is not the default in suggestions.
func (a *app) nameArg() string {
	if a.stateDir != "" {
		return " --state-dir " + a.stateDir
	}
	if a.labName != "demo" && os.Getenv("AMBIT_LAB") == "" {
		return " --name " + a.labName
	}
	return ""
}

func (a *app) labDown() *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End a lab and remove all of it, also after a crash",
		Example: "  ambit lab down\n  ambit lab down --name other",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := os.Stat(a.dir()); errors.Is(err, fs.ErrNotExist) {
				return a.printf("There is no lab in %s: nothing to end.\n", a.dir())
			}
			if err := lab.Down(a.dir()); err != nil {
				return err
			}
			return a.printf("Lab %q is down.\n", a.labName)
		},
	}
}

func (a *app) labApply() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:     "apply -f FILE|DIR",
		Short:   "Create or change objects, all of them or none",
		Example: "  ambit lab apply -f examples/shop/policies\n  ambit status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errors.New("say what to apply: -f FILE or -f DIR")
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			said, err := l.ApplyPaths(cmd.Context(), files...)
			return errors.Join(a.lines(said), err)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or directory of Kubernetes YAML (may be given several times)")
	return cmd
}

func (a *app) lines(said []string) error {
	for _, s := range said {
		if err := a.printf("%s\n", s); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) labDelete() *cobra.Command {
	var files []string
	var namespace string
	cmd := &cobra.Command{
		Use:     "delete KIND NAME | -f FILE|DIR",
		Short:   "Delete objects",
		Example: "  ambit lab delete pod client -n shop\n  ambit lab delete -f examples/shop/policies",
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var kind, name string
			var err error
			if len(files) == 0 {
				if kind, name, err = kindAndName(args); err != nil {
					return err
				}
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			if len(files) > 0 {
				said, err := l.DeletePaths(cmd.Context(), files...)
				return errors.Join(a.lines(said), err)
			}
			if err := l.Delete(cmd.Context(), kind, namespace, name); err != nil {
				return err
			}
			return a.printf("%s/%s deleted\n", kind, name)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or directory with the objects")
	namespaceFlag(cmd, &namespace)
	return cmd
}

func namespaceFlag(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVarP(into, "namespace", "n", "default", "namespace")
}

func kindAndName(args []string) (kind, name string, err error) {
	if len(args) > 0 {
		if kind, name, ok := strings.Cut(args[0], "/"); ok {
			return kind, name, nil
		}
	}
	if len(args) < 2 {
		return "", "", errors.New("say which object: KIND NAME or KIND/NAME")
	}
	return args[0], args[1], nil
}

func (a *app) labLabel() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "label KIND NAME KEY=VALUE… KEY-…",
		Short: "Set labels (KEY=VALUE) or remove them (KEY-)",
		Example: `  # enrol all pods of a namespace, while they run
  ambit lab label namespace shop istio.io/dataplane-mode=ambient
  # and back
  ambit lab label namespace shop istio.io/dataplane-mode-`,
		Args: cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			labels, err := parseLabels(args[2:])
			if err != nil {
				return err
			}
			l, err := a.attach()
			if err != nil {
				return err
			}
			if err := l.Label(cmd.Context(), args[0], namespace, args[1], labels); err != nil {
				return err
			}
			return a.printf("%s/%s labelled\n", args[0], args[1])
		},
	}
	namespaceFlag(cmd, &namespace)
	return cmd
}

func parseLabels(args []string) (map[string]*string, error) {
	labels := map[string]*string{}
	for _, arg := range args {
		k, v, set := strings.Cut(arg, "=")
		remove := !set && strings.HasSuffix(arg, "-")
		switch {
		case set && k != "":
			labels[k] = &v
		case remove && len(arg) > 1:
			labels[strings.TrimSuffix(arg, "-")] = nil
		default:
			return nil, fmt.Errorf("label %q: write KEY=VALUE, or KEY- to remove it", arg)
		}
	}
	return labels, nil
}

func (a *app) labStatus() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show nodes, components, pods and services",
		Example: "  ambit lab status\n  ambit lab status -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			st, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if output != formatTable {
				return a.encode(output, st)
			}
			return a.printStatus(st)
		},
	}
	outputFlag(cmd, &output, formatTable)
	return cmd
}

func (a *app) printStatus(st *lab.Status) error {
	kind := "root"
	if st.Unprivileged {
		kind = "in a user namespace"
	}
	if err := a.printf("Lab %s (%s, pid %d, %s)\n\n", st.Name, kind, st.PID, st.StateDir); err != nil {
		return err
	}
	var rows [][]string
	for _, n := range st.Nodes {
		rows = append(rows, []string{n.Name, strings.Join(n.IPs, ",")})
	}
	err := a.table(3, []string{"NODE", "ADDRESSES"}, rows)
	rows = nil
	for _, c := range st.Components {
		rows = append(rows, []string{c.Name, c.State, yesNo(c.Ready), fmt.Sprint(c.Restarts), mebibytes(c.RSS), c.Message})
	}
	if len(rows) > 0 {
		err = errors.Join(err, a.printf("\n"), a.table(3, []string{"COMPONENT", "STATE", "READY", "RESTARTS", "MEMORY", "MESSAGE"}, rows))
	}
	rows = nil
	for _, p := range st.Pods {
		rows = append(rows, []string{p.Namespace, p.Name, p.Phase, yesNo(p.Ready), fmt.Sprint(p.Restarts), mebibytes(p.RSS), p.Node, strings.Join(p.IPs, ","), yesNo(p.Captured), p.Message})
	}
	err = errors.Join(err, a.printf("\n"), a.table(3, []string{"NAMESPACE", "POD", "PHASE", "READY", "RESTARTS", "MEMORY", "NODE", "ADDRESSES", "MESH", "MESSAGE"}, rows))
	rows = nil
	for _, s := range st.Services {
		rows = append(rows, []string{s.Namespace, s.Name, orNone(strings.Join(s.IPs, ",")), fmt.Sprint(s.Endpoints)})
	}
	if len(rows) > 0 {
		err = errors.Join(err, a.printf("\n"), a.table(3, []string{"NAMESPACE", "SERVICE", "ADDRESSES", "ENDPOINTS"}, rows))
	}
	return err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func mebibytes(n int64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// place works out what a user means: POD, NAMESPACE/POD, a node, or lan.
func place(st *lab.Status, name, namespace string) (lab.Where, error) {
	if name == "lan" {
		return lab.LAN, nil
	}
	ns, pod, ok := strings.Cut(name, "/")
	switch {
	case ok && (ns == "node" || ns == "ztunnel"):
		return lab.Where(name), nil
	case ok:
		return lab.InPod(ns, pod), nil
	}
	if _, found := st.Pod(namespace, name); found {
		return lab.InPod(namespace, name), nil
	}
	for _, n := range st.Nodes {
		if n.Name == name {
			return lab.InNode(name), nil
		}
	}
	// Without a namespace, a name that is unique will do.
	var matches []lab.PodStatus
	for _, p := range st.Pods {
		if p.Name == name {
			matches = append(matches, p)
		}
	}
	if len(matches) == 1 && namespace == "default" {
		return lab.InPod(matches[0].Namespace, name), nil
	}
	err := fmt.Errorf("no pod %q in namespace %q: `ambit lab status` lists them", name, namespace)
	if len(matches) > 0 {
		err = fmt.Errorf("%w; say with -n which namespace: there is one in %s", err, matches[0].Namespace)
	}
	return "", err
}

func (a *app) labExec() *cobra.Command {
	var namespace string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec POD|NODE|ztunnel/NODE|lan -- COMMAND",
		Short: "Run a program in a pod, on a node, or between the nodes",
		Long: `Runs a program of this machine in the namespaces of a pod, in the network namespace
of a node (where ambit-cni runs), of a node's ztunnel, or in the one between the
nodes (lan, where ambitd runs). Signals are passed on; the exit code is the program's.`,
		Example: `  ambit lab exec client -n shop -- curl -s http://web
  ambit lab exec ztunnel/node1 -- curl -s localhost:15020/metrics
  ambit lab exec -it client -n shop -- bash
  ambit lab exec node1 -- ip route`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), args[0], namespace, stdin, tty, args[1:])
		},
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	cmd.ValidArgsFunction = a.completePods
	a.completeFlag(cmd, "namespace", namespaces)
	return cmd
}

func (a *app) labShell() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:     "shell POD|NODE|lan",
		Short:   "Open a shell in a pod, on a node, or between the nodes",
		Example: "  ambit lab shell client -n shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			shell := os.Getenv("SHELL")
			if shell == "" {
				shell = "/bin/sh"
			}
			return a.exec(cmd.Context(), args[0], namespace, true, true, []string{shell})
		},
	}
	namespaceFlag(cmd, &namespace)
	cmd.ValidArgsFunction = a.completePods
	a.completeFlag(cmd, "namespace", namespaces)
	return cmd
}

func (a *app) completePods(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	l, err := a.attach()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := l.Status(cmd.Context())
	if err != nil {
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

// completeComponents lists components, and pods as well when they have logs.
func (a *app) completeComponents(pods bool) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var out []string
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		st, err := a.status(cmd.Context())
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
func (a *app) completeFlag(cmd *cobra.Command, flag string, of func(*lab.Status) []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		st, err := a.status(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return of(st), cobra.ShellCompDirectiveNoFileComp
	})
}

func nodeNames(st *lab.Status) []string {
	var out []string
	for _, n := range st.Nodes {
		out = append(out, n.Name)
	}
	return out
}

func namespaces(st *lab.Status) []string {
	var out []string
	for _, p := range st.Pods {
		out = append(out, p.Namespace)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// status asks the lab about itself.
func (a *app) status(ctx context.Context) (*lab.Status, error) {
	l, err := a.attach()
	if err != nil {
		return nil, err
	}
	return l.Status(ctx)
}

func (a *app) exec(ctx context.Context, target, namespace string, stdin, tty bool, argv []string) error {
	l, err := a.attach()
	if err != nil {
		return err
	}
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	w, err := place(st, target, namespace)
	if err != nil {
		return err
	}
	var code int
	if tty {
		code, err = l.Interactive(ctx, w, argv...)
	} else {
		var in *os.File
		if stdin {
			in = os.Stdin
		}
		code, err = a.execPlain(ctx, l, w, in, argv)
	}
	if err == nil && code != 0 {
		return codeError(code)
	}
	return err
}

// execPlain passes signals on to the program.
func (a *app) execPlain(ctx context.Context, l *lab.Lab, w lab.Where, in *os.File, argv []string) (int, error) {
	cmd, err := l.Exec(ctx, w, lab.ExecOptions{Stdin: in, Stdout: os.Stdout, Stderr: os.Stderr}, argv...)
	if err != nil {
		return -1, err
	}
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer func() { signal.Stop(sigs); close(sigs) }()
	go func() {
		for s := range sigs {
			if n, ok := s.(syscall.Signal); ok {
				_ = cmd.Signal(n)
			}
		}
	}()
	return cmd.Wait()
}

func (a *app) labLogs() *cobra.Command {
	var namespace, container string
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs POD|COMPONENT",
		Short: "Print what a pod or a component has printed",
		Example: `  ambit lab logs client -n shop
  ambit lab logs ztunnel/node1 -f
  ambit lab logs ambitd`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			st, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			path := l.LogPath(args[0])
			if _, ok := st.Component(args[0]); !ok && args[0] != "lab" {
				w, err := podOf(st, args[0], namespace)
				if err != nil {
					return err
				}
				if path, err = podLog(l, w, container); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			return a.printLog(ctx, path, follow)
		},
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().StringVarP(&container, "container", "c", "", "container (default: the only one)")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until ^C")
	cmd.ValidArgsFunction = a.completeComponents(true)
	a.completeFlag(cmd, "namespace", namespaces)
	return cmd
}

// podOf is place for a pod that exists; the error names the components, which
// have logs as well.
func podOf(st *lab.Status, name, namespace string) (lab.Where, error) {
	w, err := place(st, name, namespace)
	ns, pod, ok := strings.Cut(strings.TrimPrefix(string(w), "pod/"), "/")
	if _, found := st.Pod(ns, pod); err == nil && ok && found {
		return w, nil
	}
	names := []string{"lab"}
	for _, c := range st.Components {
		names = append(names, c.Name)
	}
	return "", fmt.Errorf("no pod and no component %q: the components are %s; `ambit lab status` lists the pods", name, strings.Join(names, ", "))
}

// podLog finds the log of a pod's container.
func podLog(l *lab.Lab, w lab.Where, container string) (string, error) {
	if container != "" {
		return l.LogPath(string(w) + "/" + container), nil
	}
	paths, err := filepath.Glob(strings.TrimSuffix(l.LogPath(string(w)), ".log") + "_*.log")
	if err != nil || len(paths) == 0 {
		return "", fmt.Errorf("%s has printed nothing", w)
	}
	if len(paths) > 1 {
		return "", fmt.Errorf("%s has %d containers: say which with -c", w, len(paths))
	}
	return paths[0], nil
}

func (a *app) printLog(ctx context.Context, path string, follow bool) error {
	if old, err := os.Open(path + ".1"); err == nil {
		_, _ = io.Copy(a.out, old)
		_ = old.Close()
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	for {
		if _, err := io.Copy(a.out, f); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond): // a log is a file; there is nothing to be woken by
		}
	}
}

func (a *app) labRestart() *cobra.Command {
	var node string
	var kill bool
	cmd := &cobra.Command{
		Use:   "restart COMPONENT",
		Short: "Replace a component (ambitd, ztunnel, ambit-cni) by a new process",
		Long: `Replaces a component by a new process and waits until it is ready. A ztunnel is
handed over: the next one starts beside it, and only when that is ready is the
old one told to end; it keeps its connections while they last.`,
		Example: "  ambit lab restart ztunnel --node node1\n  ambit lab restart ambitd --kill",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			name := args[0]
			if node != "" {
				name += "/" + node
			} else if name == "ztunnel" || name == "ambit-cni" {
				return fmt.Errorf("%s runs on every node: say which with --node (or %s/NODE)", name, name)
			}
			mode := lab.RestartGraceful
			if kill {
				mode = lab.RestartKill
			}
			began := time.Now()
			if err := l.Restart(cmd.Context(), name, mode); err != nil {
				return err
			}
			return a.printf("%s replaced in %.1f s\n", name, time.Since(began).Seconds())
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node, for ztunnel and ambit-cni")
	cmd.Flags().BoolVar(&kill, "kill", false, "SIGKILL first, instead of a hand-over")
	cmd.ValidArgsFunction = a.completeComponents(false)
	a.completeFlag(cmd, "node", nodeNames)
	return cmd
}

func (a *app) labTrace() *cobra.Command {
	var duration time.Duration
	var mark, output string
	var all bool
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Listen between the nodes: what can be read there?",
		Long: `Listens on the links between the nodes for a while and says of every flow what an
eavesdropper learns: hbone (a tunnel of the mesh), tls, or plaintext, with the
first bytes that could be read.`,
		Example: "  ambit lab trace --for 5s\n  ambit lab trace --mark password -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := a.attach()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
			defer stop()
			c, err := l.Capture(ctx, mark)
			if err != nil {
				return err
			}
			if duration > 0 {
				t := time.NewTimer(duration)
				defer t.Stop()
				select {
				case <-t.C:
				case <-ctx.Done():
				}
			} else {
				<-ctx.Done()
			}
			return a.printTrace(c.Stop(), output, all)
		},
	}
	cmd.Flags().DurationVar(&duration, "for", 10*time.Second, "how long to listen; 0 until ^C")
	cmd.Flags().StringVar(&mark, "mark", "", "count packets in which this text can be read")
	cmd.Flags().BoolVar(&all, "all", false, "also the mesh's own flows, and those without payload")
	outputFlag(cmd, &output, formatTable)
	return cmd
}

func (a *app) printTrace(r trace.Report, output string, all bool) error {
	if !all {
		r.Flows = r.Of(func(f trace.Flow) bool { return f.Kind != trace.Silent && f.Kind != trace.TLS })
	}
	if output != formatTable {
		return a.encode(output, r)
	}
	rows := make([][]string, 0, len(r.Flows))
	for _, f := range r.Flows {
		rows = append(rows, []string{f.Protocol, f.Client.String(), f.Server.String(), string(f.Kind), yesNo(f.Plaintext), fmt.Sprint(f.Bytes), f.Excerpt})
	}
	err := a.table(3, []string{"PROTOCOL", "CLIENT", "SERVER", "KIND", "PLAINTEXT", "BYTES", "READABLE"}, rows)
	err = errors.Join(err, a.printf("\n%s\n", trace.Summary(r.Flows)))
	if r.Dropped > 0 || r.Forgotten > 0 {
		err = errors.Join(err, a.printf("incomplete: %d frames were lost, %d belong to flows beyond the bound\n", r.Dropped, r.Forgotten))
	}
	return err
}
