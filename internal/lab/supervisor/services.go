package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// service is one Service with its addresses.
type service struct {
	key      objects.Key
	spec     *corev1.Service // replaced when it changes
	number   int             // in the pool of addresses; 0: not from there
	ips      []netip.Addr    // none when headless
	headless bool
}

// setServices gives addresses to new services and takes back those of old ones.
func (s *supervisor) setServices(want *objects.Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.services {
		if want.Services[k] == nil {
			if v.number > 0 {
				s.vips.Give(v.number)
			}
			delete(s.services, k)
			if err := file.RemoveOverlay(s.d.Status(), overlayWriter, source.Service.Key(k.Namespace, k.Name)); err != nil {
				return err
			}
		}
	}
	for k, o := range want.Services {
		v := s.services[k]
		if v == nil {
			v = &service{key: k}
			s.services[k] = v
		}
		v.spec = o
		if err := s.address(v); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		if err := s.publishService(v); err != nil {
			return err
		}
	}
	return nil
}

// address fills in the addresses of a service. s.mu is held.
func (s *supervisor) address(v *service) error {
	spec := v.spec.Spec
	v.headless = spec.ClusterIP == corev1.ClusterIPNone
	if v.headless || spec.Type == corev1.ServiceTypeExternalName {
		v.ips = nil
		return nil
	}
	if wish := wishedIPs(spec); len(wish) > 0 {
		v.ips = nil
		for _, w := range wish {
			a, err := netip.ParseAddr(w)
			if err != nil || !network.ServiceNetwork4.Contains(a) && !network.ServiceNetwork6.Contains(a) {
				return fmt.Errorf("spec.clusterIP: %q is not in %s or %s", w, network.ServiceNetwork4, network.ServiceNetwork6)
			}
			v.ips = append(v.ips, a)
		}
		return nil
	}
	if v.number == 0 {
		n, ok := s.vips.Take()
		if !ok {
			return errors.New("no free cluster IP")
		}
		v.number = n
	}
	v.ips = families(spec, network.ServiceAddr(v.number), s.families)
	return nil
}

func wishedIPs(spec corev1.ServiceSpec) []string {
	if len(spec.ClusterIPs) > 0 {
		return spec.ClusterIPs
	}
	if spec.ClusterIP != "" {
		return []string{spec.ClusterIP}
	}
	return nil
}

// families picks the addresses a service asks for; as on Kubernetes, the first
// family's when it asks for nothing.
func families(spec corev1.ServiceSpec, a network.Dual, f network.Families) []netip.Addr {
	all := a.Addrs(f)
	if len(spec.IPFamilies) == 0 {
		if spec.IPFamilyPolicy == nil || *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack {
			return all[:1]
		}
		return all
	}
	var out []netip.Addr
	for _, wanted := range spec.IPFamilies {
		for _, x := range all {
			if x.Is6() == (wanted == corev1.IPv6Protocol) {
				out = append(out, x)
			}
		}
	}
	return out
}

func (s *supervisor) publishService(v *service) error {
	if len(v.ips) == 0 {
		return nil
	}
	o := &corev1.Service{}
	o.Name, o.Namespace = v.key.Name, v.key.Namespace
	o.Spec.ClusterIP = v.ips[0].String()
	for _, a := range v.ips {
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, a.String())
		f := corev1.IPv4Protocol
		if a.Is6() {
			f = corev1.IPv6Protocol
		}
		o.Spec.IPFamilies = append(o.Spec.IPFamilies, f)
	}
	return file.WriteOverlay(s.d.Status(), overlayWriter, o)
}

func (s *supervisor) serviceStatus(v *service) lab.ServiceStatus {
	st := lab.ServiceStatus{Namespace: v.key.Namespace, Name: v.key.Name, Endpoints: len(s.backends(v))}
	for _, a := range v.ips {
		st.IPs = append(st.IPs, a.String())
	}
	return st
}

// backends are the pods a service leads to. s.mu is held.
func (s *supervisor) backends(v *service) []*pod {
	var all, out []*pod
	var endpoints []ends.Endpoint
	if len(v.spec.Spec.Selector) == 0 {
		return nil
	}
	for _, p := range s.pods {
		if p.key.Namespace == v.key.Namespace && s.selects(v.spec.Spec.Selector, p) {
			all = append(all, p)
			endpoints = append(endpoints, ends.Endpoint{Ready: p.probed, Ending: !p.ending.IsZero()})
		}
	}
	for i, used := range ends.Used(endpoints, v.spec.Spec.PublishNotReadyAddresses) {
		if used {
			out = append(out, all[i])
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].key.Name < out[j].key.Name })
	return out
}

