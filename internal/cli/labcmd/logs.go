package labcmd

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func labLogs(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
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
			return printLog(ctx, a, path, follow)
		},
	}
	namespaceFlag(cmd, &namespace)
	cmd.Flags().StringVarP(&container, "container", "c", "", "container (default: the only one)")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until ^C")
	cmd.ValidArgsFunction = completeComponents(a, true)
	completeFlag(a, cmd, "namespace", namespaces)
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

func printLog(ctx context.Context, a *session.Session, path string, follow bool) error {
	if old, err := os.Open(path + ".1"); err == nil {
		_, _ = io.Copy(a.Out, old)
		_ = old.Close()
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	for {
		if _, err := io.Copy(a.Out, f); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond): // a log is a file; there is nothing to be woken by
		}
	}
}
