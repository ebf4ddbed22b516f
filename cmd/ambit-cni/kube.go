package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/nodestate"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/node/cniconf"
	"github.com/ambit-mesh/ambit/internal/node/packets"
	"github.com/ambit-mesh/ambit/internal/node/selftest"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// lastQuestion is how long the end may wait for an answer of the API server.
const lastQuestion = 5 * time.Second

// cluster joins the agent to the Kubernetes API.
func (p *program) cluster() (wiring, error) {
	klog.SetSlogLogger(p.log.Logger("kube"))
	c, err := client.New(client.Options{Kubeconfig: p.kubeconfig, UserAgent: "ambit-cni/" + version.Get().Version})
	if err != nil {
		return wiring{}, err
	}
	src, err := kube.New(kube.Options{
		Client: c, Kinds: []*source.Kind{source.Namespace.Kind, source.Pod.Kind, source.EgressPolicy.Kind}, Node: p.node,
		Logger: p.log.Logger("source"), Registerer: p.registry,
	})
	if err != nil {
		return wiring{}, err
	}
	resolver, err := p.resolver()
	if err != nil {
		return wiring{}, err
	}
	host, err := netns.Open(filepath.Join(p.procDir, "1/ns/net"))
	if err != nil {
		return wiring{}, fmt.Errorf("finding the host's network namespace: %w; the host's /proc has to be mounted at %s", err, p.procDir)
	}
	addresses := node.NewHostAddresses(host, p.log.Logger("node"))
	state := nodestate.New(c, p.node, p.log.Logger("kube"))
	large := packets.New(p.largePackets, host, p.log.Logger("node"), p.registry)
	w := wiring{
		packets: large,
		agent: node.Config{
			Resolver: resolver, Annotator: state, Tell: state.Tell, Host: host,
			ProbeSources: addresses.List, HostRules: node.HostKernel{Host: host}, NamespacesListed: true,
		},
		source: src,
		tryHost: func() error {
			if err := nft.TryHost(host); err != nil {
				return fmt.Errorf("the rules by which pods recognize the kubelet's probes cannot be written into the host's network namespace: %w", err)
			}
			return nil
		},
		condition: func(r selftest.Result) {
			if r.Ready {
				r.Message += wellknown.ConditionLargePackets + large.Path()
			}
			state.SetCondition(r.Ready, r.Reason, r.Message)
		},
		uninstalled: func() bool { return false },
		cleanUp: func() {
			if err := nft.RemoveHost(host); err != nil {
				p.log.Logger("node").Error("the table "+nft.HostTableName+" stays in the host's network namespace", "error", err)
			}
			if err := state.Forget(context.Background()); err != nil {
				p.log.Logger("kube").Warn("the condition stays at the node", "condition", nodestate.Condition, "error", err)
			}
		},
		close: func() { _ = host.Close() },
		tasks: []func(context.Context, *node.Agent) error{
			func(ctx context.Context, _ *node.Agent) error { return state.Run(ctx) },
			func(ctx context.Context, a *node.Agent) error {
				addresses.Run(ctx, a.ProbeSourcesChanged)
				return nil
			},
		},
	}
	hostRules := func() {}
	w.agent.HostRulesFail = func(err error) {
		hostRules()
		if err != nil {
			hostRules = p.ready.Task("rules for probes in the host's network namespace")
		}
		w.condition(selftest.Judge(err))
	}
	if p.install.on {
		p.keepInstalled(&w, c)
	}
	return w, nil
}

// keepInstalled keeps the CNI plugin on the node for as long as there is a
// DaemonSet that wants it there: while the agent is only replaced, pods that are
// new wait for the next one.
func (p *program) keepInstalled(w *wiring, c *client.Client) {
	logger := p.log.Logger("install")
	installed := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "istio_cni_install_ready", Help: "Whether the CNI plugin is installed on this node.",
	})
	installs := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_cni_installs_total", Help: "Changes of the CNI plugin's installation, by result.",
	}, []string{"result"})
	p.registry.MustRegister(installed, installs)
	installer := cniconf.New(cniconf.Options{
		BinDir: p.install.binDir, ConfDir: p.install.confDir, ConfName: p.install.confName,
		Owned: p.install.owned, Standalone: !p.install.chained, Binary: p.install.binary,
		Entry: cniconf.Entry{
			Version: version.Get().Version, RunDir: filepath.Dir(p.pluginSocket),
			PodNamespace: p.namespace, ExcludeNamespaces: p.excludeNamespaces,
		},
		Logger: logger,
		Observe: func(err error) {
			result := "SUCCESS"
			if err != nil {
				result = "FAILURE"
			}
			installs.WithLabelValues(result).Inc()
		},
	})
	ds := nodestate.NewDaemonSet(c, p.namespace, p.pod, logger)
	const task = "installation of the CNI plugin"
	done := p.ready.Task(task)
	w.tasks = append(w.tasks,
		func(ctx context.Context, _ *node.Agent) error { return ds.Run(ctx) },
		func(ctx context.Context, a *node.Agent) error {
			// The plugin asks this agent about every pod: it had better know.
			select {
			case <-a.Listed():
			case <-ctx.Done():
				return nil
			}
			return installer.Run(ctx, func(err error) {
				if err == nil {
					installed.Set(1)
					done()
					return
				}
				installed.Set(0)
				done()
				done = p.ready.Task(task)
			})
		})
	w.uninstalled = func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), lastQuestion)
		defer cancel()
		deleted, err := ds.Deleted(ctx)
		if err != nil {
			logger.Warn("it is not known whether the mesh is being uninstalled; pods stay captured and the CNI plugin stays, so that new pods wait for the next agent. If there is to be none, restart this node's pods, and take the entry "+cniconf.EntryName+" out of the network configuration",
				"conf-dir", p.install.confDir, "error", err)
		}
		return deleted && err == nil
	}
	cleanHost := w.cleanUp
	w.cleanUp = func() {
		if err := installer.Uninstall(); err != nil {
			logger.Error("cannot take the CNI plugin away from this node", "conf-dir", p.install.confDir, "error", err)
		}
		cleanHost()
	}
}
