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
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source/file"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
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

type options struct {
	node                    string
	configDirs              []string
	statusDir               string
	netnsDir, procDir       string
	zdsSocket, pluginSocket string
	health, metrics         string
	excludeNamespaces       []string
	selectors               []node.Selector
	agent                   node.Config // only its times and bounds
	redirection             nft.Config
	probeSources            []netip.Prefix
	logLevel                string
	logFormat               logging.Format
}

func parse(args []string, usage io.Writer) (options, error) {
	o := options{selectors: node.DefaultSelectors()}
	fs := flag.NewFlagSet("ambit-cni", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`name` of this node")
	fs.Func("config-dir", "`directory` of Kubernetes YAML; may be given several times", func(s string) error {
		o.configDirs = append(o.configDirs, s)
		return nil
	})
	fs.StringVar(&o.statusDir, "status-dir", "", "`directory` in which the state of pods is announced")
	fs.StringVar(&o.netnsDir, "netns-dir", "", "`directory` with a network namespace for every pod, named by its UID; without it, processes are looked at")
	fs.StringVar(&o.procDir, "proc-dir", "/proc", "`directory` where the host's processes are seen")
	fs.StringVar(&o.zdsSocket, "zds-socket", wellknown.ZDSSocket, "`path` of the socket for ztunnel")
	fs.StringVar(&o.pluginSocket, "plugin-socket", wellknown.PluginEventSocket, "`path` of the socket for the CNI plugin")
	fs.StringVar(&o.health, "health", ":8000", "`address` of /healthz and /readyz")
	fs.StringVar(&o.metrics, "metrics", ":15014", "`address` of /metrics and /debug/pods")
	exclude := fs.String("exclude-namespaces", "kube-system", "`namespaces` whose pods are never enrolled, with commas between")
	selectors := fs.String("enablement-selector", os.Getenv("AMBIENT_ENABLEMENT_SELECTOR"), "`YAML` list of {podSelector, namespaceSelector}; a pod is enrolled when both of one match")
	fs.BoolVar(&o.redirection.IPv6, "ipv6", true, "capture IPv6 as well")
	fs.BoolVar(&o.redirection.CaptureDNS, "dns-capture", false, "send the name look-ups of pods to ztunnel, unless a pod says otherwise")
	fs.Func("probe-source", "`addresses` from which the kubelet probes pods, with commas between; not captured at the ports that a pod is probed at (default none)", func(s string) error {
		for text := range strings.SplitSeq(s, ",") {
			source, err := parsePrefix(strings.TrimSpace(text))
			if err != nil {
				return err
			}
			o.probeSources = append(o.probeSources, source)
		}
		return nil
	})
	fs.DurationVar(&o.agent.Resync, "resync", node.DefaultResync, "how often every pod is compared with the kernel")
	fs.DurationVar(&o.agent.Settle, "settle", node.DefaultSettle, "how long a pod that leaves the mesh stays captured after that is announced")
	fs.DurationVar(&o.agent.Drain, "drain", node.DefaultDrain, "how long the captured connections of a pod that leaves the mesh may last")
	fs.IntVar(&o.agent.Workers, "workers", node.DefaultWorkers, "how many pods are worked on at once")
	fs.StringVar(&o.logLevel, "log-level", "info", "`levels` of the log: one for all, and scope:level for single ones")
	format := fs.String("log-format", "plain", "`format` of the log: plain or json")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("%q is not understood", fs.Arg(0))
	}
	for ns := range strings.SplitSeq(*exclude, ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			o.excludeNamespaces = append(o.excludeNamespaces, ns)
		}
	}
	var err error
	if *selectors != "" {
		if o.selectors, err = node.ParseSelectors([]byte(*selectors)); err != nil {
			return o, err
		}
	}
	if o.logFormat, err = logging.ParseFormat(*format); err != nil {
		return o, err
	}
	for _, source := range o.probeSources {
		o.redirection.Probes = append(o.redirection.Probes, nft.Probe{Source: source})
	}
	switch {
	case o.node == "":
		return o, errors.New("--node is missing: which pods are on this node?")
	case len(o.configDirs) == 0:
		return o, errors.New("--config-dir is missing: where are pods and namespaces written down?")
	case o.statusDir == "":
		return o, errors.New("--status-dir is missing: how is the mesh to know which pods are enrolled?")
	}
	return o, nil
}

// parsePrefix reads an address or a prefix.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func run(ctx context.Context, o options) error {
	log, err := logging.New(os.Stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	if err := nft.SelfTest(o.redirection.IPv6); err != nil {
		return fmt.Errorf("this node cannot redirect the traffic of pods, and none is enrolled: %w", err)
	}
	var resolver node.Resolver = node.Dir(o.netnsDir)
	if o.netnsDir == "" {
		if resolver, err = node.NewProc(o.procDir); err != nil {
			return err
		}
	}
	var agent *node.Agent
	if err := os.MkdirAll(filepath.Dir(o.zdsSocket), 0o755); err != nil {
		return err
	}
	server, err := zds.Listen(zds.ServerConfig{
		Path: o.zdsSocket, Logger: log.Logger("zds"), OnChange: func() { agent.ProxiesChanged() },
	})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	registry := metrics.NewRegistry("ambit-cni")
	counters := node.NewMetrics(registry, server.Connected)

	cfg := o.agent
	cfg.Policy = node.Policy{Selectors: o.selectors, ExcludeNamespaces: o.excludeNamespaces}
	cfg.Redirection = o.redirection
	cfg.Proxies, cfg.Resolver = server, resolver
	cfg.Annotator = newAnnotator(o.statusDir)
	cfg.Logger, cfg.Observe = log.Logger("node"), counters.Observe
	if agent, err = node.New(cfg); err != nil {
		return err
	}

	ready := &lifecycle.Readiness{}
	recovered := ready.Task("configuration and pods")
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
	log.Logger("node").Info("node agent starts", "node", o.node, "version", version.Get().String())

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return admin.Serve(ctx, plugin, node.PluginHandler(agent, counters.Plugin)) })
	g.Go(func() error { return admin.Serve(ctx, health, healthHandler(ready)) })
	g.Go(func() error { return admin.Serve(ctx, monitor, monitorHandler(metrics.Handler(registry), agent)) })
	g.Go(func() error { return agent.Run(ctx) })
	g.Go(func() error {
		select {
		case <-agent.Recovered():
			recovered()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error {
		src := file.New(file.Options{ConfigDirs: o.configDirs, StatusDir: o.statusDir, Logger: log.Logger("source")})
		return ignoreEnd(ctx, src.Run(ctx, newPods(agent, o.node)))
	})
	err = g.Wait()
	log.Logger("node").Info("node agent ends; pods stay captured")
	return err
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// listenUnix makes a socket in the place of one that a former process left
// behind. It does not take it away at the end: by then it may be a successor's.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, os.Chmod(path, 0o600)
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
	mux.HandleFunc("GET /debug/pods", func(w http.ResponseWriter, _ *http.Request) {
		list := agent.Statuses()
		slices.SortFunc(list, func(a, b node.Status) int { return strings.Compare(a.Pod, b.Pod) })
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	return mux
}
