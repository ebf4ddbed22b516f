package app

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/gateway/carried"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

func TestDumpRule(t *testing.T) {
	web := route.PortKey{Namespace: "shop", Hostname: "web.shop.svc", Port: 80}
	d := dumpRule("r", &wire.Rule{
		Origin:  wire.Origin{Kind: "HTTPRoute", Namespace: "shop", Name: "web", Rule: 1, RuleName: "main"},
		Parents: []wire.Parent{{Port: web}, {Port: web, Clients: "far"}},
		Rule: route.Rule{
			Matches:  []route.Match{{Method: "GET", Path: route.Path{Kind: route.Segments, Value: "/a"}}},
			Backends: []route.Backend{{Name: "shop/v1.shop.svc:80", Weight: 9}, {Weight: 1, Invalid: "not found"}},
			Timeouts: route.Timeouts{Request: time.Second},
			Retry:    &route.Retry{Attempts: 1000},
			Filters:  route.Filters{Rewrite: &route.Rewrite{}, CORS: &route.CORS{}, Mirrors: []route.Mirror{{Backend: route.Backend{Name: "m"}, Numerator: 1, Denominator: 2}}},
		},
	})
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"r","origin":"HTTPRoute shop/web, rule 1 (main)","kind":"HTTPRoute","namespace":"shop","route":"web","rule":1,"ruleName":"main",` +
		`"parents":["shop/web.shop.svc:80","shop/web.shop.svc:80 (clients of namespace far)"],"matches":["GET and path prefix /a"],` +
		`"backends":[{"name":"shop/v1.shop.svc:80","weight":9},{"name":"","weight":1,"invalid":"not found"}],` +
		`"filters":["rewrite","CORS","mirror 1/2 to m"],"timeouts":{"request":"1s"},"retries":100}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDumpBackends(t *testing.T) {
	d := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	endpoint := func(name, addr string, health workloadpb.WorkloadStatus, p workloadpb.TunnelProtocol) *workloadpb.Address {
		return &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{
			Uid: "c//Pod/shop/" + name, Name: name, Namespace: "shop", Addresses: [][]byte{netip.MustParseAddr(addr).AsSlice()}, Status: health, TunnelProtocol: p,
			Services: map[string]*workloadpb.PortList{"shop/web.shop.svc": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}},
		}}}
	}
	if _, bad := d.Apply([]*workloadpb.Address{
		{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
			Name: "web", Namespace: "shop", Hostname: "web.shop.svc", Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: workloadpb.AppProtocol_HTTP11}},
		}}},
		endpoint("b", "10.0.0.2", workloadpb.WorkloadStatus_UNHEALTHY, workloadpb.TunnelProtocol_NONE),
		endpoint("a", "10.0.0.1", workloadpb.WorkloadStatus_HEALTHY, workloadpb.TunnelProtocol_HBONE),
	}, nil); len(bad) > 0 {
		t.Fatal(bad)
	}
	cfg := &route.Config{Upstreams: map[string]*route.Upstream{
		"x": {Service: route.PortKey{Namespace: "far", Hostname: "x.far.svc", Port: 81}, Protocol: route.HTTP2, Limits: route.Limits{Requests: 7}},
	}}
	list := backends(d.Snapshot(), cfg, []carried.LeftOut{{UID: "c//Pod/shop/a", Port: 80}})
	got, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"namespace":"far","hostname":"x.far.svc","port":81,"protocol":"HTTP/2","known":false,"endpoints":[],"limits":{"requests":7}},` +
		`{"namespace":"shop","hostname":"web.shop.svc","port":80,"protocol":"HTTP/1.1","known":true,"endpoints":[` +
		`{"workload":"shop/a","address":"10.0.0.1","healthy":true,"leftOut":true,"protocol":"HBONE"},{"workload":"shop/b","address":"10.0.0.2","healthy":false,"protocol":"TCP"}]}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if b, err := json.Marshal(backends(d.Snapshot(), nil, nil)); err != nil || strings.Contains(string(b), "far") {
		t.Errorf("%s %v", b, err)
	}
}
