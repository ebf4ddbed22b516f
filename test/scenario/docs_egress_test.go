package scenario

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var egressRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (connected|`NOT_IN_REGISTRY`) \\| .* \\|$")

// addresses gives a network more addresses.
func addresses(t *testing.T, w *rig.World, in lab.Where, all ...string) {
	t.Helper()
	err := w.Netns(in).Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range all {
			ip := net.ParseIP(a)
			bits := 128
			if ip.To4() != nil {
				bits = 32
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)}}
			if err := netlink.AddrReplace(lo, addr); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEgressPage: every connection of docs/egress.md, with the objects of the page, has the
// result that its table gives, and `ambit why` has the same answer.
func TestEgressPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/egress.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	rows := egressRow.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 2 || len(rows) != 10 {
		t.Fatalf("the page has %d files and %d connections", len(blocks), len(rows))
	}
	w := rig.Start(t, lab.Config{YAML: shop})
	addresses(t, w, lab.LAN, "192.0.2.10", "192.0.2.11", "192.0.2.12", "198.51.100.7", "2001:db8::10", "2001:db8:1::7")
	for _, port := range []string{":443", ":80"} {
		go echoAll(w.Listen(lab.LAN, port))
	}
	for _, to := range []string{"192.0.2.12:443", "[2001:db8::10]:443", "192.0.2.10:80"} { // the network carries them
		sendAndGet(t, w.MustDial(far, netip.MustParseAddrPort(to)))
	}
	w.MustApply(blocks[0][1])
	w.Eventually("the policy is there", func() error {
		out, err := w.Ambit("ztunnel-config", "egress", "--node", "node2")
		return errors.Join(err, contains(out, "shop", "far", "REGISTRY_ONLY"))
	})
	for _, row := range rows {
		to, refused := netip.MustParseAddrPort(row[1]), row[2] != "connected"
		if refused {
			reset(w, far, to)
			w.Logs("node2", "dst.addr="+to.String(), `reason="NOT_IN_REGISTRY"`)
		} else {
			sendAndGet(t, w.MustDial(far, to))
		}
		out, err := w.Ambit("why", "pod/far.shop", row[1])
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) || (err != nil) != refused || strings.Contains(out, "NOT_IN_REGISTRY") != refused {
			t.Errorf("why %s: %v\n%s", row[1], err, out)
		}
	}
	for _, metric := range regexp.MustCompile("`(ambit_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		of := w.Metrics
		if strings.HasPrefix(metric[1], "ambit_cni_") {
			of = w.AgentMetrics
		}
		if len(of("node2", metric[1])) == 0 {
			t.Errorf("there is no metric %s", metric[1])
		}
	}
}
