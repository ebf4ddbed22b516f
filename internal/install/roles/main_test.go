package main

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/source"
)

func TestChartHasTheRulesOfTheKinds(t *testing.T) {
	have, err := fs.ReadFile(charts.FS, "ambitd/templates/_kinds.tpl")
	if err != nil {
		t.Fatal(err)
	}
	if want := template(); string(have) != want {
		t.Errorf("charts/ambitd/templates/_kinds.tpl is not what the kinds need (run go generate ./charts):\n%s\nwant:\n%s", have, want)
	}
}

// Every kind that is not part of Kubernetes is one that the charts install, in
// the version that is preferred.
func TestChartsHaveTheDefinitionsOfTheKinds(t *testing.T) {
	dir := func(group string) string {
		switch {
		case group == "ambit.mesh":
			return "base/files/crds/ambit/"
		case strings.HasSuffix(group, ".k8s.io"):
			return "base/files/crds/gateway-api/"
		}
		return "base/files/crds/istio/"
	}
	for _, k := range source.Kinds() {
		if k.Builtin {
			continue
		}
		text, err := fs.ReadFile(charts.FS, dir(k.Group)+k.Plural+"."+k.Group+".yaml")
		if err != nil {
			t.Errorf("%s: %v", k, err)
			continue
		}
		var crd struct {
			Spec struct {
				Scope    string
				Names    struct{ Kind, Plural string }
				Versions []struct {
					Name         string
					Served       bool
					Subresources map[string]any
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		if crd.Spec.Names.Kind != k.Name || crd.Spec.Names.Plural != k.Plural || (crd.Spec.Scope == "Namespaced") != k.Namespaced {
			t.Errorf("%s is defined as %+v of scope %s", k, crd.Spec.Names, crd.Spec.Scope)
		}
		served := map[string]bool{}
		for _, v := range crd.Spec.Versions {
			served[v.Name] = v.Served
			if _, status := v.Subresources["status"]; k.StatusWritten && v.Name == k.Versions[0] && !status {
				t.Errorf("%s has no status to write", k)
			}
		}
		// A version that is not served any more is read in files, and in clusters whose
		// definition is older.
		for i, v := range k.Versions {
			if now, defined := served[v]; !defined || i == 0 && !now {
				t.Errorf("%s is not served in version %s: %v", k, v, served)
			}
		}
	}
}

// The API server asks the webhook about every kind that admission refuses.
func TestWebhookIsAskedAboutTheKinds(t *testing.T) {
	text, err := fs.ReadFile(charts.FS, "ambitd/templates/webhook.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "apiGroups: [")
	line, _, _ = strings.Cut(line, "]")
	groups := strings.Split(line, ", ")
	for _, k := range source.Kinds() {
		if asked := slices.Contains(groups, k.Group); asked != (!k.Builtin && !k.Shared) {
			t.Errorf("%s: the webhook is asked: %v", k, asked)
		}
	}
}
