package main

import (
	"io"
	"slices"
	"testing"
)

func TestFlagsOnKubernetes(t *testing.T) {
	t.Setenv("NODE_NAME", "n1")
	t.Setenv("POD_NAME", "ambit-cni-x")
	t.Setenv("POD_NAMESPACE", "mesh")
	t.Setenv("EXCLUDE_NAMESPACES", "a,b")
	t.Setenv("AMBIENT_IPV6", "false")
	t.Setenv("AMBIENT_DNS_CAPTURE", "true")
	t.Setenv("ISTIO_OWNED_CNI_CONFIG", "true")
	o, err := parse([]string{"--kubernetes", "--install-cni"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.node != "n1" || o.namespace != "mesh" || o.procDir != hostProc || !slices.Equal(o.excludeNamespaces, []string{"a", "b"}) ||
		o.redirection.IPv6 || !o.redirection.CaptureDNS || !o.install.owned || !o.install.chained {
		t.Errorf("%+v", o)
	}
	for _, bad := range [][]string{
		{"--kubernetes", "--config-dir", "/a"}, {"--install-cni", "--config-dir", "/a", "--status-dir", "/s"},
	} {
		if _, err := parse(bad, io.Discard); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
	t.Setenv("AMBIENT_IPV6", "maybe")
	if _, err := parse([]string{"--kubernetes"}, io.Discard); err == nil {
		t.Error("a variable that is neither true nor false passes")
	}
}
