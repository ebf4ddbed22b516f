package socks5

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// errTaken is why a port cannot be had.
var errTaken error = syscall.EADDRINUSE

// lookupTime bounds the look-up of a name.
const lookupTime = 5 * time.Second

// Names returns the addresses of one family that the mesh has for a name. It reports
// whether the name is the mesh's.
type Names func(ctx context.Context, name string, v6 bool) (addrs []netip.Addr, known bool)

// Resolve returns where a request leads, for a pod with these addresses: the name's
// address of a family that the pod has, IPv4 first. It may wait for a name server. Names
// that are not the mesh's are looked up from the pod's network, at the name servers of the
// proxy: those in the pod's own file are out of its reach.
func (c *Client) Resolve(own []netip.Addr) (netip.AddrPort, *reason.Error) {
	r := c.Request
	addr := r.Addr
	if !addr.IsValid() {
		ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
		defer cancel()
		var err error
		if addr, err = c.pod.lookUp(ctx, r.Host, own); err != nil {
			return netip.AddrPort{}, reason.Errorf(reason.NoHealthyUpstream, "resolving %s: %w", r.Host, err)
		}
	}
	if err := Permitted(addr); err != nil {
		return netip.AddrPort{}, reason.Errorf(reason.RecursiveCall, "%s: %w", r, err)
	}
	return netip.AddrPortFrom(addr, r.Port), nil
}

func (p *Pod) lookUp(ctx context.Context, host string, own []netip.Addr) (netip.Addr, error) {
	ours := false
	for _, v6 := range families(own) {
		if addrs, known := p.Mesh(ctx, host, v6); known {
			ours = true
			if len(addrs) > 0 {
				return addrs[0], nil
			}
		}
	}
	if ours {
		return netip.Addr{}, errors.New("the mesh has no address of the pod's families for it")
	}
	r := net.Resolver{PreferGo: true, Dial: p.dial}
	addrs, err := r.LookupNetIP(ctx, "ip", host+".") // no search domain of the proxy
	if err != nil {
		return netip.Addr{}, err
	}
	for _, v6 := range families(own) {
		for _, a := range addrs {
			if a = a.Unmap(); a.Is6() == v6 {
				if p.Found != nil {
					p.Found(host, a)
				}
				return a, nil
			}
		}
	}
	return netip.Addr{}, fmt.Errorf("none of its %d addresses is of the pod's families", len(addrs))
}

// families returns whether to look for IPv6, in order.
func families(own []netip.Addr) (out []bool) {
	for _, v6 := range []bool{false, true} {
		for _, a := range own {
			if a.Is6() == v6 {
				out = append(out, v6)
				break
			}
		}
	}
	return out
}

// dial connects to a name server from the pod's network.
func (p *Pod) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var merr error
		if p.Mark == 0 {
			return nil
		}
		return errors.Join(raw.Control(func(fd uintptr) { merr = sockopt.Mark(int(fd), p.Mark) }), merr)
	}}
	err = p.Do(func() error { c, err = d.DialContext(ctx, network, address); return err })
	return c, err
}

// Permitted returns why an address is not connected to: the proxy would call the pod, or
// itself, under another identity.
func Permitted(a netip.Addr) error {
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified():
		return errors.New("a program calls its own pod without a proxy")
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("it is no address of one host")
	}
	return nil
}
