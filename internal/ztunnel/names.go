package ztunnel

import (
	"cmp"

	"github.com/ambit-mesh/ambit/internal/dns"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
)

// newDNS makes the DNS proxy of a node; nil where it is off.
func newDNS(o *Options) *dnsproxy.Node {
	c := o.Config
	if !c.DNSProxy {
		return nil
	}
	d := o.DNS
	d.Logger, d.Directory, d.Loops, d.Demand = cmp.Or(d.Logger, o.Logger), o.Directory, o.Loops, o.Demand
	d.Domain, d.Mark, d.ReusePort = c.ClusterDomain, c.PacketMark, c.PortReuse
	return dnsproxy.New(d)
}

// serveDNS answers the pod's look-ups.
func (p *pod) serveDNS() (*dnsproxy.Pod, error) {
	n := p.node
	if n.dns == nil || p.self {
		return nil, nil
	}
	return n.dns.Serve(dnsproxy.Host{
		Name: p.info.Namespace + "/" + p.info.Name, Do: p.do, Sockets: p.share.sockets, Owner: n.owner(), Busy: n.occupied,
		Client:   dns.Client{Namespace: p.info.Namespace, Network: n.Config.Network, Cluster: n.Config.ClusterID, IPv6: n.Config.IPv6},
		Workload: func() *workload.Workload { return p.local(n.Directory.Snapshot()) },
	})
}
