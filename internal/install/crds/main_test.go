package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The chart holds what the modules define, and nothing else.
func TestChartHasWhatTheModulesDefine(t *testing.T) {
	const dir = "../../../charts/base/files/crds"
	want, err := collect()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v; go generate ./charts writes it", err)
		} else if string(got) != string(text) {
			t.Errorf("%s differs from its module; go generate ./charts writes it", name)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if _, ok := want[rel]; err == nil && !ok {
			t.Errorf("%s is in no module any more; go generate ./charts removes it", rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKindsOfBothModules(t *testing.T) {
	all, err := collect()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"istio/authorizationpolicies.security.istio.io.yaml",
		"istio/peerauthentications.security.istio.io.yaml",
		"istio/serviceentries.networking.istio.io.yaml",
		"ambit/egresspolicies.ambit.mesh.yaml",
		"ambit/ratelimits.ambit.mesh.yaml",
		"gateway-api/gateways.gateway.networking.k8s.io.yaml",
		"gateway-api/httproutes.gateway.networking.k8s.io.yaml",
		"gateway-api-experimental/httproutes.gateway.networking.k8s.io.yaml",
		"gateway-api-experimental/xmeshes.gateway.networking.x-k8s.io.yaml",
	} {
		text := string(all[name])
		if !strings.Contains(text, "kind: CustomResourceDefinition") {
			t.Errorf("%s is missing", name)
		}
		if !strings.Contains(text, "helm.sh/resource-policy: keep") {
			t.Errorf("%s: uninstalling a release would delete it, with every object of users", name)
		}
	}
	for name, text := range all {
		ours := strings.HasPrefix(name, "gateway-api") || strings.HasPrefix(name, "ambit/")
		if ours != strings.Contains(string(text), "app.kubernetes.io/part-of: ambit") {
			t.Errorf("%s: only definitions of the Gateway API and of our own kinds are marked as ours", name)
		}
	}
}

func TestUndescribe(t *testing.T) {
	schema := map[string]any{
		"description": "about the whole",
		"properties": map[string]any{
			"description": map[string]any{"type": "string", "description": "about a field of this name"},
		},
	}
	undescribe(schema)
	field, ok := schema["properties"].(map[string]any)["description"].(map[string]any)
	if !ok || field["type"] != "string" {
		t.Error("a field that is called description is gone")
	}
	if _, ok := field["description"]; ok || schema["description"] != nil {
		t.Errorf("descriptions are left: %v", schema)
	}
}
