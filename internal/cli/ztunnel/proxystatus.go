package ztunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// follower is a client of ambitd, or of Istio's control plane.
type follower struct{ admin.Follower }

// UnmarshalJSON reads the answer of either.
func (s *follower) UnmarshalJSON(b []byte) error {
	var istio struct {
		Proxy     string                     `json:"proxy"`
		Cluster   string                     `json:"cluster_id"`
		Version   string                     `json:"istio_version"`
		Resources map[string]json.RawMessage `json:"resources"` // by type
	}
	if err := errors.Join(json.Unmarshal(b, &s.Follower), json.Unmarshal(b, &istio)); err != nil || istio.Proxy == "" {
		return err
	}
	s.Follower = admin.Follower{Name: istio.Proxy, Cluster: istio.Cluster, Version: istio.Version}
	for url := range istio.Resources {
		s.Types = append(s.Types, url[strings.LastIndex(url, ".")+1:])
	}
	slices.Sort(s.Types)
	return nil
}

// answer is what one ambitd reports of its clients. Each keeps its original text, which
// JSON output repeats with the name of the ambitd.
type answer struct {
	ambitd  string
	clients []dump.Element[follower]
}

// ProxyStatus returns `ambit proxy-status`.
func ProxyStatus(a *session.Session) *cobra.Command {
	c := &session.AdminClient{Session: a}
	var output string
	cmd := &cobra.Command{
		Use:     "proxy-status",
		Aliases: []string{"ps"},
		Short:   "Show the proxies that are connected to ambitd",
		Long: `Shows the proxies that are connected to ambitd, and what each has subscribed to.
In a cluster every ambitd pod is asked, since a proxy is connected to one of them.`,
		Example: `  ambit proxy-status
  ambit proxy-status --context prod -o json
  ambit proxy-status --address localhost:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, gone := syncz(c, cmd)
			if len(list) == 0 && gone != nil {
				return gone
			}
			return errors.Join(printProxies(a, list, output), gone)
		},
	}
	c.Flags(cmd)
	session.OutputFlag(cmd, &output, session.FormatTable)
	return cmd
}

// syncz asks every ambitd. What some said counts though others failed.
func syncz(c *session.AdminClient, cmd *cobra.Command) ([]answer, error) {
	const path = admin.PathFollowers
	if !c.Cluster() {
		b, err := c.Get(cmd.Context(), path)
		if err != nil {
			return nil, err
		}
		one, err := parseSyncz("ambitd", b)
		return []answer{one}, err
	}
	cl, pods, err := c.Ambitds(cmd.Context())
	if err != nil {
		return nil, err
	}
	var out []answer
	for _, said := range session.AskAll(cmd.Context(), cl, pods, session.PartAmbitd.Admin, path) {
		one, parseErr := parseSyncz(said.Pod.Name, said.Body)
		if problem := errors.Join(said.Err, parseErr); said.Err != nil || parseErr != nil {
			err = errors.Join(err, problem)
			continue
		}
		out = append(out, one)
	}
	return out, err
}

func parseSyncz(ambitd string, b []byte) (answer, error) {
	s := answer{ambitd: ambitd}
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s.clients); err != nil {
		return s, fmt.Errorf("the answer of %s: %w", ambitd, err)
	}
	return s, nil
}

func printProxies(a *session.Session, list []answer, output string) error {
	all := []json.RawMessage{}
	var rows [][]string
	for _, from := range list {
		for _, e := range from.clients {
			raw, err := with(e.Raw, "istiod", from.ambitd)
			if err != nil {
				return err
			}
			all = append(all, raw)
			name := e.V.Name
			if name == "" || name == "." { // it was started without POD_NAME
				name = e.V.Peer
			}
			rows = append(rows, []string{name, session.OrNone(e.V.Cluster), from.ambitd, session.OrNone(e.V.Version), fmt.Sprintf("%d (%s)", len(e.V.Types), strings.Join(e.V.Types, ","))})
		}
	}
	if output != session.FormatTable {
		return a.Encode(output, all)
	}
	return a.Table(session.Wide, []string{"NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"}, rows)
}

// with adds a field to a JSON object.
func with(object json.RawMessage, field, value string) (json.RawMessage, error) {
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal(object, &m); err != nil {
		return nil, err
	}
	m[field], _ = json.Marshal(value) // a string
	return json.Marshal(m)
}
