package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/node/packets"
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
	if o.largePackets != packets.Loopback {
		t.Errorf("large packets: %q", o.largePackets)
	}
	t.Setenv("AMBIT_LARGE_PACKETS", "off")
	for flags, want := range map[string]packets.Mode{"": packets.Off, "--large-packets=pod": packets.Pod} {
		if o, err := parse(append([]string{"--kubernetes"}, strings.Fields(flags)...), io.Discard); err != nil || o.largePackets != want {
			t.Errorf("%q: %q, %v", flags, o.largePackets, err)
		}
	}
	t.Setenv("AMBIT_LARGE_PACKETS", "everywhere")
	if _, err := parse([]string{"--kubernetes"}, io.Discard); err == nil || !strings.Contains(err.Error(), "everywhere") {
		t.Errorf("a setting that does not exist: %v", err)
	}
	t.Setenv("AMBIT_LARGE_PACKETS", "")
	t.Setenv("AMBIENT_IPV6", "maybe")
	if _, err := parse([]string{"--kubernetes"}, io.Discard); err == nil {
		t.Error("a variable that is neither true nor false passes")
	}
}
