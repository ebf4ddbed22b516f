package ztunnel

import (
	"net/netip"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/ztunnel/socks5"
)

// serveSOCKS lets programs of the pod ask for connections by SOCKS5, where that is on.
func (p *pod) serveSOCKS() (s *socks5.Pod, err error) {
	n := p.node
	if !n.Config.SOCKS5 || p.self {
		return nil, nil
	}
	s, err = socks5.Serve(socks5.Host{
		Loops: n.Loops, Do: p.do, Owner: n.owner(), ReusePort: n.Config.PortReuse, Mark: n.Config.PacketMark, Mesh: p.dns.Lookup, Found: p.egress.Found,
		Take: func() *reason.Error { return p.carry(1) }, Give: func() { p.drop(1) },
		Connect: func(c *socks5.Client) {
			n.Recorder.SocketOpened(telemetry.Source)
			o := &outgoing{pod: p, loop: c.Loop, fd: c.FD, sockets: 1, src: c.Remote, start: c.Start, trace: connect.NewTrace(), socks: c}
			o.begin()
		},
		Refused: func(src, dst netip.AddrPort, err *reason.Error) {
			n.Recorder.Failed(p.logs, telemetry.Source, src, dst, err)
		},
	})
	return s, p.taken(err, "SOCKS5 is not served in the pod: one of its programs has port 15080")
}

// lookUp finds the destination of the program. What it is connected to sees the pod's
// address, and not loopback, from where the program has asked.
func (o *outgoing) lookUp() {
	found := func(dst netip.AddrPort, err *reason.Error) {
		if err != nil {
			o.refuse(err)
			return
		}
		o.dst = dst
		for _, a := range o.source.Addrs() {
			if a.Is4() == dst.Addr().Is4() {
				o.src = netip.AddrPortFrom(a, o.src.Port())
				break
			}
		}
		o.demand()
	}
	own := o.source.Addrs()
	if o.socks.Request.Addr.IsValid() {
		found(o.socks.Resolve(own))
		return
	}
	err := o.pod.off(o.loop, func() {
		dst, err := o.socks.Resolve(own)
		o.loop.Post(func() { found(dst, err) })
	})
	if err != nil {
		o.refuse(err)
	}
}

// give gives the program's socket away, to what carries its bytes.
func (o *outgoing) give() (fd int) {
	if o.socks != nil {
		socks5.Accept(o.fd)
	}
	fd, o.fd = o.fd, -1
	return fd
}
