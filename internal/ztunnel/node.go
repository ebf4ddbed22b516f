// Package ztunnel is the node proxy: it carries the connections of the pods
// of its node, through mutual TLS tunnels where the other side can, and lets
// in what policies allow. Each pod has listeners of its own, made inside its
// network namespace; event loops are shared by all.
package ztunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/resolve"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bell"
	"github.com/ambit-mesh/ambit/internal/ztunnel/bounds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/hello"
	"github.com/ambit-mesh/ambit/internal/ztunnel/inflight"
	"github.com/ambit-mesh/ambit/internal/ztunnel/managed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/portguard"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// Certificates is where the proxy gets its pods' certificates.
type Certificates interface {
	// Hold keeps an identity's certificate fetched and renewed until release.
	Hold(id identity.Identity, p certs.Priority) (release func())
	// Get returns the certificate, waiting for the first one.
	Get(ctx context.Context, id identity.Identity) (*mtls.Bundle, error)
}

// Options is what a Node works with. All but Demand, Metrics, Observed, Traffic and Egress are required.
type Options struct {
	Config    *config.Config
	Logger    *slog.Logger
	Directory *workload.Directory
	Policies  *rbac.Store
	Certs     Certificates
	TLS       mtls.Options
	Loops     *poll.Group
	Recorder  *telemetry.Recorder
	// Demand, when set, asks the control plane for an address ("network/ip")
	// or a service ("namespace/hostname") and returns when the directory
	// has the answer.
	Demand  func(ctx context.Context, name string) error
	Metrics *managed.Metrics
	// Observed is what users want observed; nil: nothing more than without settings.
	Observed *observed.Node
	Traffic  *traffic.Node    // rules and routes of connections; nil: none
	Egress   *egress.Policies // nil: none
	Hosts    *hosts.Table     // nil: none
	DNS      dnsproxy.Options // its logger and metrics, where they are not the node's
	// Descriptors is how many the process may have; 0 for its limit now.
	Descriptors int
}

// Node serves the pods of one node. It is the Handler of a zds.Client, and
// its methods may be called from any goroutine.
type Node struct {
	Options
	log       *slog.Logger
	budgets   budget.Node
	active    atomic.Int64  // what a drain waits for, see occupied
	ownerless atomic.Bool   // warned that listening sockets cannot be given their owner
	spared    atomic.Bool   // warned that the kernel cannot end connections
	strange   atomic.Int64  // addresses asked for because peers named them
	idle      chan struct{} // gets a token when active falls to 0
	watch     *portguard.Watch
	review    *reviewer
	news      bell.Bell // rings when policies or workloads changed
	names     *resolve.Resolver
	dns       *dnsproxy.Node // nil: names are left alone
	egress    egress.Gate
	hellos    hello.Node
	answers   *budget.Pool // of look-ups, that are remembered
	stop      []func()

	mu   sync.Mutex // guards what follows
	pods map[string]*pod
	// byName has the pods of a name. There are two for a moment when a pod has the name of
	// one that ends: the node agent removes the former one after it has added the new one, and
	// may add the former one once more before.
	byName   map[podName][]*pod
	self     *pod // the proxy's own; nil without one
	draining bool

	tunnels inflight.Tunnels
	loads   inflight.Loads

	connected func(bool) // told by Connected; may be nil
}

type podName struct{ namespace, name string }

// NewNode makes a Node without pods. It follows the directory and the
// policies until Close.
func NewNode(o Options) *Node {
	if o.Metrics == nil {
		o.Metrics = &managed.Metrics{}
	}
	n := &Node{
		Options: o, log: o.Logger,
		budgets: budget.NewNode(o.Descriptors, o.Loops.Len()),
		names:   resolve.New(),
		dns:     newDNS(&o),
		egress:  egress.Gate{Exempt: egress.Servers(o.Config.XDS.Address, o.Config.CA.Address), Log: o.Logger, Policies: cmp.Or(o.Egress, egress.NewPolicies(o.Logger)), Hosts: o.Hosts, NameServers: egress.NameServers("/etc/resolv.conf", o.Config.EgressNameServers)},
		answers: budget.New(egress.NodeAnswers),
		idle:    make(chan struct{}, 1),
		pods:    map[string]*pod{},
		byName:  map[podName][]*pod{},
	}
	n.review = newReviewer(n)
	n.egress.Policies.Follow(n.review.all)
	o.Recorder.Follow(telemetry.Live{
		Workload: func(w *workload.Workload) bool { return o.Directory.Snapshot().WorkloadByUID(w.UID) == w },
		Service: func(s telemetry.ServiceRef) bool {
			return o.Directory.Snapshot().ServiceByName(s.Namespace, s.Hostname) != nil
		},
	})
	n.watch = portguard.NewWatch(n.guardPorts)
	n.stop = append(n.stop,
		o.Directory.Subscribe(n.directoryChanged),
		o.Policies.Subscribe(func(*rbac.Set) { n.news.Ring(); n.review.all() }),
		n.review.close, n.watch.Close,
	)
	return n
}

