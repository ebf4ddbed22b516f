package accesslog

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func entry() *Entry {
	return &Entry{
		Src:       Party{Addr: netip.MustParseAddrPort("10.0.0.1:4000"), Workload: "client", Namespace: "shop", Identity: "spiffe://cluster.local/ns/shop/sa/client", Cluster: "Kubernetes"},
		Dst:       Party{Addr: netip.MustParseAddrPort("10.0.1.2:15008"), Workload: "server", Namespace: "shop"},
		HBONEAddr: "10.0.1.2:80", Service: "server.shop.svc.cluster.local", Direction: "outbound",
		Sent: 7, Received: 9, Duration: 12345 * time.Microsecond,
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	l, err := logging.New(&out, logging.Plain, "debug")
	if err != nil {
		t.Fatal(err)
	}
	log := l.Logger(Scope)
	line := func() string {
		defer out.Reset()
		_, rest, _ := strings.Cut(strings.TrimSuffix(out.String(), "\n"), "\t")
		return rest
	}
	const parties = `src.addr=10.0.0.1:4000 src.workload="client" src.namespace="shop" src.identity="spiffe://cluster.local/ns/shop/sa/client" src.cluster="Kubernetes" ` +
		`dst.addr=10.0.1.2:15008 dst.hbone_addr=10.0.1.2:80 dst.service="server.shop.svc.cluster.local" dst.workload="server" dst.namespace="shop" direction="outbound"`

	Opened(log, entry())
	if got, want := line(), "debug\taccess\tconnection opened\t"+parties; got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
	Complete(log, entry())
	if got, want := line(), "info\taccess\tconnection complete\t"+parties+` bytes_sent=7 bytes_recv=9 duration="12ms"`; got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
	e := entry()
	e.Reason, e.Policy, e.Err = reason.PolicyDenied, "shop/deny-all", errors.New("explicitly denied by: shop/deny-all")
	Complete(log, e)
	if got := line(); !strings.HasPrefix(got, "error\taccess\tconnection complete\t") ||
		!strings.Contains(got, `error="explicitly denied by: shop/deny-all" reason="POLICY_DENIED" policy="shop/deny-all" hint="`) {
		t.Errorf("%s", got)
	}
	Failed(log, e)
	if got := line(); !strings.HasPrefix(got, "warn\taccess\tconnection failed\tsrc.addr=10.0.0.1:4000 src.workload=") || !strings.Contains(got, ` dst.addr=10.0.1.2:15008 dst.workload="server" dst.namespace="shop" direction="outbound" error=`) {
		t.Errorf("%s", got)
	}
}
