package labcmd

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab"
)

func labRestart(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
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
			return a.Printf("%s replaced in %.1f s\n", name, time.Since(began).Seconds())
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node, for ztunnel and ambit-cni")
	cmd.Flags().BoolVar(&kill, "kill", false, "SIGKILL first, instead of a hand-over")
	cmd.ValidArgsFunction = completeComponents(a, false)
	completeFlag(a, cmd, "node", session.NodeNames)
	return cmd
}
