package supervisor

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/process"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// commandLine works out arguments and environment of a component.
func (c *component) commandLine(ctx context.Context, kind string, p *generation) (args, env []string, err error) {
	s := c.s
	e := process.HostEnv()
	switch kind {
	case network.Ambitd:
		args = ambitdArgs(s)
	case network.AmbitCNI:
		args = cniArgs(s, c.node)
	case network.Ztunnel:
		args = []string{"proxy", "ztunnel"}
		if err := s.writeToken(ctx, c.node.name); err != nil {
			return nil, nil, err
		}
		ztunnelEnv(s, c.node, p, e)
	}
	for _, k := range []string{kind, c.name} {
		args = append(args, s.cfg.Args[k]...)
		for _, kv := range s.cfg.Env[k] {
			name, v, _ := strings.Cut(kv, "=")
			e[name] = v
		}
		if c.name == kind {
			break
		}
	}
	return args, process.Environ(e), nil
}

func ambitdArgs(s *supervisor) []string {
	args := []string{
		"--config-dir", s.d.Config(), "--config-dir", s.d.Generated(), "--status-dir", s.d.Status(),
		"--state-dir", s.d.Ambitd(), "--admin", "127.0.0.1:" + strconv.Itoa(wellknown.PortControlDebug),
	}
	for _, ip := range network.HostAddr(0, network.LanHost).Strings(s.families) {
		args = append(args, "--server-name", ip)
	}
	return args
}

func cniArgs(s *supervisor, n *node) []string {
	args := []string{
		"--node", n.name, "--config-dir", s.d.Config(), "--config-dir", s.d.Generated(), "--status-dir", s.d.Status(),
		"--netns-dir", s.d.PodNetns(n.name), "--zds-socket", s.d.Zds(n.name), "--plugin-socket", s.d.Plugin(n.name),
	}
	if s.cfg.LargePackets {
		args = append(args, "--large-packets=pod")
	}
	return args
}

func ztunnelEnv(s *supervisor, n *node, p *generation, env map[string]string) {
	address := fmt.Sprintf("https://%s", net.JoinHostPort(network.HostAddr(0, network.LanHost).First(s.families).String(), strconv.Itoa(network.AmbitdPort)))
	root := filepath.Join(s.d.Ambitd(), rootCertFile)
	for k, v := range map[string]string{
		"XDS_ADDRESS": address, "CA_ADDRESS": address, "XDS_ROOT_CA": root, "CA_ROOT_CA": root,
		"AUTH_TOKEN": s.d.Token(n.name), "NODE_NAME": n.name, "INPOD_UDS": s.d.Zds(n.name),
		"CLUSTER_ID": wellknown.DefaultCluster, "POD_NAME": "ztunnel-" + n.name + "-" + p.link,
		"POD_NAMESPACE": wellknown.SystemNamespace, "SERVICE_ACCOUNT": "ztunnel",
		"INSTANCE_IP": network.HostAddr(n.n, p.host).First(s.families).String(), "PROXY_MODE": "shared",
		"TERMINATION_GRACE_PERIOD_SECONDS": "30",
	} {
		env[k] = v
	}
}

// readyURL is where a component says that it is ready.
func (c *component) readyURL() string {
	kind, _, _ := strings.Cut(c.name, "/")
	switch kind {
	case network.Ambitd:
		return fmt.Sprintf("http://127.0.0.1:%d/readyz", wellknown.PortControlMonitor)
	case network.Ztunnel:
		return fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", wellknown.PortReady)
	}
	return "http://127.0.0.1:8000/readyz"
}
