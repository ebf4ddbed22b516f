package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// object is one of /debug/status.
type object struct {
	Kind       string      `json:"kind"`
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	File       string      `json:"file,omitempty"`
	Line       int         `json:"line,omitempty"`
	Conditions []condition `json:"conditions"`
	Entries    []entryRow  `json:"entries,omitempty"`
}

// entryRow is an entry of a list of a status, such as a parent of a route.
type entryRow struct {
	List       string          `json:"list"`
	Key        json.RawMessage `json:"key"`
	Conditions []condition     `json:"conditions"`
}

// label returns the list and the name that an entry is found by.
func (e entryRow) label() string {
	var ref struct{ Namespace, Name string }
	if json.Unmarshal(e.Key, &ref.Name) != nil {
		_ = json.Unmarshal(e.Key, &ref) // a reference; what has no name is shown without
	}
	return e.List + " " + strings.TrimPrefix(ref.Namespace+"/"+ref.Name, "/")
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// problem is one of /debug/problems.
type problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Field   string `json:"field"`
	Message string `json:"message"`
	Ignored bool   `json:"ignored"`
}

func (a *app) statusCommand() *cobra.Command {
	c := &adminClient{app: a}
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what became of every object: accepted, where it is enforced, or why not",
		Long: `Shows what became of the objects that the mesh reads: accepted, where they are
enforced, or why not and what to do. In a cluster that is what ambitd wrote into
their status.conditions, of all namespaces unless -n names one.`,
		Example: `  ambit status
  ambit status -n shop -o yaml
  ambit status --address localhost:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, problems, err := c.status(cmd.Context())
			if err != nil {
				return err
			}
			return a.printObjects(objects, problems, c.namespace, output)
		},
	}
	c.flags(cmd)
	cmd.Flag("namespace").Usage = "only objects of a namespace"
	outputFlag(cmd, &output, formatTable)
	return cmd
}

// status asks the cluster's API, or ambitd.
func (c *adminClient) status(ctx context.Context) ([]object, []problem, error) {
	if c.cluster() {
		cl, err := c.client()
		if err != nil {
			return nil, nil, err
		}
		objects, err := c.liveStatus(ctx, cl, c.namespace)
		return objects, []problem{}, err
	}
	rawStatus, err := c.get(ctx, "/debug/status")
	if err != nil {
		return nil, nil, err
	}
	rawProblems, err := c.get(ctx, "/debug/problems")
	if err != nil {
		return nil, nil, err
	}
	var objects []object
	var problems []problem
	if err := errors.Join(json.Unmarshal(rawStatus, &objects), json.Unmarshal(rawProblems, &problems)); err != nil {
		return nil, nil, fmt.Errorf("ambitd's answer: %w", err)
	}
	return objects, problems, nil
}

func (a *app) printObjects(objects []object, problems []problem, namespace, output string) error {
	kept := objects[:0]
	for _, o := range objects {
		if namespace == "" || o.Namespace == namespace {
			kept = append(kept, o)
		}
	}
	if output != formatTable {
		return a.encode(output, map[string]any{"objects": kept, "problems": problems})
	}
	if len(kept)+len(problems) == 0 {
		where := ""
		if namespace != "" {
			where = " in namespace " + namespace
		}
		return a.printf("There is no policy and no other object of the mesh%s, and so no status.\n", where)
	}
	var rows [][]string
	for _, o := range kept {
		for _, c := range o.Conditions {
			rows = append(rows, []string{o.Kind, orNone(o.Namespace), o.Name, c.Type, c.Status, c.Reason, c.Message})
		}
		for _, e := range o.Entries {
			for _, c := range e.Conditions {
				rows = append(rows, []string{o.Kind, orNone(o.Namespace), o.Name, c.Type + " (" + e.label() + ")", c.Status, c.Reason, c.Message})
			}
		}
	}
	err := a.table(3, []string{"KIND", "NAMESPACE", "NAME", "CONDITION", "STATUS", "REASON", "MESSAGE"}, rows)
	for i, p := range problems {
		if i == 0 {
			err = errors.Join(err, a.printf("\nProblems (the last good state of these stays in force):\n"))
		}
		where := p.File
		if p.Line > 0 {
			where += fmt.Sprintf(":%d", p.Line)
		}
		parts := []string{where}
		if p.Field != "" {
			parts = append(parts, p.Field)
		}
		err = errors.Join(err, a.printf("  %s: %s\n", strings.Join(parts, ": "), p.Message))
	}
	return err
}
