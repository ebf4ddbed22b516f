// Package observed is what users want to have observed of the connections of a node's pods:
// their spans and the way of these to a collector, which of them have a line in the access
// log, and how they are counted.
package observed

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/l7/observe/connections"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/export"
	"github.com/ambit-mesh/ambit/internal/proxy/observed"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// Config is what a Node is made of.
type Config struct {
	Loops     *poll.Group
	Directory *workload.Directory
	Layers    *observed.Layers
	Log       *slog.Logger
	// Network, Cluster and NodeName are those of the node, Self is the proxy's own pod; nil
	// when unknown.
	Network, Cluster, NodeName string
	Self                       *bootstrap.Workload
	// Certs has the proxy's own certificate, for tunnels to collectors that are in the mesh.
	Certs interface {
		Get(ctx context.Context, id identity.Identity) (*mtls.Bundle, error)
	}
	TLS mtls.Options
	// Mark is set on the sockets to collectors; 0 for none.
	Mark uint32
	// Demand requests a service by name, in on-demand mode; nil otherwise.
	Demand func(ctx context.Context, name string) error
}

// NewLayers returns no layers, of node proxies.
func NewLayers(log *slog.Logger) *observed.Layers {
	return observed.New(connections.Language, "", log)
}

// maxPending bounds the bytes of spans on their way to the loop that sends them.
const maxPending = 1 << 20

// Node is what is observed on one node. The nil Node observes nothing. Its methods may be
// called from any goroutine.
type Node struct {
	cfg      Config
	counters *otlp.Counters
	verdicts *telemetry.Verdicts
	senders  []*sender
	tunnels  *hbone.Pool
	encoders sync.Pool // of *otlp.Encoder

	skipped skipped

	mu     sync.Mutex // guards what follows
	pods   map[*Pod]struct{}
	meters map[string]*meter // by namespace
}

// sender sends the spans of one loop.
type sender struct {
	loop     *poll.Loop
	pending  atomic.Int64
	pool     *pool.Pool
	exporter *export.Exporter
}

// New returns a Node without pods.
func New(cfg Config) *Node {
	n := &Node{
		cfg: cfg, counters: otlp.NewCounters("ztunnel", "spans"), verdicts: telemetry.NewVerdicts(), pods: map[*Pod]struct{}{}, meters: map[string]*meter{},
		encoders: sync.Pool{New: func() any { return &otlp.Encoder{} }},
	}
	n.tunnels = hbone.NewPool(hbone.PoolConfig{Loops: cfg.Loops, Dial: n.dialTunnel, DialTimeout: connectTimeout})
	for i := range cfg.Loops.Len() {
		l := cfg.Loops.Loop(i)
		s := &sender{loop: l, pool: n.NewPool(l)}
		s.exporter = export.New(export.Config{
			Loop: l, Pool: s.pool, Reach: n.reach, Prefix: n.prefix, Counters: n.counters, Log: cfg.Log, Method: export.MethodTraces, Agent: "ambit-ztunnel",
		})
		n.senders = append(n.senders, s)
	}
	return n
}

// Collectors returns what counts here, for a registry of metrics.
func (n *Node) Collectors() []prometheus.Collector {
	return []prometheus.Collector{n.counters, n.verdicts, &n.skipped}
}

// Run requests the services of collectors until ctx ends.
func (n *Node) Run(ctx context.Context) {
	for {
		select {
		case <-n.cfg.Layers.Changed():
		case <-ctx.Done():
			return
		}
		if n.cfg.Demand == nil {
			continue
		}
		for _, name := range n.cfg.Layers.Names() {
			if err := n.cfg.Demand(ctx, name); err != nil && ctx.Err() == nil {
				n.cfg.Log.Warn("a collector's service is not known", "service", name, "error", err)
			}
		}
	}
}

// Recheck judges the peers of the tunnels to collectors again.
func (n *Node) Recheck(judge func(hbone.Key, *tls.ConnectionState) *reason.Error) {
	if n != nil {
		n.tunnels.Recheck(judge)
	}
}

// Flush sends the spans that wait, for a time, and gives up the rest. It is called last.
func (n *Node) Flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	export.FlushAll(ctx, n.cfg.Loops, func(loop int) bool { return n.senders[loop].exporter.Flush() })
	for _, s := range n.senders {
		s.loop.Post(func() { s.exporter.Close(); s.pool.Drain() })
	}
	n.tunnels.Close(reason.Draining)
}

// flushTime is how long collectors have to accept the last spans.
const flushTime = 2 * time.Second

// send passes an encoded span on to the loop of its trace.
func (n *Node) send(s *span, trace [16]byte, party string, body []byte) {
	to := n.senders[int(trace[0])%len(n.senders)]
	size := int64(len(body))
	if to.pending.Add(size) > maxPending {
		to.pending.Add(-size)
		n.counters.Full(1)
		return
	}
	collector := s.half.settings.Tracing.Collector
	if !to.loop.Post(func() { to.pending.Add(-size); to.exporter.Add(collector, party, body) }) {
		n.counters.Failed(1)
	}
}

// prefix names the process that sends.
func (n *Node) prefix() *otlp.Prefix {
	c := &n.cfg
	self := bootstrap.Workload{}
	if c.Self != nil {
		self = *c.Self
	}
	return otlp.NewPrefix("ambit.ztunnel", version.Get().Version, []otlp.Attribute{
		{Key: "service.name", Value: "ztunnel"}, {Key: "service.namespace", Value: self.Namespace}, {Key: "service.instance.id", Value: self.Name},
		{Key: "k8s.namespace.name", Value: self.Namespace}, {Key: "k8s.pod.name", Value: self.Name}, {Key: "k8s.node.name", Value: c.NodeName},
		{Key: "k8s.cluster.name", Value: c.Cluster},
	})
}

// For implements telemetry.Overrides: the overrides of a workload of this node.
func (n *Node) For(t telemetry.Traffic) map[string]telemetry.Override {
	snap := n.cfg.Directory.Snapshot()
	n.mu.Lock()
	defer n.mu.Unlock()
	var of *workload.Workload
	for p := range n.pods {
		// Pods of one workload nearly always have the same settings. Of several, the first
		// one's count, so that they do not change from scrape to scrape.
		if w := p.local(snap); w != nil && w.Namespace == t.Namespace && w.WorkloadName == t.Workload && (of == nil || w.UID < of.UID) {
			of = w
		}
	}
	if of == nil {
		return nil
	}
	return observed.Overrides(n.cfg.Layers.Set().ForWorkload(of.Namespace, of.UID, sideOf(t.Reporter)))
}

// Any implements telemetry.Overrides.
func (n *Node) Any() bool { return n.cfg.Layers.Any() }

func random() uint64 { return rand.Uint64() }

// sideOf returns the half of connections that a reporter counts.
func sideOf(reporter string) observe.Side {
	if reporter == telemetry.Destination.String() {
		return observe.Server
	}
	return observe.Client
}