// Add implements zds.Handler.
func (n *Node) Add(_ context.Context, uid string, info zds.Info, ns *netns.NS) error {
	return n.add(uid, bootstrap.Workload{Name: info.Name, Namespace: info.Namespace, ServiceAccount: info.ServiceAccount}, ns)
}

// AddLocal serves the one workload of dedicated mode, in the network that the
// process runs in.
func (n *Node) AddLocal(info bootstrap.Workload) error {
	return n.add(info.Namespace+"/"+info.Name, info, nil)
}

// AddSelf lets the proxy's own pod be reached through tunnels, for its
// metrics, when the control plane says that it is in the mesh.
func (n *Node) AddSelf(info bootstrap.Workload) error {
	p := newPod(n, "self", info, nil)
	p.self = true
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.self != nil || n.draining {
		return nil
	}
	if err := p.start(); err != nil {
		p.share.Leave()
		p.seen.Leave()
		p.egress.Leave()
		return err
	}
	n.self = p
	n.name(p)
	return nil
}

func (n *Node) add(uid string, info bootstrap.Workload, ns *netns.NS) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.draining {
		_ = ns.Close() // nothing is lost with a namespace descriptor
		return fmt.Errorf("this ztunnel is draining")
	}
	if old := n.pods[uid]; old != nil {
		if old.up && old.info == info && netns.Same(old.ns, ns) {
			_ = ns.Close()
			return nil
		}
		n.removeLocked(old)
	}
	p := newPod(n, uid, info, ns)
	n.pods[uid] = p
	n.name(p)
	return n.startLocked(p)
}

// name makes a pod known by its name; the caller holds mu.
func (n *Node) name(p *pod) {
	key := podName{p.info.Namespace, p.info.Name}
	n.byName[key] = append(n.byName[key], p)
}

// startLocked brings p up, or arranges for another try; the caller holds mu.
func (n *Node) startLocked(p *pod) error {
	err := p.start()
	if err == nil {
		p.up = true
		n.Metrics.Started.Add(1)
		if w := p.local(n.Directory.Snapshot()); w != nil && w.Ending.Begun() {
			p.srv.Leave(true)
		}
		n.review.pod(p)
		n.log.Info("pod is served", "uid", p.uid, "workload", p.info.Namespace+"/"+p.info.Name)
		return nil
	}
	wait := p.backoff
	p.backoff = min(2*p.backoff, bounds.RetryMax)
	if errors.Is(err, syscall.EADDRINUSE) {
		// Who has the port may be a node proxy that is being replaced: no connection
		// is served from when it ends to the next try.
		wait = bounds.RetryStart
		n.watch.Soon()
	}
	if p.tries++; p.tries&(p.tries-1) == 0 || wait != bounds.RetryStart {
		n.log.With(portguard.Holder(p.do, p.portNumbers(), err)...).Warn("pod cannot be served yet", "uid", p.uid, "workload", p.info.Namespace+"/"+p.info.Name, "again_in", wait.String(), "error", err)
	}
	p.retry = time.AfterFunc(wait, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.pods[p.uid] == p && !p.up && !n.draining {
			_ = n.startLocked(p) // logged there
		}
	})
	return fmt.Errorf("serving %s/%s: %w", p.info.Namespace, p.info.Name, err)
}

func (n *Node) removeLocked(p *pod) {
	delete(n.pods, p.uid)
	key := podName{p.info.Namespace, p.info.Name}
	if n.byName[key] = slices.DeleteFunc(n.byName[key], func(o *pod) bool { return o == p }); len(n.byName[key]) == 0 {
		delete(n.byName, key)
	}
	if p.retry != nil {
		p.retry.Stop()
	}
	if p.up {
		n.Metrics.Stopped.Add(1)
	}
	p.close(reason.WorkloadRemoved)
}

// Del implements zds.Handler.
func (n *Node) Del(_ context.Context, uid string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pods[uid]; p != nil {
		n.removeLocked(p)
		n.log.Info("pod is not served any more", "uid", uid, "workload", p.info.Namespace+"/"+p.info.Name)
	}
	return nil
}

