package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// caStages says what a stage is, what it waits for, and what comes next.
var caStages = map[admin.Stage]struct{ what, next string }{
	admin.Steady: {
		"One root signs. Nothing is under way.",
		"`ambit ca rotate` introduces a new root.",
	},
	admin.NewRootDistributed: {
		"1 of 2: the old root signs, and the mesh learns to trust the new one beside it.\nIt lasts until every certificate has been renewed whose owner knows the old root only.",
		"the new root signs",
	},
	admin.SigningByNew: {
		"2 of 2: the new root signs, and the old one is still trusted.\nIt lasts until every certificate that the old root signed has been renewed or has expired.",
		"the old root is not trusted any more, and the rotation is over",
	},
}

func caCommand(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Show the certificate authority of the mesh, and change its root",
		Long: `The authority of the mesh lives in ambitd. Its root changes in two stages, each of
which waits for certificates to be renewed, so that at no time one half of the
mesh refuses the other. Traffic goes on throughout; nothing is restarted.`,
	}
	cmd.AddCommand(caStatusCommand(a), caRotateCommand(a))
	return cmd
}

func caStatusCommand(a *session.Session) *cobra.Command {
	c := &session.AdminClient{Session: a}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show who signs, and where a change of the root stands",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := c.Get(cmd.Context(), admin.PathAuthority)
			if err != nil {
				return err
			}
			return printCA(a, b, output, time.Now())
		},
	}
	c.Flags(cmd)
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

func caRotateCommand(a *session.Session) *cobra.Command {
	c := &session.AdminClient{Session: a}
	var output string
	var hurry bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Introduce a new root, in stages; with --hurry, end the present stage now",
		Long: `Introduces a new root. The change goes on by itself, also over restarts of ambitd;
ambit ca status says where it stands and when the next stage comes.

--hurry is for an emergency, such as a stolen key: it does not wait. Proxies that
have not renewed their certificates are refused by others until they do. Without a
rotation under way it makes a new root that signs at once; given again, it ends
the trust in the old root.

A CA that is plugged in rotates by its files: put the new ones into its directory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := admin.PathRotate
			if hurry {
				path += "?hurry"
			}
			b, err := c.Post(cmd.Context(), path)
			if err != nil {
				return err
			}
			return printCA(a, b, output, time.Now())
		},
	}
	c.Flags(cmd)
	session.OutputFlag(cmd, &output, session.FormatTable)
	cmd.Flags().BoolVar(&hurry, "hurry", false, "end the wait of the present stage; may break handshakes")
	return cmd
}

func printCA(a *session.Session, b []byte, output string, now time.Time) error {
	if output != session.FormatTable {
		return a.Encode(output, json.RawMessage(b))
	}
	var s admin.Authority
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("ambitd's answer: %w", err)
	}
	kind := "self-signed"
	if s.PluggedIn {
		kind = "plugged in"
	}
	rows := [][]string{
		{"Signer:", s.Signer + " (" + kind + ")"},
		{"Expires:", when(s.SignerExpires, now)},
		{"Trusted roots:", strconv.Itoa(s.Roots)},
		{"Stage:", string(s.Stage)},
	}
	if s.NextSigner != "" {
		rows = append(rows, []string{"Next signer:", s.NextSigner})
	}
	if s.PluginProblem != "" {
		rows = append(rows, []string{"Plug-in:", s.PluginProblem})
	}
	if err := a.Table(session.Narrow, rows[0], rows[1:]); err != nil {
		return err
	}
	text, known := caStages[s.Stage]
	switch {
	case !known:
		return nil
	case s.Stage == admin.Steady && s.PluggedIn:
		return a.Printf("\n%s\nTo rotate, put new files into the CA's directory.\n", printer.Block(text.what))
	case s.Stage == admin.Steady:
		return a.Printf("\n%s\n%s\n", printer.Block(text.what), text.next)
	case !now.Before(s.Until):
		return a.Printf("\n%s\nNext, in a moment: %s.\n", printer.Block(text.what), text.next)
	}
	return a.Printf("\n%s\nNext, at %s: %s.\n", printer.Block(text.what), when(s.Until, now), text.next)
}

// when is a time for people: absolute, and how far away.
func when(t, now time.Time) string {
	d := t.Sub(now)
	s := t.UTC().Format(time.RFC3339)
	switch {
	case d < 0:
		return s + " (over)"
	case d < time.Minute:
		return fmt.Sprintf("%s (in %s)", s, d.Round(time.Second))
	case d < 48*time.Hour:
		return fmt.Sprintf("%s (in %s)", s, strings.TrimSuffix(d.Round(time.Minute).String(), "0s"))
	}
	return fmt.Sprintf("%s (in %d days)", s, int(d.Hours()/24))
}
