package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// proxies returns how this lab runs them.
func (s *supervisor) proxies() objects.Proxies {
	if !s.cfg.Mesh {
		return objects.Proxies{}
	}
	p := objects.Proxies{
		Path: filepath.Join(s.cfg.BinDir, network.Waypoint), Args: s.cfg.Args[network.Waypoint],
		Xds: net.JoinHostPort(network.HostAddr(0, network.LanHost).First(s.families).String(), strconv.Itoa(network.AmbitdPort)),
		// Nobody waits for a lab as for a cluster.
		Env: map[string]string{"TERMINATION_GRACE_PERIOD_SECONDS": "3", "MINIMUM_DRAIN_DURATION": "0s"},
	}
	for _, kv := range s.cfg.Env[network.Waypoint] {
		name, v, _ := strings.Cut(kv, "=")
		p.Env[name] = v
	}
	return p
}

// setGateways takes back the addresses of Gateways that are gone.
func (s *supervisor) setGateways(want *objects.Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for k := range s.gateways {
		if want.Gateways[k] == nil {
			errs = append(errs, file.RemoveOverlay(s.d.Status(), overlayWriter, source.Gateway.Key(k.Namespace, k.Name)))
		}
	}
	s.gateways = want.Gateways
	return errors.Join(errs...)
}

// announceGateway publishes the addresses of the Gateway that a pod is a proxy of, as a
// controller does once the first pod is ready. They stay when no pod is ready: then
// requests fail for want of a proxy.
func (s *supervisor) announceGateway(p *pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[objects.NewKey("Gateway", p.key.Namespace, p.spec.Labels[wellknown.LabelGatewayName])]
	if g == nil {
		return nil
	}
	name, _ := deploy.Name(g)
	svc := s.services[objects.NewKey("Service", g.Namespace, name)]
	if svc == nil {
		return nil
	}
	o := &gatewayv1.Gateway{}
	o.Name, o.Namespace = g.Name, g.Namespace
	var ips []string
	for _, ip := range svc.ips {
		ips = append(ips, ip.String())
	}
	o.Status.Addresses = deploy.Addresses(g, wellknown.DefaultDomain, ips)
	return file.WriteOverlay(s.d.Status(), overlayWriter, o)
}

// files is a directory that stands for the root of a pod's volumes.
func (s *supervisor) files(p *pod) string {
	return filepath.Join(s.d.Node(p.node.name), "files-"+p.uid)
}

// writeVolumes makes the pod's volumes that a mesh needs: tokens of its service
// account, and the roots of the control plane. Programs find them below their working
// directory.
func (s *supervisor) writeVolumes(p *pod) error {
	for _, v := range p.spec.Spec.Volumes {
		for _, at := range mounts(&p.spec.Spec, v.Name) {
			dir := filepath.Join(s.files(p), at)
			if err := s.writeVolume(p, v, dir); err != nil {
				return fmt.Errorf("volume %s: %w", v.Name, err)
			}
		}
	}
	return nil
}

// mounts are the directories where containers have a volume.
func mounts(spec *corev1.PodSpec, volume string) (at []string) {
	for _, c := range spec.Containers {
		for _, m := range c.VolumeMounts {
			if m.Name == volume {
				at = append(at, m.MountPath)
			}
		}
	}
	return at
}

func (s *supervisor) writeVolume(p *pod, v corev1.Volume, dir string) error {
	switch {
	case v.ConfigMap != nil && v.ConfigMap.Name == wellknown.RootsConfigMap:
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		// Rotated roots are seen through the link.
		return os.Symlink(filepath.Join(s.d.Ambitd(), rootCertFile), filepath.Join(dir, wellknown.RootsKey))
	case v.Projected != nil:
		for _, src := range v.Projected.Sources {
			t := src.ServiceAccountToken
			if t == nil || t.Audience != wellknown.TokenAudience {
				continue
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			token, err := s.podToken(p)
			if err != nil {
				return err
			}
			if err := lab.WriteFile(filepath.Join(dir, filepath.Base(t.Path)), []byte(token), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// podToken issues a token that is bound to a pod.
func (s *supervisor) podToken(p *pod) (string, error) {
	issuer, err := auth.OpenIssuer(s.d.Ambitd())
	if err != nil {
		return "", err
	}
	account, ok := source.Account(p.spec)
	if !ok {
		return "", errors.New("the pod has no service account")
	}
	return issuer.Issue(auth.Caller{
		Namespace: p.key.Namespace, ServiceAccount: account, PodName: p.key.Name, PodUID: p.uid, Node: p.node.name,
	}, tokenLife)
}
