package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
	"github.com/ambit-mesh/ambit/internal/zds"
)

// ErrNoNamespace tells that a pod's network namespace was not found (yet).
var ErrNoNamespace = errors.New("no network namespace found")

// Resolver finds the network namespace of a pod.
type Resolver interface {
	// Find opens the first namespace of a pod that prove accepts. The pod is
	// known by any of the UIDs. Without a candidate the error matches
	// ErrNoNamespace, else it is prove's. The namespace is the caller's.
	Find(uids []string, prove func(*netns.NS) error) (*netns.NS, error)
}

// Proxies are the generations of the node proxy that are connected.
type Proxies interface {
	Register(w zds.Workload) error
	Keep(uid string)
	Add(ctx context.Context, w zds.Workload) error
	Del(ctx context.Context, uid string) error
	Served(uid string) bool
	Serve(ctx context.Context) error
}

// Annotator announces the state of a pod's redirection to the mesh.
type Annotator interface {
	// Annotate sets the redirection annotation of a pod, or removes it when the
	// value is empty. A pod that is gone, or whose name is another pod's meanwhile,
	// needs nothing.
	Annotate(ctx context.Context, pod Pod, value string) error
}

// Kernel is what the agent does inside a pod's namespace.
type Kernel interface {
	Apply(ns *netns.NS, cfg nft.Config) error
	Check(ns *netns.NS, cfg nft.Config) (differs []string, err error)
	Remove(ns *netns.NS) error
	Present(ns *netns.NS) (bool, error)
	Connections(ns *netns.NS) (int, error)
}

// LargePackets lets packets of an enrolled pod be larger than others. What fails there
// is no failure of the agent.
type LargePackets interface {
	Join(ns *netns.NS, addrs []netip.Addr)
	Leave(ns *netns.NS)
}

// Config is an agent's.
type Config struct {
	Policy      Policy
	Redirection nft.Config // for every pod, before its own wishes
	// ProbeSources are asked for whenever the rules of a pod are computed: the
	// addresses of the node that its pods are probed from. It may be nil. Only
	// what HostRules proves to come from the host itself counts.
	ProbeSources func() []netip.Prefix
	// HostRules marks what the host itself sends to pods; nil without
	// ProbeSources.
	HostRules HostRules
	// Host is the host's network namespace, which is never taken for a pod's; nil
	// when the agent runs in it. It stays the caller's, and has to stay open.
	Host *netns.NS
	// NamespacesListed says that every namespace is told of by SetNamespace. A
	// new pod then waits until its own is known.
	NamespacesListed bool
	Proxies          Proxies
	Resolver         Resolver
	Annotator        Annotator
	Kernel           Kernel       // nil: the real one
	LargePackets     LargePackets // nil: interfaces stay as they are
	Logger           *slog.Logger

	// Resync is how often every pod is compared with the kernel.
	Resync time.Duration
	// Settle is how long a pod that leaves stays captured after it is no longer
	// announced: until every peer has heard of it.
	Settle time.Duration
	// Drain is how long captured connections of a pod that leaves may last.
	Drain time.Duration
	// Workers is how many pods are worked on at once.
	Workers int

	// Observe is told the result of every piece of work, for metrics. It may
	// be nil.
	Observe func(event string, err error)
	// HostRulesFail is told when HostRules begin to fail, and nil when they no
	// longer do. It may be nil.
	HostRulesFail func(error)
	// Tell says to the owners of a pod what they should know. It must not block,
	// and may be nil.
	Tell func(pod Pod, n Notice)
}

// Defaults of Config. Settle is several times what a change takes to reach
// every node of a large mesh; Drain leaves an interactive session time to end,
// and does not keep a pod half enrolled for long.
const (
	DefaultResync  = 30 * time.Second
	DefaultSettle  = time.Second
	DefaultDrain   = 5 * time.Second
	DefaultWorkers = 8
)

// drainPoll is how often the connections of a leaving pod are counted.
const drainPoll = 100 * time.Millisecond

// Agent keeps the pods of a node as the policy wants them. Its inputs are Set,
// Delete and SetNamespace; it works from Run on.
type Agent struct {
	cfg   Config
	hosts []netns.ID // of the host and of the agent itself: never a pod's
	queue *queue
	probe *probed
	// synced is closed when the pods and namespaces that exist are all known.
	synced     chan struct{}
	syncedOnce sync.Once
	// recovered is closed when the proxies may be told what exists.
	recovered chan struct{}

	mu         sync.Mutex
	pods       map[string]Pod               // by UID
	namespaces map[string]map[string]string // labels by name
	states     map[string]*state            // by UID
	changed    chan struct{}                // closed and replaced with every change of pods and namespaces
	held       string                       // why nothing is enrolled yet
	ending     bool                         // every pod is to leave the mesh
	udp        func(Pod) bool               // whose UDP is refused; nil: that of none
}

