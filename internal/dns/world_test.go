package dns

import (
	"fmt"
	"net/netip"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

const domain = "cluster.local"

var client = Client{Namespace: "shop", Network: "n1", Cluster: "k", IPv6: true}

// service describes a service of a test.
type service struct {
	name, namespace, host string
	vips                  []string // network/address
	families              workloadpb.IPFamilies
	own                   bool // visible in its namespace only
	canonical             bool
	unready               bool // endpoints that are not ready count
}

func (s service) address(t testing.TB) *workloadpb.Address {
	p := &workloadpb.Service{
		Name: s.name, Namespace: s.namespace, Hostname: s.host, IpFamilies: s.families, Canonical: s.canonical,
		Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}},
	}
	if s.own {
		p.Visibility = workloadpb.Service_NAMESPACE
	}
	if s.unready {
		p.LoadBalancing = &workloadpb.LoadBalancing{HealthPolicy: workloadpb.LoadBalancing_ALLOW_ALL}
	}
	for _, v := range s.vips {
		network, a, ok := cut(v)
		if !ok {
			t.Fatalf("%s: an address is NETWORK/ADDRESS", v)
		}
		p.Addresses = append(p.Addresses, &workloadpb.NetworkAddress{Network: network, Address: a.AsSlice()})
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Service{Service: p}}
}

func cut(v string) (string, netip.Addr, bool) {
	for i := range v {
		if v[i] == '/' {
			a, err := netip.ParseAddr(v[i+1:])
			return v[:i], a, err == nil
		}
	}
	return "", netip.Addr{}, false
}

// endpoint describes a pod behind services.
type endpoint struct {
	name, namespace, network string
	addrs                    []string
	services                 []string // namespace/host
	unhealthy                bool
}

func (e endpoint) address() *workloadpb.Address {
	w := &workloadpb.Workload{
		Uid: "k//Pod/" + e.namespace + "/" + e.name, Name: e.name, Namespace: e.namespace, Network: e.network, ClusterId: "k",
		Services: map[string]*workloadpb.PortList{},
	}
	if e.unhealthy {
		w.Status = workloadpb.WorkloadStatus_UNHEALTHY
	}
	for _, a := range e.addrs {
		w.Addresses = append(w.Addresses, netip.MustParseAddr(a).AsSlice())
	}
	for _, s := range e.services {
		w.Services[s] = &workloadpb.PortList{Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}
	}
	return &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: w}}
}

var services = []service{
	{name: "web", namespace: "shop", host: "web.shop.svc.cluster.local", vips: []string{"n1/10.96.0.1", "n1/fd00:96::1"}, families: workloadpb.IPFamilies_DUAL, canonical: true},
	{name: "db", namespace: "shop", host: "db.shop.svc.cluster.local", vips: []string{"n1/10.96.0.2"}, families: workloadpb.IPFamilies_IPV4_ONLY, canonical: true},
	{name: "six", namespace: "shop", host: "six.shop.svc.cluster.local", vips: []string{"n1/fd00:96::3"}, families: workloadpb.IPFamilies_IPV6_ONLY, canonical: true},
	{name: "web", namespace: "bank", host: "web.bank.svc.cluster.local", vips: []string{"n1/10.96.0.4"}, families: workloadpb.IPFamilies_IPV4_ONLY, canonical: true},
	{name: "peers", namespace: "shop", host: "peers.shop.svc.cluster.local", families: workloadpb.IPFamilies_DUAL, canonical: true},
	{name: "starting", namespace: "shop", host: "starting.shop.svc.cluster.local", families: workloadpb.IPFamilies_DUAL, unready: true},
	{name: "empty", namespace: "shop", host: "empty.shop.svc.cluster.local", families: workloadpb.IPFamilies_DUAL},
	{name: "many", namespace: "shop", host: "many.shop.svc.cluster.local", families: workloadpb.IPFamilies_DUAL},
	{name: "far", namespace: "shop", host: "far.example", vips: []string{"n2/10.1.0.1"}},
	{name: "api", namespace: "shop", host: "api.example.com", vips: []string{"n1/240.240.0.1", "n1/2001:2::1"}},
	{name: "named", namespace: "bank", host: "named.example.com"},
	{name: "secret", namespace: "bank", host: "secret.example.com", vips: []string{"n1/240.240.0.3"}, own: true},
	{name: "twice", namespace: "bank", host: "twice.example.com", vips: []string{"n1/240.240.0.4"}},
	{name: "twice", namespace: "shop", host: "twice.example.com", vips: []string{"n1/240.240.0.5"}},
	{name: "wide", namespace: "shop", host: "*.wide.example", vips: []string{"n1/240.240.0.6"}},
	{name: "narrow", namespace: "shop", host: "*.narrow.wide.example", vips: []string{"n1/240.240.0.7"}},
	// What another namespace claims of what Kubernetes may have.
	{name: "trap1", namespace: "bank", host: "web.shop", vips: []string{"n1/6.6.6.1"}},
	{name: "trap2", namespace: "bank", host: "lost.shop.svc.cluster.local", vips: []string{"n1/6.6.6.2"}},
	{name: "trap3", namespace: "bank", host: "lonely", vips: []string{"n1/6.6.6.3"}},
	{name: "trap4", namespace: "bank", host: "x.peers", vips: []string{"n1/6.6.6.4"}},
	{name: "trap5", namespace: "bank", host: "*.shop.svc.cluster.local", vips: []string{"n1/6.6.6.5"}},
	{name: "trap6", namespace: "bank", host: "lost.shop", vips: []string{"n1/6.6.6.6"}},
	{name: "short", namespace: "shop", host: "short", vips: []string{"n1/240.240.0.8"}},
}

var endpoints = []endpoint{
	{"web-0", "shop", "n1", []string{"10.0.0.1", "fd00::1"}, []string{"shop/peers.shop.svc.cluster.local", "shop/web.shop.svc.cluster.local"}, false},
	{"web-1", "shop", "n1", []string{"10.0.0.2"}, []string{"shop/peers.shop.svc.cluster.local"}, false},
	{"web-2", "shop", "n1", []string{"10.0.0.3"}, []string{"shop/peers.shop.svc.cluster.local", "shop/starting.shop.svc.cluster.local"}, true},
	{"web-3", "shop", "n2", []string{"10.0.0.4"}, []string{"shop/peers.shop.svc.cluster.local"}, false},
}

const manyPods = 100

// world is a directory with all of these.
func world(t testing.TB) *workload.Snapshot {
	t.Helper()
	d := workload.NewDirectory(workload.Options{TrustDomain: domain})
	var set []*workloadpb.Address
	for _, s := range services {
		set = append(set, s.address(t))
	}
	for _, e := range endpoints {
		set = append(set, e.address())
	}
	for i := range manyPods {
		set = append(set, endpoint{fmt.Sprintf("many-%d", i), "shop", "n1", []string{fmt.Sprintf("10.2.0.%d", i)}, []string{"shop/many.shop.svc.cluster.local"}, false}.address())
	}
	if _, rejected := d.Apply(set, nil); len(rejected) > 0 {
		t.Fatal(rejected)
	}
	return d.Snapshot()
}
