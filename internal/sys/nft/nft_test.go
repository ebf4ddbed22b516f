package nft

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func configs() map[string]Config {
	return map[string]Config{
		"default":            {IPv6: true},
		"ipv4-only":          {},
		"ingress":            {IPv6: true, BypassInbound: true},
		"dns":                {IPv6: true, CaptureDNS: true},
		"udp":                {IPv6: true, CaptureDNS: true, RefuseUDP: true},
		"virtual-interfaces": {IPv6: true, VirtualInterfaces: []string{"net1", "net2"}},
		"probes": {IPv6: true, Probes: []Probe{
			{Source: netip.MustParsePrefix("169.254.7.127/32")},
			{Source: netip.MustParsePrefix("fd16:9254::/32"), Ports: []uint16{8080, 9090}},
		}},
		"host-probes": {IPv6: true, Probes: []Probe{
			{Source: netip.MustParsePrefix("10.0.0.7/32"), Ports: []uint16{8080, 9090}, Host: true},
			{Source: netip.MustParsePrefix("fd00::7/128"), Ports: []uint16{8080}, Host: true},
		}},
		"quiesce": {IPv6: true, CaptureDNS: true, Quiesce: true, VirtualInterfaces: []string{"net1"}},
	}
}

func TestRulesAreTheGoldenOnes(t *testing.T) {
	for name, cfg := range configs() {
		path := filepath.Join("testdata", name+".nft")
		got := Rules(cfg).String()
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
