package localxds

import (
	"strings"
	"testing"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

const example = `
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1", "::1"]
  protocol: HBONE
  node: local
  network: ""
  status: Unhealthy
  workloadType: cronjob
  capacity: 7
  applicationTunnel: {protocol: PROXY, port: 15088}
  waypoint: {destination: {namespace: default, hostname: wp.example}, hboneMtlsPort: 15008}
  networkGateway: {destination: remote/10.0.0.1, hboneMtlsPort: 15008}
  services:
    "default/example.com": {80: 8080}
policies:
- action: Allow
  rules:
  - - - notDestinationPorts: [9999]
        principals: [a/ns/b/sa/c, {Prefix: x}, {Suffix: why}, {Presence: []}]
        sourceIps: [10.0.0.0/8]
  name: deny-9999
  namespace: default
  scope: Namespace
services:
- name: local
  namespace: default
  hostname: example.com
  vips: [/127.10.0.1, remote/127.10.0.2]
  cidrVips: [/10.0.0.0/8]
  ports: {80: 8080, 443: 8443}
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/local"]
  canonical: true
  ipFamilies: IPv4
  loadBalancer: {mode: Failover, routingPreferences: [Region, Zone], healthPolicy: AllowAll}
`

func TestParse(t *testing.T) {
	c, err := Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	w := c.Addresses[0].GetWorkload()
	if w.TunnelProtocol != workloadpb.TunnelProtocol_HBONE || len(w.Addresses) != 2 || w.Status != workloadpb.WorkloadStatus_UNHEALTHY ||
		w.WorkloadType != workloadpb.WorkloadType_CRONJOB || w.Capacity.GetValue() != 7 || w.ApplicationTunnel.Port != 15088 ||
		w.Waypoint.GetHostname().GetHostname() != "wp.example" || w.NetworkGateway.GetAddress().GetNetwork() != "remote" ||
		w.Services["default/example.com"].Ports[0].TargetPort != 8080 {
		t.Errorf("%v", w)
	}
	s := c.Addresses[1].GetService()
	if len(s.Addresses) != 3 || s.Addresses[2].GetLength() != 8 || s.Ports[1].ServicePort != 443 || !s.Canonical ||
		s.IpFamilies != workloadpb.IPFamilies_IPV4_ONLY || s.LoadBalancing.Mode != workloadpb.LoadBalancing_FAILOVER ||
		len(s.LoadBalancing.RoutingPreference) != 2 || s.LoadBalancing.HealthPolicy != workloadpb.LoadBalancing_ALLOW_ALL {
		t.Errorf("%v", s)
	}
	p := c.Policies[0]
	m := p.Groups[0].Rules[0].Matches[0]
	if p.Action != securitypb.Action_ALLOW || p.Scope != securitypb.Scope_NAMESPACE || m.NotDestinationPorts[0] != 9999 ||
		m.Principals[0].GetExact() == "" || m.Principals[1].GetPrefix() != "x" || m.Principals[2].GetSuffix() != "why" || m.Principals[3].GetPresence() == nil ||
		m.SourceIps[0].Length != 8 {
		t.Errorf("%v", p)
	}
}

func TestRefused(t *testing.T) {
	for _, text := range []string{
		"workloads: [{name: x}]",
		"workloads: [{uid: x, protocol: QUIC}]",
		"workloads: [{uid: x, colour: red}]",
		"workloads: [{uid: x, workloadIps: [300.0.0.1]}]",
		"services: [{name: x}]",
		"services: [{hostname: x, vips: [10.0.0.1]}]",
		"services: [{hostname: x, loadBalancer: {mode: Best}}]",
		"policies: [{name: x, action: Maybe}]",
		"policies: [{name: x, rules: [[[null]]]}]",
		"policies: [{name: x, rules: [[[{principals: [{Like: x}]}]]]}]",
		"workloads: 5",
		"{",
	} {
		if c, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), "local xDS") {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v %v", c, err)
		}
	})
}
