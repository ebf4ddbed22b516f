package ztunnel

import (
	"cmp"
	"errors"
	"syscall"

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

// serveDNS answers the pod's look-ups. A pod whose own program has the port is served
// without: its connections are carried, and its captured look-ups are that program's.
func (p *pod) serveDNS() (*dnsproxy.Pod, error) {
	n := p.node
	if n.dns == nil || p.self {
		return nil, nil
	}
	d, err := n.dns.Serve(dnsproxy.Host{
		Name: p.info.Namespace + "/" + p.info.Name, Do: p.do, Sockets: p.share.Sockets, Owner: n.owner(), Busy: n.occupied,
		Client:   dns.Client{Namespace: p.info.Namespace, Network: n.Config.Network, Cluster: n.Config.ClusterID, IPv6: n.Config.IPv6},
		Workload: func() *workload.Workload { return p.local(n.Directory.Snapshot()) },
		Answers:  n.egress.Listen(&p.egress, p.info.Namespace, func() *workload.Workload { return p.local(n.Directory.Snapshot()) }),
	})
	return d, p.taken(err, "look-ups of the pod are not answered: one of its programs has port 15053")
}

// taken passes an error of listening on, but for one of a port that a program of the pod
// has. Where generations of the proxy cannot share a port, the former one may have it.
func (p *pod) taken(err error, without string) error {
	if !errors.Is(err, syscall.EADDRINUSE) || !p.node.Config.PortReuse {
		return err
	}
	p.node.log.Warn(without, "uid", p.uid, "workload", p.info.Namespace+"/"+p.info.Name, "error", err)
	return nil
}
