package labcmd

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func labExec(a *session.Session) *cobra.Command {
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
			return exec(cmd.Context(), a, args[0], namespace, stdin, tty, args[1:])
		},
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	completePods(a, cmd)
	completeFlag(a, cmd, "namespace", namespaces)
	return cmd
}

func labShell(a *session.Session) *cobra.Command {
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
			return exec(cmd.Context(), a, args[0], namespace, true, true, []string{shell})
		},
	}
	namespaceFlag(cmd, &namespace)
	completePods(a, cmd)
	completeFlag(a, cmd, "namespace", namespaces)
	return cmd
}

func exec(ctx context.Context, a *session.Session, target, namespace string, stdin, tty bool, argv []string) error {
	l, err := a.Attach()
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
		code, err = execPlain(ctx, a, l, w, in, argv)
	}
	if err == nil && code != 0 {
		return session.CodeError(code)
	}
	return err
}

// execPlain passes signals on to the program.
func execPlain(ctx context.Context, a *session.Session, l *lab.Lab, w lab.Where, in *os.File, argv []string) (int, error) {
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