// state is what the agent did with a pod. Its lock is held while the pod is
// worked on.
type state struct {
	mu        sync.Mutex
	ns        *netns.NS   // proven to be the pod's; nil when not known
	told      bool        // this process has announced something
	annotated string      // what it was
	applied   *nft.Config // the rules that this process found or wrote last
	name      string      // of the pod when it was announced
	namespace string
	enrolled  bool      // rules and proxy were in place at the last look
	clean     bool      // the namespace has nothing that Ambit wrote
	leaving   time.Time // since when the pod is no longer announced
	quiesced  time.Time // since when nothing new is captured
	unseen    bool      // the owners know that the pod's namespace is not looked at
	failing   bool      // the last attempt failed, and was logged
}

// New makes an agent.
func New(cfg Config) (*Agent, error) {
	own, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = own.Close() }()
	hosts := []netns.ID{own.ID()}
	if cfg.Host != nil {
		hosts = append(hosts, cfg.Host.ID())
	}
	if cfg.Kernel == nil {
		cfg.Kernel = kernel{}
	}
	if cfg.LargePackets == nil {
		cfg.LargePackets = noPackets{}
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, error) {}
	}
	if cfg.Tell == nil {
		cfg.Tell = func(Pod, Notice) {}
	}
	if cfg.ProbeSources == nil {
		cfg.ProbeSources = func() []netip.Prefix { return nil }
	}
	if cfg.Resync <= 0 {
		cfg.Resync = DefaultResync
	}
	if cfg.Workers <= 0 {
		cfg.Workers = DefaultWorkers
	}
	return &Agent{
		cfg: cfg, hosts: hosts, queue: newQueue(), probe: newProbed(cfg.HostRules), held: "the node agent is starting",
		synced: make(chan struct{}), recovered: make(chan struct{}), changed: make(chan struct{}),
		pods: map[string]Pod{}, namespaces: map[string]map[string]string{}, states: map[string]*state{},
	}, nil
}

// Set tells that a pod of this node is there, or has changed.
func (a *Agent) Set(pod Pod) {
	a.mu.Lock()
	a.pods[pod.UID] = pod
	a.news()
	a.mu.Unlock()
	a.queue.add(pod.UID)
}

// news needs a.mu.
func (a *Agent) news() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Delete tells that a pod is gone.
func (a *Agent) Delete(uid string) {
	a.mu.Lock()
	delete(a.pods, uid)
	a.mu.Unlock()
	a.queue.add(uid)
}

// SetNamespace tells the labels of a namespace; nil when it is gone.
func (a *Agent) SetNamespace(name string, labels map[string]string) {
	a.mu.Lock()
	old := a.namespaces[name]
	if labels == nil {
		delete(a.namespaces, name)
	} else {
		a.namespaces[name] = labels
	}
	var flipped []string
	for uid, pod := range a.pods {
		if pod.Namespace != name {
			continue
		}
		before, _ := a.cfg.Policy.Enrols(pod, old)
		if now, _ := a.cfg.Policy.Enrols(pod, labels); now != before || now && old[wellknown.LabelDNSCapture] != labels[wellknown.LabelDNSCapture] {
			flipped = append(flipped, uid)
		}
	}
	a.news()
	a.mu.Unlock()
	for _, uid := range flipped {
		a.queue.add(uid)
	}
}

// Synced tells that everything that exists has been told once.
func (a *Agent) Synced() { a.syncedOnce.Do(func() { close(a.synced) }) }

// Listed is closed when everything that exists has been told once.
func (a *Agent) Listed() <-chan struct{} { return a.synced }

// Recovered is closed when the agent has found what it did before its start.
func (a *Agent) Recovered() <-chan struct{} { return a.recovered }

// Hold says why nothing is enrolled before Run has begun: it is the answer to
// new pods that belong into the mesh.
func (a *Agent) Hold(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = why
}

// ProxiesChanged tells that a proxy has come or gone.
func (a *Agent) ProxiesChanged() { a.all() }

// ProbeSourcesChanged tells that the rules of all pods may differ.
func (a *Agent) ProbeSourcesChanged() { a.all() }

// redirection is the rule set for a pod as the node is now.
func (a *Agent) redirection(pod Pod) nft.Config {
	base := a.cfg.Redirection
	if len(pod.ProbePorts) > 0 {
		base.Probes = slices.Clone(base.Probes)
		for _, source := range a.cfg.ProbeSources() {
			base.Probes = append(base.Probes, nft.Probe{Source: source, Host: true})
		}
	}
	a.mu.Lock()
	labels, udp := a.namespaces[pod.Namespace], a.udp
	a.mu.Unlock()
	base.RefuseUDP = udp != nil && udp(pod)
	return Redirection(base, pod, labels)
}

// SetUDP replaces which pods' UDP is refused.
func (a *Agent) SetUDP(refuses func(Pod) bool) {
	a.mu.Lock()
	a.udp = refuses
	a.news()
	a.mu.Unlock()
	a.all()
}

// all makes every pod due.
func (a *Agent) all() {
	a.mu.Lock()
	uids := make([]string, 0, len(a.pods))
	for uid := range a.pods {
		uids = append(uids, uid)
	}
	a.mu.Unlock()
	for _, uid := range uids {
		a.queue.add(uid)
	}
}

