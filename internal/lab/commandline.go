package lab

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// commandLine works out arguments and environment of a component.
func (c *component) commandLine(ctx context.Context, kind string, p *process) (args, env []string, err error) {
	s := c.s
	e := hostEnv()
	switch kind {
	case ambitd:
		args = ambitdArgs(s)
	case ambitCNI:
		args = cniArgs(s, c.node)
	case ztunnel:
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
	return args, environ(e), nil
}

func ambitdArgs(s *supervisor) []string {
	args := []string{
		"--config-dir", s.d.config(), "--config-dir", s.d.generated(), "--status-dir", s.d.status(),
		"--state-dir", s.d.ambitd(), "--admin", "127.0.0.1:" + strconv.Itoa(wellknown.PortControlDebug),
	}
	for _, ip := range hostAddr(0, lanHost).strings(s.v6) {
		args = append(args, "--server-name", ip)
	}
	return args
}

func cniArgs(s *supervisor, n *node) []string {
	return []string{
		"--node", n.name, "--config-dir", s.d.config(), "--config-dir", s.d.generated(), "--status-dir", s.d.status(),
		"--netns-dir", s.d.podNetns(n.name), "--zds-socket", s.d.zds(n.name), "--plugin-socket", s.d.plugin(n.name),
	}
}

func ztunnelEnv(s *supervisor, n *node, p *process, env map[string]string) {
	address := fmt.Sprintf("https://%s", net.JoinHostPort(hostAddr(0, lanHost).v4.String(), strconv.Itoa(ambitdPort)))
	root := filepath.Join(s.d.ambitd(), rootCertFile)
	for k, v := range map[string]string{
		"XDS_ADDRESS": address, "CA_ADDRESS": address, "XDS_ROOT_CA": root, "CA_ROOT_CA": root,
		"AUTH_TOKEN": s.d.token(n.name), "NODE_NAME": n.name, "INPOD_UDS": s.d.zds(n.name),
		"CLUSTER_ID": wellknown.DefaultCluster, "POD_NAME": "ztunnel-" + n.name + "-" + p.link,
		"POD_NAMESPACE": wellknown.SystemNamespace, "SERVICE_ACCOUNT": "ztunnel",
		"INSTANCE_IP": hostAddr(n.n, p.host).v4.String(), "PROXY_MODE": "shared",
		"TERMINATION_GRACE_PERIOD_SECONDS": "30",
	} {
		env[k] = v
	}
}

// readyURL is where a component says that it is ready.
func (c *component) readyURL() string {
	kind, _, _ := strings.Cut(c.name, "/")
	switch kind {
	case ambitd:
		return fmt.Sprintf("http://127.0.0.1:%d/readyz", wellknown.PortControlMonitor)
	case ztunnel:
		return fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", wellknown.PortReady)
	}
	return "http://127.0.0.1:8000/readyz"
}
