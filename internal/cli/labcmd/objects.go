package labcmd

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
)

func labApply(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
			if err != nil {
				return err
			}
			said, err := l.ApplyPaths(cmd.Context(), files...)
			return errors.Join(lines(a, said), err)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or directory of Kubernetes YAML (may be given several times)")
	return cmd
}

func labDelete(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
			if err != nil {
				return err
			}
			if len(files) > 0 {
				said, err := l.DeletePaths(cmd.Context(), files...)
				return errors.Join(lines(a, said), err)
			}
			if err := l.Delete(cmd.Context(), kind, namespace, name); err != nil {
				return err
			}
			return a.Printf("%s/%s deleted\n", kind, name)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file or directory with the objects")
	namespaceFlag(cmd, &namespace)
	return cmd
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

func labLabel(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
			if err != nil {
				return err
			}
			if err := l.Label(cmd.Context(), args[0], namespace, args[1], labels); err != nil {
				return err
			}
			return a.Printf("%s/%s labelled\n", args[0], args[1])
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
