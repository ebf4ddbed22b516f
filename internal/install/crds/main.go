// Command crds copies the custom resource definitions that the mesh reads out
// of the Go modules that define them, into the chart that installs them:
// `make generate` runs it.
package main

import (
	"bytes"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/version"
	_ "sigs.k8s.io/gateway-api/pkg/consts" // keeps the module, whose files are copied, in go.mod
	"sigs.k8s.io/yaml"
)

// ownFiles are the definitions of the kinds that are Ambit's own.
//
//go:embed own
var ownFiles embed.FS

func main() {
	out := flag.String("out", "", "`directory` to write to")
	flag.Parse()
	if *out == "" {
		fmt.Fprintln(os.Stderr, "crds: -out is missing: where are the files to go?")
		os.Exit(2)
	}
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "crds:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	files, err := collect()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// collect returns the definitions by the path below the output directory.
func collect() (map[string][]byte, error) {
	istio, err := moduleDir("istio.io/api")
	if err != nil {
		return nil, err
	}
	gateway, err := moduleDir("sigs.k8s.io/gateway-api")
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	raw, err := os.ReadFile(filepath.Join(istio, "kubernetes", "customresourcedefinitions.gen.yaml"))
	if err != nil {
		return nil, err
	}
	if err := add(all, "istio", raw, nil); err != nil {
		return nil, err
	}
	own, err := fs.ReadDir(ownFiles, "own")
	if err != nil {
		return nil, err
	}
	for _, f := range own {
		text, err := ownFiles.ReadFile("own/" + f.Name())
		if err != nil {
			return nil, err
		}
		if err := add(all, "ambit", text, nil); err != nil {
			return nil, err
		}
	}
	for _, c := range channels {
		if err := c.addTo(all, filepath.Join(gateway, "config", "crd", c.name)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// channel is one of the two sets of definitions that the Gateway API has.
type channel struct {
	name, dir string // as the module calls it, and the chart's directory
	// terse leaves out all descriptions. A Secret with Helm's release has no
	// room for those of both channels.
	terse bool
}

var channels = []channel{
	{name: "standard", dir: "gateway-api"},
	{name: "experimental", dir: "gateway-api-experimental", terse: true},
}

// addTo adds the definitions of the channel, which are in a directory.
func (c channel) addTo(all map[string][]byte, from string) error {
	paths, err := filepath.Glob(filepath.Join(from, "*.yaml"))
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("%s: no definitions are there (is the module's layout another one?)", from)
	}
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if err := add(all, c.dir, raw, &metadata{gatewayLabels, gatewayAnnotations, c.terse}); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// metadata is what the chart adds to a definition, and whether it leaves out
// all descriptions.
type metadata struct {
	labels, annotations map[string]string
	terse               bool
}

// gatewayLabels mark the definitions as the mesh's own: those the chart may
// replace. gatewayAnnotations have Helm leave them where users' objects depend
// on them.
var (
	gatewayLabels      = map[string]string{"app.kubernetes.io/part-of": "ambit"}
	gatewayAnnotations = map[string]string{"helm.sh/resource-policy": "keep"}
)

// add splits a file into documents and keeps those that are definitions.
func add(all map[string][]byte, dir string, raw []byte, extra *metadata) error {
	for doc := range bytes.SplitSeq(raw, []byte("\n---\n")) {
		var head struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal(doc, &head); err != nil {
			return err
		}
		if head.Kind != "CustomResourceDefinition" {
			continue
		}
		text, err := encode(doc, extra)
		if err != nil {
			return fmt.Errorf("%s: %w", head.Metadata.Name, err)
		}
		all[filepath.Join(dir, head.Metadata.Name+".yaml")] = text
	}
	return nil
}

// encode writes a definition anew, so that it does not change with the style
// of its module's generator.
func encode(doc []byte, extra *metadata) ([]byte, error) {
	var crd map[string]any
	if err := yaml.Unmarshal(doc, &crd); err != nil {
		return nil, err
	}
	delete(crd, "status")
	if err := shorten(crd); err != nil {
		return nil, err
	}
	if extra != nil {
		if extra.terse {
			undescribe(crd["spec"])
		}
		meta := crd["metadata"].(map[string]any)
		merge(meta, "labels", extra.labels)
		merge(meta, "annotations", extra.annotations)
	}
	return yaml.Marshal(crd)
}

// shorten takes the descriptions of fields out of all versions but the best:
// Helm keeps a release with its chart in one Secret, and they would fill it.
func shorten(crd map[string]any) error {
	spec, _ := crd["spec"].(map[string]any)
	versions, _ := spec["versions"].([]any)
	best := ""
	for _, v := range versions {
		name, ok := v.(map[string]any)["name"].(string)
		if !ok {
			return errors.New("a version without a name")
		}
		if best == "" || version.CompareKubeAwareVersionStrings(name, best) > 0 {
			best = name
		}
	}
	for _, v := range versions {
		if m := v.(map[string]any); m["name"] != best {
			undescribe(m["schema"])
		}
	}
	return nil
}

// undescribe removes descriptions from a schema. A field that is called
// description is a schema itself, not a text.
func undescribe(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, text := v["description"].(string); text {
			delete(v, "description")
		}
		for _, below := range v {
			undescribe(below)
		}
	case []any:
		for _, below := range v {
			undescribe(below)
		}
	}
}

func merge(meta map[string]any, field string, more map[string]string) {
	m, _ := meta[field].(map[string]any)
	if m == nil {
		m = map[string]any{}
		meta[field] = m
	}
	for k, v := range more {
		m[k] = v
	}
}

func moduleDir(path string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", path, err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", fmt.Errorf("module %s is not downloaded: go mod download", path)
	}
	return dir, nil
}
