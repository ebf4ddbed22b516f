package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/sockdiag"
)

const (
	// coldSamples is how many first connections a round has.
	coldSamples = 15
	// coldRest is what proxies have to notice that a tunnel has ended.
	coldRest = 10 * time.Millisecond
	// coldWait bounds one of them, on a machine under load.
	coldWait = 30 * time.Second
)

// cold measures a connection for which the proxies have no tunnel: connect, one echo,
// close. The tunnels to the server are ended before each.
func (c *contender) cold(ctx context.Context) (map[string]float64, error) {
	ns, err := c.netns(ctx, c.client)
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	var all []time.Duration
	for range coldSamples {
		if err := c.endTunnels(ctx, ns); err != nil {
			return nil, err
		}
		took, err := first(ns, c.addr)
		if err != nil {
			return nil, fmt.Errorf("a first connection: %w", err)
		}
		all = append(all, took)
	}
	slices.Sort(all)
	return map[string]float64{rowCold: float64(all[len(all)/2].Microseconds()) / 1000}, nil
}

// first makes one connection, and says how long it took to its first answer.
func first(ns *netns.NS, addr string) (time.Duration, error) {
	began := time.Now()
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", addr, coldWait)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // it has answered
	err = conn.SetDeadline(time.Now().Add(coldWait))
	if err == nil {
		_, err = conn.Write([]byte{'E', 1})
	}
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return time.Since(began), err
}

// endTunnels resets what goes from a pod to a port of tunnels.
func (c *contender) endTunnels(ctx context.Context, ns *netns.NS) error {
	var d *sockdiag.Diag
	err := ns.Do(func() (err error) {
		d, err = sockdiag.Open()
		return err
	})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := c.await(ctx, func() error {
		list, err := d.List(sockdiag.Connected)
		if err != nil {
			return err
		}
		left := 0
		for i := range list {
			if list[i].Remote.Port() == wellknown.PortHBONE {
				left++
				if err := d.Destroy(&list[i]); err != nil && !errors.Is(err, sockdiag.ErrGone) {
					return err
				}
			}
		}
		if left > 0 {
			return fmt.Errorf("%d tunnels are left", left)
		}
		return nil
	}); err != nil {
		return err
	}
	time.Sleep(coldRest)
	return nil
}

// enlarge lets packets on all interfaces of the way be large.
func (c *contender) enlarge(ctx context.Context, ways ...lab.Where) error {
	for _, in := range append(ways, lab.LAN, lab.InNode("node1"), lab.InNode("node2")) {
		ns, err := c.netns(ctx, in)
		if err != nil {
			return err
		}
		l, err := links.Of(ns)
		if err == nil {
			err = network.Enlarge(l)
			l.Close()
		}
		if err = errors.Join(err, ns.Close()); err != nil {
			return fmt.Errorf("large packets in %s: %w", in, err)
		}
	}
	return nil
}
