package install

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
)

// Part is a component as objects, in the order in which they are applied.
type Part struct {
	Component Component
	Objects   []*unstructured.Unstructured
}

// RenderOptions are what rendering depends on beside the spec.
type RenderOptions struct {
	// Version of this program: the tag of images unless the spec says another.
	Version string
	// Config of a cluster that templates may look at; nil for none.
	Config *rest.Config
	// KubeVersion of the cluster, such as v1.33.1; empty for one that suits.
	KubeVersion string
	Upgrade     bool
}

// Render makes the objects of every enabled component.
func Render(s *Spec, o RenderOptions) ([]Part, error) {
	var parts []Part
	for _, c := range s.Enabled() {
		objects, err := renderChart(c, s.chartValues(c), s.Namespace, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c, err)
		}
		for _, obj := range objects {
			setLabel(obj, labelManagedBy, managedByUs)
		}
		parts = append(parts, Part{c, objects})
	}
	return parts, nil
}

func setLabel(obj *unstructured.Unstructured, key, value string) {
	labels := obj.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[key] = value
	obj.SetLabels(labels)
}

func dropLabel(obj *unstructured.Unstructured, key string) {
	labels := obj.GetLabels()
	delete(labels, key)
	obj.SetLabels(labels)
}

// loadChart reads a chart from inside the program.
func loadChart(c Component) (*chart.Chart, error) {
	var files []*archive.BufferedFile
	root := string(c)
	err := fs.WalkDir(charts.FS, root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := charts.FS.ReadFile(p)
		files = append(files, &archive.BufferedFile{Name: strings.TrimPrefix(p, root+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, err
	}
	return loader.LoadFiles(files)
}

// renderChart does what helm does with a chart.
func renderChart(c Component, values map[string]any, namespace string, o RenderOptions) ([]*unstructured.Unstructured, error) {
	ch, err := loadChart(c)
	if err != nil {
		return nil, err
	}
	if o.Version != "" {
		ch.Metadata.AppVersion = o.Version
	}
	caps := chartcommon.DefaultCapabilities.Copy()
	if o.KubeVersion != "" {
		v, err := chartcommon.ParseKubeVersion(o.KubeVersion)
		if err != nil {
			return nil, fmt.Errorf("version of Kubernetes: %w", err)
		}
		caps.KubeVersion = *v
	}
	full, err := chartutil.ToRenderValues(ch, values, chartcommon.ReleaseOptions{
		Name: release[c], Namespace: namespace, Revision: 1, IsInstall: !o.Upgrade, IsUpgrade: o.Upgrade,
	}, caps)
	if err != nil {
		return nil, fmt.Errorf("its values cannot be used (null takes a default away: leave a value out to have it): %w", err)
	}
	var e engine.Engine
	if o.Config != nil {
		e = engine.New(o.Config)
	}
	texts, err := e.RenderWithContext(context.Background(), ch, full)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if path.Base(name) == "NOTES.txt" {
			continue
		}
		more, err := decode([]byte(texts[name]))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		objects = append(objects, more...)
	}
	slices.SortStableFunc(objects, compareObjects)
	return objects, nil
}

func newBufio(raw []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(raw)) }

// decode reads the documents of a text.
func decode(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for r := utilyaml.NewYAMLReader(newBufio(text)); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		var m map[string]any
		if err := yaml.Unmarshal(doc, &m); err != nil {
			return nil, err
		}
		if len(m) == 0 {
			continue
		}
		obj := &unstructured.Unstructured{Object: m}
		if _, ok := kindOf(obj); !ok {
			return nil, fmt.Errorf("%s %s: a kind that the installer does not know how to apply", obj.GetKind(), obj.GetName())
		}
		objects = append(objects, obj)
	}
}

func compareObjects(a, b *unstructured.Unstructured) int {
	return cmp.Or(
		cmp.Compare(rank(a), rank(b)),
		cmp.Compare(a.GetNamespace(), b.GetNamespace()),
		cmp.Compare(a.GetName(), b.GetName()),
	)
}

// Manifest writes parts as YAML, as `kubectl apply -f -` takes it.
func Manifest(w io.Writer, parts []Part) error {
	for _, p := range parts {
		for _, obj := range p.Objects {
			text, err := yaml.Marshal(obj.Object)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
				return err
			}
		}
	}
	return nil
}
