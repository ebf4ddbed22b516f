package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// UnmarshalJSON understands what ambitd says, and what Istio's control plane
// does.
func (s *clientStatus) UnmarshalJSON(b []byte) error {
	type plain clientStatus
	var istio struct {
		Proxy     string                     `json:"proxy"`
		Cluster   string                     `json:"cluster_id"`
		Version   string                     `json:"istio_version"`
		Resources map[string]json.RawMessage `json:"resources"` // by type
	}
	if err := errors.Join(json.Unmarshal(b, (*plain)(s)), json.Unmarshal(b, &istio)); err != nil || istio.Proxy == "" {
		return err
	}
	*s = clientStatus{Name: istio.Proxy, Cluster: istio.Cluster, Version: istio.Version}
	for url := range istio.Resources {
		s.Types = append(s.Types, url[strings.LastIndex(url, ".")+1:])
	}
	slices.Sort(s.Types)
	return nil
}

// syncz is what one ambitd says of its clients. Each keeps its original text:
// what is printed as JSON is what ambitd said, and who said it.
type syncz struct {
	ambitd  string
	clients []element[clientStatus]
}

func (a *app) proxyStatusCommand() *cobra.Command {
	c := &adminClient{app: a}
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
			list, gone := c.syncz(cmd)
			if len(list) == 0 && gone != nil {
				return gone
			}
			return errors.Join(a.printProxies(list, output), gone)
		},
	}
	c.flags(cmd)
	outputFlag(cmd, &output, formatTable)
	return cmd
}

// syncz asks every ambitd. What some said counts though others failed.
func (c *adminClient) syncz(cmd *cobra.Command) ([]syncz, error) {
	const path = "/debug/syncz"
	if !c.cluster() {
		b, err := c.get(cmd.Context(), path)
		if err != nil {
			return nil, err
		}
		one, err := parseSyncz("ambitd", b)
		return []syncz{one}, err
	}
	cl, pods, err := c.ambitds(cmd.Context())
	if err != nil {
		return nil, err
	}
	var out []syncz
	for _, said := range askAll(cmd.Context(), cl, pods, partAmbitd.admin, path) {
		one, parseErr := parseSyncz(said.pod.Name, said.body)
		if problem := errors.Join(said.err, parseErr); said.err != nil || parseErr != nil {
			err = errors.Join(err, problem)
			continue
		}
		out = append(out, one)
	}
	return out, err
}

func parseSyncz(ambitd string, b []byte) (syncz, error) {
	s := syncz{ambitd: ambitd}
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s.clients); err != nil {
		return s, fmt.Errorf("the answer of %s: %w", ambitd, err)
	}
	return s, nil
}

func (a *app) printProxies(list []syncz, output string) error {
	all := []json.RawMessage{}
	var rows [][]string
	for _, from := range list {
		for _, e := range from.clients {
			raw, err := with(e.raw, "istiod", from.ambitd)
			if err != nil {
				return err
			}
			all = append(all, raw)
			name := e.V.Name
			if name == "" || name == "." { // it was started without POD_NAME
				name = e.V.Peer
			}
			rows = append(rows, []string{name, orNone(e.V.Cluster), from.ambitd, orNone(e.V.Version), fmt.Sprintf("%d (%s)", len(e.V.Types), strings.Join(e.V.Types, ","))})
		}
	}
	if output != formatTable {
		return a.encode(output, all)
	}
	return a.table(wide, []string{"NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"}, rows)
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
