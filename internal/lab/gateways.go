package lab

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
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// proxies is how a lab runs the proxies of Gateways. The zero value runs none.
type proxies struct {
	path string            // of the program
	xds  string            // host:port of the control plane
	env  map[string]string // beside that of the Deployment
	args []string
}

// proxies returns how this lab runs them.
func (s *supervisor) proxies() proxies {
	if !s.cfg.Mesh {
		return proxies{}
	}
	p := proxies{
		path: filepath.Join(s.cfg.BinDir, waypoint), args: s.cfg.Args[waypoint],
		xds: net.JoinHostPort(hostAddr(0, lanHost).v4.String(), strconv.Itoa(ambitdPort)),
		// Nobody waits for a lab as for a cluster.
		env: map[string]string{"TERMINATION_GRACE_PERIOD_SECONDS": "3", "MINIMUM_DRAIN_DURATION": "0s"},
	}
	for _, kv := range s.cfg.Env[waypoint] {
		name, v, _ := strings.Cut(kv, "=")
		p.env[name] = v
	}
	return p
}

// decodeGateway reads a Gateway of Gateway API, nil for one of another group.
func decodeGateway(d document) (any, error) {
	g := new(gatewayv1.Gateway)
	if err := yaml.Unmarshal([]byte(d.Text), g); err != nil {
		return nil, plainer(err)
	}
	if g.GroupVersionKind().Group != gatewayv1.GroupName {
		return nil, nil
	}
	g.Namespace = d.Namespace
	return g, nil
}

// gateway adds what is made for a Gateway. One that has addresses already is
// somebody else's. The ConfigMap that it names changes the objects, as on Kubernetes.
func (d *desired) gateway(k key, g *gatewayv1.Gateway, p proxies) error {
	if p.path == "" || len(g.Status.Addresses) > 0 {
		return nil
	}
	var overlays []deploy.Overlay
	name, err := deploy.Parameters(g)
	if err != nil {
		return err
	}
	if name != "" {
		c := d.configs[newKey("ConfigMap", g.Namespace, name)]
		if c == nil {
			return fmt.Errorf("spec.infrastructure.parametersRef: there is no ConfigMap %s/%s", g.Namespace, name)
		}
		overlays = []deploy.Overlay{{From: "ConfigMap " + c.Namespace + "/" + c.Name, Data: c.Data}}
	}
	objects, ok, err := deploy.For(g, deploy.Settings{
		Image: waypoint, XDS: p.xds, ClusterID: wellknown.DefaultCluster, Domain: wellknown.DefaultDomain, LogLevel: "info",
	}, overlays...)
	if !ok || err != nil {
		return err
	}
	d.gateways[k] = g
	for _, o := range []struct {
		kind, name string
		obj        any
	}{
		{"Service", objects.Service.Name, objects.Service},
		{"ServiceAccount", objects.ServiceAccount.Name, objects.ServiceAccount},
	} {
		ok := newKey(o.kind, g.Namespace, o.name)
		if !d.own[ok] { // the user's counts
			d.generate(ok, o.obj)
		}
	}
	if k := newKey("Service", g.Namespace, objects.Service.Name); d.services[k] == nil {
		d.services[k] = objects.Service
	}
	p.run(&objects.Deployment.Spec.Template.Spec)
	d.deploy(objects.Deployment)
	return nil
}

// run puts the program of this machine in the place of the image, as the user that
// runs the lab: its files are for no other.
func (p proxies) run(spec *corev1.PodSpec) {
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.Command, c.SecurityContext = []string{p.path}, nil
		c.Args = append(c.Args, p.args...)
		for name, v := range p.env {
			setEnv(c, name, v)
		}
	}
}

func setEnv(c *corev1.Container, name, value string) {
	for i := range c.Env {
		if c.Env[i].Name == name {
			c.Env[i] = corev1.EnvVar{Name: name, Value: value}
			return
		}
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
}

// setGateways takes back the addresses of Gateways that are gone.
func (s *supervisor) setGateways(want *desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for k := range s.gateways {
		if want.gateways[k] == nil {
			errs = append(errs, file.RemoveOverlay(s.d.status(), overlayWriter, source.Gateway.Key(k.Namespace, k.Name)))
		}
	}
	s.gateways = want.gateways
	return errors.Join(errs...)
}

// announceGateway publishes the addresses of the Gateway that a pod is a proxy of, as a
// controller does once the first pod is ready. They stay when no pod is ready: then
// requests fail for want of a proxy.
func (s *supervisor) announceGateway(p *pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gateways[newKey("Gateway", p.key.Namespace, p.spec.Labels[wellknown.LabelGatewayName])]
	if g == nil {
		return nil
	}
	name, _ := deploy.Name(g)
	svc := s.services[newKey("Service", g.Namespace, name)]
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
	return file.WriteOverlay(s.d.status(), overlayWriter, o)
}

// files is a directory that stands for the root of a pod's volumes.
func (s *supervisor) files(p *pod) string {
	return filepath.Join(s.d.node(p.node.name), "files-"+p.uid)
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
		return os.Symlink(filepath.Join(s.d.ambitd(), rootCertFile), filepath.Join(dir, wellknown.RootsKey))
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
			if err := writeFile(filepath.Join(dir, filepath.Base(t.Path)), []byte(token), 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// podToken issues a token that is bound to a pod.
func (s *supervisor) podToken(p *pod) (string, error) {
	issuer, err := auth.OpenIssuer(s.d.ambitd())
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