// Run works until the context ends. It leaves rules and namespaces as they are:
// pods stay captured, and the proxy goes on serving them, while there is no
// agent.
func (a *Agent) Run(ctx context.Context) error {
	select {
	case <-a.synced:
	case <-ctx.Done():
		return nil
	}
	a.recover()
	close(a.recovered)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	wg.Go(func() { failed <- a.cfg.Proxies.Serve(ctx) })
	wg.Go(func() { a.queue.run(ctx, a.cfg.Workers, a.work) })
	wg.Go(func() { a.resync(ctx) })
	wg.Go(func() { a.probe.run(ctx, a.cfg.Logger, a.cfg.HostRulesFail) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if err == nil || ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("serving ztunnel: %w", err)
	}
}

func (a *Agent) resync(ctx context.Context) {
	tick := time.NewTicker(a.cfg.Resync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.forgetClean()
			a.all()
		}
	}
}

// forgetClean has the namespaces of pods outside the mesh looked at again.
func (a *Agent) forgetClean() {
	a.mu.Lock()
	states := maps.Clone(a.states)
	a.mu.Unlock()
	for _, st := range states {
		if st.mu.TryLock() { // else it is being looked at
			st.clean = false
			st.mu.Unlock()
		}
	}
}

// recover finds what a former agent left behind, so that the first list a proxy
// gets names all that it serves.
func (a *Agent) recover() {
	a.mu.Lock()
	pods := maps.Clone(a.pods)
	a.mu.Unlock()
	probes := map[string][]netip.Addr{}
	for uid, pod := range pods {
		if pod.HostNetwork || pod.Terminal {
			continue
		}
		st := a.state(uid)
		st.mu.Lock()
		ns, err := a.namespace(st, pod)
		present := false
		if err == nil {
			present, err = a.cfg.Kernel.Present(ns)
		}
		wanted, _ := a.wants(pod)
		switch {
		case err == nil && (present || wanted):
			probes[uid] = pod.probedAt()
			err = a.cfg.Proxies.Register(workload(pod, ns))
		case pod.announced():
			a.cfg.Proxies.Keep(uid)
		}
		st.mu.Unlock()
		if err != nil && !errors.Is(err, ErrNoNamespace) && !errors.Is(err, errNoAddress) && !errors.Is(err, errHost) {
			a.cfg.Logger.Error("cannot look at what was done to a pod before", "pod", pod.String(), "error", err)
		}
	}
	if err := a.probe.begin(probes); err != nil {
		a.cfg.Logger.Error("probes of enrolled pods may be captured and fail, until the host's rules can be written", "error", err)
	}
}

func (a *Agent) state(uid string) *state {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := a.states[uid]
	if st == nil {
		st = &state{}
		a.states[uid] = st
	}
	return st
}

func (a *Agent) pod(uid string) (Pod, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.pods[uid]
	return p, ok
}

func (a *Agent) wants(pod Pod) (yes bool, why string) {
	a.mu.Lock()
	labels, ending, policy := a.namespaces[pod.Namespace], a.ending, a.cfg.Policy
	a.mu.Unlock()
	if ending {
		return false, "the mesh leaves this node"
	}
	return policy.Enrols(pod, labels)
}

func workload(pod Pod, ns *netns.NS) zds.Workload {
	return zds.Workload{UID: pod.UID, Info: zds.Info{Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount}, NS: ns}
}

// Statuses lists all pods, in no particular order.
func (a *Agent) Statuses() []admin.EnrolledPod {
	a.mu.Lock()
	pods := maps.Clone(a.pods)
	a.mu.Unlock()
	list := make([]admin.EnrolledPod, 0, len(pods))
	for uid, pod := range pods {
		st := a.state(uid)
		st.mu.Lock()
		s := admin.EnrolledPod{Pod: pod.String(), UID: uid, Enrolled: st.enrolled, Served: a.cfg.Proxies.Served(uid)}
		wanted, why := a.wants(pod)
		switch {
		case wanted && st.enrolled:
			s.State = wellknown.RedirectionEnabled
		case wanted:
			s.State = wellknown.RedirectionPending
		case !st.leaving.IsZero():
			s.State = "leaving: " + why
		default:
			s.State = "not in the mesh: " + why
		}
		st.mu.Unlock()
		list = append(list, s)
	}
	return list
}

// kernel is the real one.
type kernel struct{}

func (kernel) Apply(ns *netns.NS, cfg nft.Config) error { return nft.Apply(ns, cfg) }
func (kernel) Check(ns *netns.NS, cfg nft.Config) ([]string, error) {
	return nft.Check(ns, cfg)
}
func (kernel) Remove(ns *netns.NS) error             { return nft.Remove(ns) }
func (kernel) Present(ns *netns.NS) (bool, error)    { return nft.Present(ns) }
func (kernel) Connections(ns *netns.NS) (int, error) { return nft.Connections(ns) }

// noPackets leaves interfaces as they are.
type noPackets struct{}

func (noPackets) Join(*netns.NS, []netip.Addr) {}
func (noPackets) Leave(*netns.NS)              {}