// selects matches against the pod's labels as they are now. s.mu is held.
func (s *supervisor) selects(selector map[string]string, p *pod) bool {
	labels := p.spec.Labels
	if doc, ok := s.objects[p.key]; ok {
		if o, err := doc.Decode(); err == nil {
			if now, ok := o.(*corev1.Pod); ok {
				labels = now.Labels
			}
		}
	}
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// wire brings rule-sets and hosts files up to date with pods and services.
func (s *supervisor) wire() error {
	s.wiring.Lock()
	defer s.wiring.Unlock()
	s.mu.Lock()
	rules := s.forwards()
	files := map[string]string{}
	for _, p := range s.pods {
		if text := s.hosts(p); p.space != nil && text != p.hostsText {
			p.hostsText = text
			files[s.hostsPath(p)] = text
		}
	}
	s.mu.Unlock()
	var errs []error
	for path, text := range files {
		// Written in place: the file is bound over /etc/hosts in the pods.
		errs = append(errs, os.WriteFile(path, []byte(text), 0o644)) //nolint:gosec // every user of the pod reads it
	}
	for _, n := range s.nodes {
		if err := network.Program(n.space, rules); err != nil {
			errs = append(errs, fmt.Errorf("%s: services: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

// forwards is what a node has to do for services. s.mu is held.
func (s *supervisor) forwards() []network.Forward {
	var out []network.Forward
	for _, v := range s.services {
		pods := s.backends(v)
		for _, ip := range v.ips {
			for _, port := range v.spec.Spec.Ports {
				f := network.Forward{
					Vip: netip.AddrPortFrom(ip, uint16(port.Port)), //nolint:gosec // a port
					Udp: port.Protocol == corev1.ProtocolUDP, Stick: v.spec.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
				}
				for _, p := range pods {
					if target, ok := targetPort(p, port); ok {
						a := p.ips().V4
						if ip.Is6() {
							a = p.ips().V6
						}
						f.To = append(f.To, netip.AddrPortFrom(a, target))
					}
				}
				out = append(out, f)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if c := out[i].Vip.Compare(out[j].Vip); c != 0 {
			return c < 0
		}
		return !out[i].Udp && out[j].Udp
	})
	return out
}

// targetPort resolves a service's port on a pod.
func targetPort(p *pod, port corev1.ServicePort) (uint16, bool) {
	if port.TargetPort.Type == intstr.String && port.TargetPort.StrVal != "" {
		for _, c := range p.spec.Spec.Containers {
			for _, cp := range c.Ports {
				if cp.Name == port.TargetPort.StrVal {
					return uint16(cp.ContainerPort), true //nolint:gosec // a port
				}
			}
		}
		return 0, false
	}
	if n := port.TargetPort.IntVal; n > 0 {
		return uint16(n), true //nolint:gosec // a port
	}
	return uint16(port.Port), true //nolint:gosec // a port
}

func (s *supervisor) hostsPath(p *pod) string {
	return filepath.Join(s.d.Node(p.node.name), "hosts-"+p.uid)
}

func (s *supervisor) resolvPath(p *pod) string {
	return filepath.Join(s.d.Node(p.node.name), "resolv-"+p.uid)
}

// clusterDNS is where programs send what is not in their hosts file. Nobody is
// there, and the node says so at once, unless the mesh answers in the pod.
var clusterDNS = network.ServiceAddr(10)

func (s *supervisor) writeResolvConf(p *pod) error {
	text := fmt.Sprintf("nameserver %s\nsearch %s.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:1 attempts:1\n",
		clusterDNS.First(s.families), p.key.Namespace)
	return os.WriteFile(s.resolvPath(p), []byte(text), 0o644) //nolint:gosec // every user of the pod reads it
}

// hosts is the hosts file of a pod: all services and pods, with the short
// names of its own namespace. It takes the place of a cluster's DNS. s.mu is
// held.
func (s *supervisor) hosts(p *pod) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")
	for _, ip := range p.ips().Strings(s.families) {
		fmt.Fprintf(&b, "%s %s\n", ip, p.key.Name)
	}
	var lines []string
	for _, v := range s.services {
		names := fmt.Sprintf("%[1]s.%[2]s.svc.cluster.local %[1]s.%[2]s.svc %[1]s.%[2]s", v.key.Name, v.key.Namespace)
		if v.key.Namespace == p.key.Namespace {
			names += " " + v.key.Name
		}
		ips := v.ips
		if v.headless {
			for _, e := range s.backends(v) {
				ips = append(ips, e.ips().Addrs(s.families)...)
			}
		}
		for _, ip := range ips {
			lines = append(lines, ip.String()+" "+names)
		}
	}
	for _, other := range s.pods {
		if other == p {
			continue
		}
		// Kubernetes has no such names; they are handy, and no service has the
		// label "pod" in this place.
		names := fmt.Sprintf("%s.%s.pod.cluster.local", other.key.Name, other.key.Namespace)
		if other.key.Namespace == p.key.Namespace && s.services[objects.NewKey("Service", p.key.Namespace, other.key.Name)] == nil {
			names += " " + other.key.Name
		}
		for _, ip := range other.ips().Strings(s.families) {
			lines = append(lines, ip+" "+names)
		}
	}
	sort.Strings(lines)
	b.WriteString(strings.Join(lines, "\n"))
	b.WriteByte('\n')
	return b.String()
}
