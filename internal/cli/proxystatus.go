package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// clientStatus is one of /debug/syncz.
type clientStatus struct {
	Name    string   `json:"name"`
	Cluster string   `json:"cluster"`
	Version string   `json:"version"`
	Peer    string   `json:"peer"`
	Types   []string `json:"types"`
}

func (a *app) proxyStatusCommand() *cobra.Command {
	c := &adminClient{app: a}
	var output string
	cmd := &cobra.Command{
		Use:     "proxy-status",
		Aliases: []string{"ps"},
		Short:   "Show the proxies that are connected to ambitd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := c.get(cmd.Context(), "/debug/syncz")
			if err != nil {
				return err
			}
			if output != formatTable {
				return a.encode(output, json.RawMessage(b))
			}
			var list []clientStatus
			if err := json.Unmarshal(b, &list); err != nil {
				return fmt.Errorf("ambitd's answer: %w", err)
			}
			var rows [][]string
			for _, s := range list {
				name := s.Name
				if name == "" || name == "." { // it was started without POD_NAME
					name = s.Peer
				}
				rows = append(rows, []string{name, orNone(s.Cluster), "ambitd", orNone(s.Version), fmt.Sprintf("%d (%s)", len(s.Types), strings.Join(s.Types, ","))})
			}
			return a.table(wide, []string{"NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"}, rows)
		},
	}
	c.flags(cmd)
	outputFlag(cmd, &output, formatTable)
	return cmd
}
