package labcmd

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/lab/trace"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

func labTrace(a *session.Session) *cobra.Command {
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
			l, err := a.Attach()
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
			return printTrace(a, c.Stop(), output, all)
		},
	}
	cmd.Flags().DurationVar(&duration, "for", 10*time.Second, "how long to listen; 0 until ^C")
	cmd.Flags().StringVar(&mark, "mark", "", "count packets in which this text can be read")
	cmd.Flags().BoolVar(&all, "all", false, "also the mesh's own flows, and those without payload")
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

func printTrace(a *session.Session, r trace.Report, output string, all bool) error {
	if !all {
		r.Flows = r.Of(func(f trace.Flow) bool { return f.Kind != trace.Silent && f.Kind != trace.TLS })
	}
	if output != session.FormatTable {
		return a.Encode(output, r)
	}
	rows := make([][]string, 0, len(r.Flows))
	for _, f := range r.Flows {
		rows = append(rows, []string{f.Protocol, f.Client.String(), f.Server.String(), string(f.Kind), yesNo(f.Plaintext), fmt.Sprint(f.Bytes), f.Excerpt})
	}
	err := a.Table(3, []string{"PROTOCOL", "CLIENT", "SERVER", "KIND", "PLAINTEXT", "BYTES", "READABLE"}, rows)
	err = errors.Join(err, a.Printf("\n%s\n", printer.Block(trace.Summary(r.Flows))))
	if r.Dropped > 0 || r.Forgotten > 0 {
		err = errors.Join(err, a.Printf("incomplete: %d frames were lost, %d belong to flows beyond the bound\n", r.Dropped, r.Forgotten))
	}
	return err
}