// Snapshot implements zds.Handler.
func (n *Node) Snapshot(_ context.Context, named map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid, p := range n.pods {
		if !named[uid] {
			n.removeLocked(p)
			n.log.Info("pod is gone, says the node agent's list", "uid", uid)
		}
	}
}

// Connected implements zds.Handler.
func (n *Node) Connected(yes bool) {
	n.mu.Lock()
	f := n.connected
	n.mu.Unlock()
	if f != nil {
		f(yes)
	}
}

// onConnected has f told when the node agent comes and goes.
func (n *Node) onConnected(f func(bool)) {
	n.mu.Lock()
	n.connected = f
	n.mu.Unlock()
}

// Counts tells how many pods are served, and how many wait to be.
func (n *Node) Counts() (up, pending int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		if p.up {
			up++
		} else {
			pending++
		}
	}
	return up, pending
}

func (n *Node) list() []*pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]*pod, 0, len(n.pods))
	for _, p := range n.pods {
		all = append(all, p)
	}
	if n.self != nil {
		all = append(all, n.self)
	}
	return all
}

// Drain stops accepting at once and lets what is open go on, until nothing is
// or ctx ends. What is left then is reset.
func (n *Node) Drain(ctx context.Context) {
	n.mu.Lock()
	n.draining = true
	n.mu.Unlock()
	pods := n.list()
	for _, p := range pods {
		p.stopAccepting()
	}
	for n.active.Load() > 0 && ctx.Err() == nil {
		select {
		case <-n.idle:
		case <-ctx.Done():
		}
	}
	if left := n.active.Load(); left > 0 {
		n.log.Warn("drain deadline is over", "connections_reset", left)
	}
	n.Close()
}

// Close ends everything now.
func (n *Node) Close() {
	n.mu.Lock()
	n.draining = true
	pods := n.pods
	if n.self != nil {
		pods[n.self.uid] = n.self
	}
	n.self, n.pods, n.byName = nil, map[string]*pod{}, map[podName][]*pod{}
	stop := n.stop
	n.stop = nil
	n.mu.Unlock()
	for _, f := range stop {
		f()
	}
	for _, p := range pods {
		if p.retry != nil {
			p.retry.Stop()
		}
		p.close(reason.Draining)
	}
}

// directoryChanged runs on the goroutine that applies updates.
func (n *Node) directoryChanged(ch workload.Changes) {
	n.news.Ring()
	for i := range ch.List {
		c := &ch.List[i]
		if c.OldService != nil && c.NewService == nil {
			n.Recorder.ServiceGone(c.OldService)
		}
		if c.OldWorkload == nil && c.NewWorkload == nil {
			continue
		}
		n.Recorder.WorkloadChanged(c.OldWorkload, c.NewWorkload)
		w := c.NewWorkload
		if w == nil {
			w = c.OldWorkload
		}
		n.follow(w.UID, c.Fate())
		had, has := c.OldWorkload.KeepsTunnels(), c.NewWorkload.KeepsTunnels()
		n.mu.Lock()
		named := slices.Clone(n.byName[podName{w.Namespace, w.Name}])
		for _, p := range named {
			if p.srv != nil && (had != has || w.Ending.Begun()) {
				p.srv.Leave(!has)
			}
		}
		n.mu.Unlock()
		for _, p := range named {
			n.review.pod(p)
		}
	}
}

// tunnelled reports whether a workload is reached through tunnels.
func tunnelled(w *workload.Workload) bool { return w != nil && w.Protocol == workload.HBONE }

// follow does to the tunnels to a workload what becomes of them.
func (n *Node) follow(uid string, f workload.Fate) {
	switch f {
	case workload.Stay:
		return
	case workload.Renew, workload.Close:
		n.Traffic.Forget(uid)
	case workload.Release:
	}
	for _, p := range n.tunnels.To(uid) {
		p.Follow(uid, f)
	}
}

// tunnel follows which pools have tunnels to which workload.
func (n *Node) tunnel(p *hbone.Pool, uid string, delta int) {
	if uid == "" {
		return
	}
	n.tunnels.Add(p, uid, delta)
	if delta <= 0 {
		return
	}
	// It may have left while the tunnel was being made.
	switch w := n.Directory.Snapshot().WorkloadByUID(uid); {
	case w == nil:
		p.Follow(uid, workload.Close)
	case !w.KeepsTunnels():
		p.Follow(uid, workload.Release)
	}
}

// random is the source of choice of every decision.
func random(n uint64) uint64 { return rand.Uint64N(n) }

// anyAddr is where listeners bind.
func anyAddr(v6 bool, port uint16) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port)
}
