package ztunnel

import (
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// limit counts the connection in the group of its route, or refuses it.
func (o *outgoing) limit() *reason.Error {
	g := o.route.Group
	if g == o.held {
		return nil
	}
	o.held.Leave()
	o.held = nil
	if err := g.Enter(); err != nil {
		return err
	}
	o.held = g
	return nil
}

// outcome has the rule of the route learn what came of an attempt.
func (o *outgoing) outcome(why reason.Reason, status int) {
	n := o.pod.node
	if o.route.Outcome(n.Directory.Snapshot(), why, status) {
		n.log.Info("endpoint ejected: connections to it have failed", "endpoint", o.route.Workload.UID, "service", o.route.Service.Key(),
			"rule", o.route.Group.Rule(), "reason", why)
	}
}

// done is the end of the connection, once it is carried. What it holds lives as long.
func (o *outgoing) done() func(*relay.Flow, relay.Result) {
	f, g := o.pod.outboundDone(o.conn), o.held
	if g == nil {
		return f
	}
	return func(flow *relay.Flow, res relay.Result) {
		g.Leave()
		f(flow, res)
	}
}
