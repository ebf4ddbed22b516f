package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// board is a board of the chart, by its name.
type board struct {
	name        string
	text        []byte
	Title       string `json:"title"`
	Description string `json:"description"`
}

// prefix is what the names of files of boards begin with.
const prefix = "ambit-"

func readBoards() (out []board, err error) {
	files, err := fs.ReadDir(charts.FS, charts.Boards)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b := board{name: strings.TrimSuffix(strings.TrimPrefix(f.Name(), prefix), ".json")}
		if b.text, err = charts.FS.ReadFile(path.Join(charts.Boards, f.Name())); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b.text, &b); err != nil {
			return nil, fmt.Errorf("board %s: %w", b.name, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func boardsCommand(a *session.Session) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "boards [NAME]",
		Short: "List the boards for Grafana, print one, or write all to files",
		Long: `The boards of the mesh, as Grafana imports them (Dashboards, New, Import). Each asks for
the data source when it is opened. Chart observability puts the same into ConfigMaps for
the sidecar of Grafana's chart.`,
		Example: `  ambit dashboard boards
  ambit dashboard boards mesh > mesh.json
  ambit dashboard boards --dir boards`,
		Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			all, _ := readBoards()
			return names(all), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := readBoards()
			if err != nil {
				return err
			}
			switch {
			case dir != "" && len(args) > 0:
				return errors.New("--dir writes all boards: leave out the name")
			case dir != "":
				return writeBoards(a, all, dir)
			case len(args) > 0:
				return printBoard(a, all, args[0])
			}
			var rows [][]string
			for _, b := range all {
				rows = append(rows, []string{b.name, b.Title, b.Description})
			}
			return a.Table(session.Wide, []string{"NAME", "TITLE", "ANSWERS"}, rows)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to write all boards to, one file each; it is made when it is missing")
	return cmd
}

func names(all []board) (out []string) {
	for _, b := range all {
		out = append(out, b.name)
	}
	return out
}

func printBoard(a *session.Session, all []board, name string) error {
	for _, b := range all {
		if b.name == name {
			_, err := a.Out.Write(b.text)
			return err
		}
	}
	return fmt.Errorf("no board is called %q: there are %s", name, strings.Join(names(all), ", "))
}

func writeBoards(a *session.Session, all []board, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // what is written is public
		return err
	}
	for _, b := range all {
		file := filepath.Join(dir, prefix+b.name+".json")
		if err := os.WriteFile(file, b.text, 0o644); err != nil { //nolint:gosec // as above
			return err
		}
		if err := a.Printf("%s\n", file); err != nil {
			return err
		}
	}
	return nil
}

func rulesCommand(a *session.Session) *cobra.Command {
	var operator bool
	var namespace string
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print the alert rules for Prometheus",
		Long: `The alert rules of the mesh, as a file of Prometheus (rule_files). With --operator, as an
object PrometheusRule of the Prometheus operator; chart observability has the same.
Each alert links to the page with what to do.`,
		Example: `  ambit dashboard rules > ambit-rules.yaml
  ambit dashboard rules --operator -n monitoring | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text, err := charts.FS.ReadFile(charts.Rules)
			if err == nil && operator {
				text, err = prometheusRule(text, namespace)
			}
			if err != nil {
				return err
			}
			_, err = a.Out.Write(text)
			return err
		},
	}
	cmd.Flags().BoolVar(&operator, "operator", false, "print an object PrometheusRule")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", wellknown.SystemNamespace, "namespace of the object")
	return cmd
}

// prometheusRule returns rules as an object of the Prometheus operator.
func prometheusRule(rules []byte, namespace string) ([]byte, error) {
	var spec map[string]any
	if err := yaml.Unmarshal(rules, &spec); err != nil {
		return nil, err
	}
	return yaml.Marshal(map[string]any{
		"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
		"metadata": map[string]any{"name": "ambit", "namespace": namespace, "labels": map[string]any{"app.kubernetes.io/part-of": "ambit"}},
		"spec":     spec,
	})
}
