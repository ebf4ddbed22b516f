package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/node"
	"github.com/ambit-mesh/ambit/internal/node/packets"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

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
	largePackets            packets.Mode
	probeSources            []netip.Prefix
	logLevel                string
	logFormat               logging.Format

	kubernetes     bool
	kubeconfig     string
	namespace, pod string // of this agent itself
	meshConfig     string
	install        install
}

// install is what becomes of the CNI plugin.
type install struct {
	on                        bool
	binDir, confDir, confName string
	chained, owned            bool
	binary                    string
}

// Where a DaemonSet mounts the host's directories.
const (
	hostProc    = "/host/proc"
	hostBinDir  = "/host/opt/cni/bin"
	hostConfDir = "/host/etc/cni/net.d"
)

// parse reads the flags. Many have their default from the environment, by the
// names that Istio's charts use.
func parse(args []string, usage io.Writer) (options, error) {
	env := &environment{}
	o := options{selectors: node.DefaultSelectors(), pod: os.Getenv("POD_NAME")}
	fs := flag.NewFlagSet("ambit-cni", flag.ContinueOnError)
	fs.SetOutput(usage)
	fs.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`name` of this node")
	fs.BoolVar(&o.kubernetes, "kubernetes", false, "read pods and namespaces from the Kubernetes API, and announce the state of pods there")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that says where the Kubernetes API is (default: this pod's own)")
	fs.StringVar(&o.namespace, "namespace", env.text("POD_NAMESPACE", wellknown.SystemNamespace), "`namespace` of the mesh's own pods")
	fs.Func("config-dir", "`directory` of Kubernetes YAML; may be given several times", func(s string) error {
		o.configDirs = append(o.configDirs, s)
		return nil
	})
	fs.StringVar(&o.meshConfig, "mesh-config", "", "`file` with Istio's MeshConfig, of which discoverySelectors count: pods of namespaces that the control plane does not look at are not enrolled (default: it looks at all)")
	fs.StringVar(&o.statusDir, "status-dir", "", "`directory` in which the state of pods is announced")
	fs.StringVar(&o.netnsDir, "netns-dir", "", "`directory` with a network namespace for every pod, named by its UID; without it, processes are looked at")
	fs.StringVar(&o.procDir, "proc-dir", "", "`directory` where the host's processes are seen (default "+hostProc+" with --kubernetes, else /proc)")
	fs.StringVar(&o.zdsSocket, "zds-socket", wellknown.ZDSSocket, "`path` of the socket for ztunnel")
	fs.StringVar(&o.pluginSocket, "plugin-socket", wellknown.PluginEventSocket, "`path` of the socket for the CNI plugin")
	fs.BoolVar(&o.install.on, "install-cni", false, "keep the CNI plugin installed on this node; needs --kubernetes")
	fs.StringVar(&o.install.binDir, "cni-bin-dir", hostBinDir, "`directory` of the container runtime's CNI plugins")
	fs.StringVar(&o.install.confDir, "cni-conf-dir", env.text("MOUNTED_CNI_NET_DIR", hostConfDir), "`directory` of the container runtime's network configurations")
	fs.StringVar(&o.install.confName, "cni-conf-name", env.text("CNI_CONF_NAME", ""), "`file` that the plugin is added to, or name of our own (default: the first of the directory)")
	fs.BoolVar(&o.install.chained, "chained", env.flag("CHAINED_CNI_PLUGIN", true), "add the plugin to the node's network configuration; else it gets one alone, for a runtime that calls it from another")
	fs.BoolVar(&o.install.owned, "owned-config", env.flag("ISTIO_OWNED_CNI_CONFIG", false), "write a network configuration of our own, which comes first, instead of changing another program's")
	fs.StringVar(&o.install.binary, "plugin-binary", "/usr/local/bin/ambit-cni-plugin", "`program` that is the CNI plugin")
	fs.StringVar(&o.health, "health", ":8000", "`address` of /healthz and /readyz")
	fs.StringVar(&o.metrics, "metrics", ":15014", "`address` of /metrics and /debug/pods")
	exclude := fs.String("exclude-namespaces", env.text("EXCLUDE_NAMESPACES", "kube-system"), "`namespaces` whose pods are never enrolled, with commas between")
	selectors := fs.String("enablement-selector", os.Getenv("AMBIENT_ENABLEMENT_SELECTOR"), "`YAML` list of {podSelector, namespaceSelector}; a pod is enrolled when both of one match")
	fs.BoolVar(&o.redirection.IPv6, "ipv6", env.flag("AMBIENT_IPV6", true), "capture IPv6 as well")
	fs.BoolVar(&o.redirection.CaptureDNS, "dns-capture", env.flag("AMBIENT_DNS_CAPTURE", false), "send the name look-ups of pods to ztunnel, unless a pod says otherwise")
	large := fs.String("large-packets", cmp.Or(os.Getenv("AMBIT_LARGE_PACKETS"), string(packets.Loopback)), "`where` packets may be larger than 64 KiB: "+
		string(packets.Loopback)+" of enrolled pods; "+string(packets.Pod)+", also their interface and its other end on the host; or "+string(packets.Off))
	fs.Func("probe-source", "`addresses` from which the kubelet probes pods, with commas between; not captured at the ports that a pod is probed at; with --kubernetes only what the node itself sends (default: with --kubernetes the node's own, else none)", func(s string) error {
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
	if o.largePackets, err = packets.ParseMode(*large); err != nil {
		return o, err
	}
	if o.logFormat, err = logging.ParseFormat(*format); err != nil {
		return o, err
	}
	for _, source := range o.probeSources {
		o.redirection.Probes = append(o.redirection.Probes, nft.Probe{Source: source, Host: o.kubernetes})
	}
	proc := "/proc"
	if o.kubernetes {
		proc = hostProc
	}
	o.procDir = cmp.Or(o.procDir, proc)
	return o, errors.Join(env.err, o.check())
}

// check finds flags that do not go together.
func (o *options) check() error {
	switch {
	case o.node == "":
		return errors.New("--node is missing: which pods are on this node?")
	case o.kubernetes && (len(o.configDirs) > 0 || o.statusDir != ""):
		return errors.New("--kubernetes does not go with --config-dir and --status-dir: where are pods and namespaces written down?")
	case o.kubernetes && o.install.on && o.pod == "":
		return errors.New("POD_NAME is missing from the environment: at its end, the agent has to find out whether its DaemonSet is deleted or only restarted")
	case o.kubernetes:
		return nil
	case o.install.on:
		return errors.New("--install-cni needs --kubernetes")
	case len(o.configDirs) == 0:
		return errors.New("--config-dir is missing: where are pods and namespaces written down?")
	case o.statusDir == "":
		return errors.New("--status-dir is missing: how is the mesh to know which pods are enrolled?")
	}
	return nil
}

// parsePrefix reads an address or a prefix.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// environment reads variables, and keeps what is wrong with them.
type environment struct{ err error }

// text is a variable's value; one that is set to nothing counts.
func (e *environment) text(name, otherwise string) string {
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return otherwise
}

func (e *environment) flag(name string, otherwise bool) bool {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		e.err = errors.Join(e.err, fmt.Errorf("%s is %q, and should be true or false", name, v))
	}
	return b
}
