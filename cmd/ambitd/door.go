package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/door"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// What strangers can cause is logged once a second, after the first of them.
const (
	sparseInterval = time.Second
	sparseBurst    = 20
)

// sparse returns the logger of a scope for what strangers can cause.
func (a *app) sparse(scope string) *slog.Logger {
	return logging.Sparse(a.logs.Logger(scope), sparseInterval, sparseBurst)
}

// newDoor returns the bounds of the connections to 15012 and 15010.
func (a *app) newDoor() *door.Door {
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_control_refused_total", Help: "Connections and calls that were refused before they were served, by cause.",
	}, []string{"cause"})
	for _, c := range door.Causes {
		refused.WithLabelValues(string(c))
	}
	d := door.New(door.Options{
		Logger:    a.sparse("door"),
		Refused:   func(c door.Cause) { refused.WithLabelValues(string(c)).Inc() },
		NodeProxy: a.callers.IsNodeProxy,
		Largest:   a.largest,
	})
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_control_waiting_connections", Help: "Connections whose callers are not authenticated yet.",
	}, func() float64 { return float64(d.Waiting()) })
	a.metrics.MustRegister(refused, waiting)
	return d
}

// largest returns the largest message that a caller may send to a method. Only
// a client of xDS has something long to say: a list of what it has.
func (a *app) largest(c auth.Caller, method string) int {
	switch {
	case !strings.HasPrefix(method, "/"+discovery.AggregatedDiscoveryService_ServiceDesc.ServiceName+"/"):
		return door.SmallMessage
	case a.callers.IsNodeProxy(c):
		return xds.MaxRequest
	}
	// Twice the list of this moment: the client may have what is gone since.
	return min(xds.MaxRequest, door.SmallMessage+2*a.cache.ListBytes())
}

// streamCaller returns the account and pod for which a stream counts.
func (a *app) streamCaller(ctx context.Context) xds.Caller {
	c, _ := auth.FromContext(ctx) // the interceptors admit no stream without
	owner, single := door.Owner(c)
	return xds.Caller{Owner: owner, Account: c.Account(), Single: single, NodeProxy: a.callers.IsNodeProxy(c)}
}

// scopeOf returns what the caller of a stream may have of a type.
func (a *app) scopeOf(ctx context.Context, n *core.Node, typeURL string) (xds.Scope, error) {
	c, _ := auth.FromContext(ctx)
	s, err := a.callers.Scope(c, n.GetMetadata().GetFields()["NODE_NAME"].GetStringValue(), typeURL)
	if err != nil {
		a.outsiders.Warn("xds client refused", "caller", c.Account(), "pod", c.PodName, "node", c.Node, "cluster", c.Cluster, "type", typeURL, "error", err)
	}
	return s, err
}

// endOutdatedStreams ends streams whose caller is not what it was when they
// began: its pod ended, or its account became or ceased to be that of a gateway.
func (a *app) endOutdatedStreams() {
	a.registry.Nodes.Ended = func(p access.Pod, at access.Placement) {
		owner, _ := door.Owner(auth.Caller{Cluster: p.Cluster, Namespace: p.Namespace, ServiceAccount: at.Account, PodName: p.Name, PodUID: at.UID})
		a.xds.EndOwner(owner)
	}
	a.registry.Gateways.Changed = func(account access.Account) {
		a.xds.EndAccount(account.Namespace + "/" + account.Name)
	}
}
