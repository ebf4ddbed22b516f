package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const config = `apiVersion: v1
kind: Config
current-context: one
clusters: [{name: c1, cluster: {server: "http://one:1"}}, {name: c2, cluster: {server: "http://two:2"}}]
users: [{name: u, user: {}}]
contexts:
- {name: one, context: {cluster: c1, user: u, namespace: here}}
- {name: two, context: {cluster: c2, user: u}}
`

func TestFindsTheCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts            Options
		env             string
		host, namespace string
	}{
		"named file":      {Options{Kubeconfig: file}, "", "http://one:1", "here"},
		"another context": {Options{Kubeconfig: file, Context: "two"}, "", "http://two:2", "default"},
		"environment":     {Options{}, file, "http://one:1", "here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tc.env)
			c, err := New(tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if c.Config.Host != tc.host || c.Namespace != tc.namespace || c.Config.QPS != 50 || c.Kube == nil || c.Dynamic == nil {
				t.Errorf("%s, namespace %s, QPS %v", c.Config.Host, c.Namespace, c.Config.QPS)
			}
		})
	}
	for name, opts := range map[string]Options{
		"no file":    {Kubeconfig: file + "x"},
		"no context": {Kubeconfig: file, Context: "three"},
		"nothing":    {},
	} {
		if c, err := New(opts); err == nil || !strings.HasPrefix(err.Error(), "find the Kubernetes API: ") {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}
