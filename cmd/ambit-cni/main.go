// Command ambit-cni is the node agent: it enrols the pods of its node and hands
// their network namespaces to ztunnel. See internal/node.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/node/datagrams"
	"github.com/ambit-mesh/ambit/internal/node/packets"
	"github.com/ambit-mesh/ambit/internal/node/selftest"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/unixsock"
	"github.com/ambit-mesh/ambit/internal/zds"
)

func main() { os.Exit(start(os.Args[1:])) }

// start returns the exit status.
func start(args []string) int {
	if len(args) > 0 && strings.TrimLeft(args[0], "-") == "version" {
		fmt.Println(version.Get())
		return 0
	}
	opts, err := parse(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ambit-cni:", err)
		return 2
	}
	ctx, cancel := lifecycle.SignalContext(context.Background())
	defer cancel()
	if err := run(ctx, opts); err != nil {
		fmt.Fprintln(os.Stderr, "ambit-cni:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o options) error {
	log, err := logging.New(os.Stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	logger := log.Logger("node")
	p := &program{options: o, log: log, registry: metrics.NewRegistry("ambit-cni"), ready: &lifecycle.Readiness{}}
	var w wiring
	if o.kubernetes {
		w, err = p.cluster()
	} else {
		w, err = p.files()
	}
	if err != nil {
		return err
	}
	defer w.close()
	if err := os.MkdirAll(filepath.Dir(o.zdsSocket), 0o755); err != nil {
		return err
	}
	var agent *node.Agent
	server, err := zds.Listen(zds.ServerConfig{
		Path: o.zdsSocket, Logger: log.Logger("zds"), OnChange: func() { agent.ProxiesChanged() },
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	counters := node.NewMetrics(p.registry, server.Connected)

	cfg := w.agent
	cfg.Resync, cfg.Settle, cfg.Drain, cfg.Workers = o.agent.Resync, o.agent.Settle, o.agent.Drain, o.agent.Workers
	cfg.Policy = node.Policy{Selectors: o.selectors, ExcludeNamespaces: o.excludeNamespaces}
	var mesh *discovery
	root := o.namespace
	if o.meshConfig != "" {
		mesh = &discovery{path: o.meshConfig, always: []string{o.namespace}, log: logger}
		cfg.Policy.Discovery, _ = mesh.look()
		root = append(cfg.Policy.Discovery.Always, root)[0] // that of the file comes first
	}
	cfg.Redirection = o.redirection
	cfg.Proxies = server
	cfg.Logger, cfg.Observe = logger, counters.Observe
	cfg.LargePackets = w.packets
	if agent, err = node.New(cfg); err != nil {
		return err
	}
	p.registry.MustRegister(agent, datagrams.Collector{Pods: agent.Datagrams})
	plugin, err := listenUnix(o.pluginSocket)
	if err != nil {
		return err
	}
	health, err := net.Listen("tcp", o.health)
	if err != nil {
		return err
	}
	monitor, err := net.Listen("tcp", o.metrics)
	if err != nil {
		return err
	}
	logger.Info("node agent starts", "node", o.node, "version", version.Get().String())

	// What the agent does goes on for a while when it is to take the node out of
	// the mesh.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	asked := ctx
	g, ctx := errgroup.WithContext(life)
	leaving := false
	g.Go(func() error {
		defer end()
		select {
		case <-asked.Done():
		case <-ctx.Done():
			return nil
		}
		if leaving = w.uninstalled(); leaving {
			logger.Info("the mesh is being uninstalled; pods of this node leave it")
			leave, cancel := context.WithTimeout(ctx, leaveWithin)
			defer cancel()
			agent.Leave(leave)
		}
		return nil
	})
	recovered := p.ready.Task("configuration and pods")
	g.Go(func() error { return admin.Serve(ctx, plugin, node.PluginHandler(agent, counters.Plugin)) })
	g.Go(func() error { return admin.Serve(ctx, health, healthHandler(p.ready)) })
	g.Go(func() error { return admin.Serve(ctx, monitor, monitorHandler(metrics.Handler(p.registry), agent)) })
	g.Go(func() error { return ignoreEnd(ctx, w.source.Run(ctx, newPods(agent, o.node, root))) })
	g.Go(func() error {
		if err := p.prove(ctx, agent, w); err != nil {
			return ignoreEnd(ctx, err)
		}
		return agent.Run(ctx)
	})
	g.Go(func() error {
		select {
		case <-agent.Recovered():
			recovered()
		case <-ctx.Done():
		}
		return nil
	})
	if mesh != nil {
		g.Go(func() error { return mesh.follow(ctx, agent.SetDiscovery) })
	}
	for _, task := range w.tasks {
		g.Go(func() error { return ignoreEnd(ctx, task(ctx, agent)) })
	}
	err = g.Wait()
	if !leaving {
		logger.Info("node agent ends; pods stay captured, and what is on the node stays for the next agent")
		return err
	}
	agent.Abandon()
	w.cleanUp()
	logger.Info("node agent ends; the mesh has left this node")
	return err
}

// leaveWithin is how long pods have to leave the mesh at their own pace. With
// lastQuestion and what comes after, it fits into the DaemonSet's
// terminationGracePeriodSeconds.
const leaveWithin = 15 * time.Second

// program is what the parts of a process share.
type program struct {
	options
	log      *logging.Logging
	registry *prometheus.Registry
	ready    *lifecycle.Readiness
}

// wiring is what an agent is joined to: a cluster, or a directory of files.
type wiring struct {
	agent   node.Config // those parts of it that are about the world outside
	packets *packets.Packets
	// source tells of pods and namespaces.
	source interface {
		Run(ctx context.Context, sink source.Sink) error
	}
	// tryHost proves that the host's network namespace can be written to.
	tryHost func() error
	// condition is told whether the node redirects.
	condition func(selftest.Result)
	// tasks run beside the agent.
	tasks []func(ctx context.Context, agent *node.Agent) error
	// uninstalled tells at the end whether no other agent will come.
	uninstalled func() bool
	// cleanUp is called when all has ended and the mesh is uninstalled, and close
	// when nothing needs the wiring.
	cleanUp, close func()
}

// files joins the agent to a directory of YAML.
func (p *program) files() (wiring, error) {
	// A machine that cannot redirect is better told to whoever starts the
	// agent by hand.
	if err := selftest.Redirects(p.redirection.IPv6); err != nil {
		return wiring{}, fmt.Errorf("this node cannot redirect the traffic of pods, and none is enrolled: %w", err)
	}
	resolver, err := p.resolver()
	if err != nil {
		return wiring{}, err
	}
	host, err := netns.Current()
	if err != nil {
		return wiring{}, err
	}
	return wiring{
		packets:   packets.New(p.largePackets, host, p.log.Logger("node"), p.registry),
		agent:     node.Config{Resolver: resolver, Annotator: newAnnotator(p.statusDir)},
		source:    file.New(file.Options{ConfigDirs: p.configDirs, StatusDir: p.statusDir, Logger: p.log.Logger("source")}),
		tryHost:   func() error { return nil },
		condition: func(selftest.Result) {}, uninstalled: func() bool { return false },
		cleanUp: func() {}, close: func() { _ = host.Close() },
	}, nil
}

func (p *program) resolver() (node.Resolver, error) {
	if p.netnsDir != "" {
		return node.Dir(p.netnsDir), nil
	}
	return node.NewProc(p.procDir)
}

// prove holds the agent back until the node is known to redirect.
func (p *program) prove(ctx context.Context, agent *node.Agent, w wiring) error {
	proven := p.ready.Task("self-test of redirection")
	err := selftest.Await(ctx, selftest.Options{
		Test: func() error {
			if err := selftest.Redirects(p.redirection.IPv6); err != nil {
				return err
			}
			return w.tryHost()
		},
		Report: func(r selftest.Result) {
			if !r.Ready {
				agent.Hold(r.Message)
			}
			w.condition(r)
		},
		Logger: p.log.Logger("node"), Registerer: p.registry,
	})
	if err == nil {
		proven()
	}
	return err
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// listenUnix makes a socket, and the directory for it.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return unixsock.Listen("unix", path)
}

func healthHandler(ready http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.Handle("GET /readyz", ready)
	return mux
}

func monitorHandler(metrics http.Handler, agent *node.Agent) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET "+api.PathPods, func(w http.ResponseWriter, _ *http.Request) {
		list := agent.Statuses()
		slices.SortFunc(list, func(a, b api.EnrolledPod) int { return strings.Compare(a.Pod, b.Pod) })
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	return mux
}
