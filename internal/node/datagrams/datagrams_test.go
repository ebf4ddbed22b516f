package datagrams

import (
	"iter"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
)

func TestParse(t *testing.T) {
	const snmp = `Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams
Udp: 7 1 2 9
UdpLite: InDatagrams NoPorts InErrors OutDatagrams
UdpLite: 100 100 100 100
`
	const snmp6 = "Ip6InReceives 5\nUdp6InDatagrams                  \t30\nUdp6OutDatagrams 40\nUdpLite6OutDatagrams 100\n"
	for _, c := range []struct {
		snmp, snmp6 string
		want        Counts
	}{
		{snmp, snmp6, Counts{49, 37}},
		{snmp, "", Counts{9, 7}},
		{"", snmp6, Counts{40, 30}},
		{"Udp: InDatagrams OutDatagrams\nUdp: 1\n", "Udp6OutDatagrams x\nUdp6InDatagrams\n", Counts{0, 1}},
		{"Udp: InDatagrams\n", "", Counts{}},
		{"", "", Counts{}},
	} {
		if got := Parse(c.snmp, c.snmp6); got != c.want {
			t.Errorf("%q %q: %+v, want %+v", c.snmp, c.snmp6, got, c.want)
		}
	}
}

// TestIn: what a socket of a namespace sends counts there, in both families.
func TestIn(t *testing.T) {
	ns := netnstest.New(t)
	before, err := In(ns)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
			server, err := net.ListenPacket("udp", at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = server.Close() })
			for range 5 {
				if _, err := server.WriteTo([]byte("x"), server.LocalAddr()); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	after, err := In(ns)
	if err != nil || after.Sent-before.Sent != 10 || after.Received < before.Received {
		t.Errorf("%+v before, %+v after 10 datagrams, %v", before, after, err)
	}
}

func TestCollector(t *testing.T) {
	c := Collector{Pods: func() iter.Seq[Pod] {
		return slices.Values([]Pod{{"shop", "web", Counts{1, 3}}, {"shop", "web", Counts{2, 1}}})
	}}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP ambit_cni_pod_udp_datagrams_total UDP datagrams of enrolled pods, which the mesh does not carry; look-ups and loopback are among them (unstable).
# TYPE ambit_cni_pod_udp_datagrams_total counter
ambit_cni_pod_udp_datagrams_total{direction="received",namespace="shop",pod="web"} 4
ambit_cni_pod_udp_datagrams_total{direction="sent",namespace="shop",pod="web"} 3
`)); err != nil {
		t.Error(err)
	}
}
