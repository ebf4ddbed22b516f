package ztunnel

import (
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
	return dnsproxy.New(dnsproxy.Options{
		Logger: o.Logger, Directory: o.Directory, Loops: o.Loops, Domain: c.ClusterDomain,
		Mark: c.PacketMark, ReusePort: c.PortReuse, Demand: o.Demand, Metrics: o.DNS,
	})
}

// serveDNS answers the pod's look-ups.
func (p *pod) serveDNS() (*dnsproxy.Pod, error) {
	n := p.node
	if n.dns == nil || p.self {
		return nil, nil
	}
	return n.dns.Serve(dnsproxy.Host{
		Name: p.info.Namespace + "/" + p.info.Name, NS: p.ns, Do: p.do, Sockets: p.share.sockets, Owner: n.owner(),
		Client:   dns.Client{Namespace: p.info.Namespace, Network: n.Config.Network, Cluster: n.Config.ClusterID, IPv6: n.Config.IPv6},
		Workload: func() *workload.Workload { return p.local(n.Directory.Snapshot()) },
	})
}
