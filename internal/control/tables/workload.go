package tables

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/binding"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/policy"
	"github.com/ambit-mesh/ambit/internal/control/service"
	"github.com/ambit-mesh/ambit/internal/mesh/ending"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

type locality struct{ region, zone, subzone string }

func (l locality) proto() *workloadpb.Locality {
	if l == (locality{}) {
		return nil
	}
	return &workloadpb.Locality{Region: l.region, Zone: l.zone, Subzone: l.subzone}
}

// namespaceInfo is what workloads and services take from their namespace.
type namespaceInfo struct {
	use                 waypointUse
	bypass              bypassUse
	ingressUse          string
	Canary              Canary
	network             string
	trafficDistribution string
}

// final reports whether a pod has a phase that it does not leave. Its containers
// can run on for a while, but new connections do not go there.
func final(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodAddresses are the addresses a pod has, each 4 or 16 bytes.
func PodAddresses(p *corev1.Pod) [][]byte {
	ips := make([]string, 0, 2)
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 {
		ips = append(ips, p.Status.PodIP)
	}
	var out [][]byte
	for _, s := range ips {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap().AsSlice())
		}
	}
	return out
}

// podID returns the ID of a pod's cluster, and the pod's own.
func (t *Tables) podID(r *collection.Reader, k Ref) (cluster, uid string) {
	return t.Cluster(r, k.Cluster).ID, t.podUID(r, k)
}

func (t *Tables) podUID(r *collection.Reader, k Ref) string {
	return t.Cluster(r, k.Cluster).ID + "//Pod/" + k.Namespace + "/" + k.Name
}

// podWorkload is nil while a pod has no address and after it ended.
func (t *Tables) podWorkload(r *collection.Reader, k Ref, p *corev1.Pod) *workloadpb.Workload {
	w, _ := t.ClosedPod(r, k, p)
	return w
}

// ClosedPod is podWorkload with the policy that the workload names because of its
// waypoints, nil for none.
func (t *Tables) ClosedPod(r *collection.Reader, k Ref, p *corev1.Pod) (*workloadpb.Workload, *securitypb.Authorization) {
	addrs := PodAddresses(p)
	if source.Ended(p) || len(addrs) == 0 {
		return nil, nil
	}
	name, kind := owner(p)
	account, own := source.Account(p)
	if !own {
		account = wellknown.NoServiceAccount
	}
	w := &workloadpb.Workload{
		Uid:            t.podUID(r, k),
		Name:           k.Name,
		Addresses:      addrs,
		ServiceAccount: account,
		Node:           p.Spec.NodeName,
		WorkloadName:   name,
		WorkloadType:   kind,
	}
	if p.Spec.NodeName != "" {
		l, _ := collection.Fetch(r, t.localities, Space{Cluster: k.Cluster, Name: p.Spec.NodeName})
		w.Locality = l.proto()
	}
	if p.Spec.HostNetwork {
		w.NetworkMode = workloadpb.NetworkMode_HOST_NETWORK
	}
	if p.DeletionTimestamp != nil || !ready(p) || final(p) {
		w.Status = workloadpb.WorkloadStatus_UNHEALTHY
	}
	t.complete(r, w, k.Home(), p.Labels, namedPorts(p))
	if p.Annotations[wellknown.AnnotationRedirection] == wellknown.RedirectionEnabled && !p.Spec.HostNetwork && own {
		w.TunnelProtocol = workloadpb.TunnelProtocol_HBONE
	}
	t.addManualServices(r, w, k)
	w.Extensions = append(w.Extensions, t.Egress.Extensions(r, k.Home(), p.Labels, p.Annotations)...)
	w.Extensions = append(w.Extensions, ending.Of(p.DeletionTimestamp != nil, ready(p) && !final(p)).Extensions()...)
	return w, t.bindWaypoint(r, w, k.Home(), p.Labels, t.podState(r, k))
}

// serviceAccount is the account of a workload that is no pod.
func serviceAccount(name string) string {
	if name == "" {
		return "default"
	}
	return name
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// complete fills in what every kind of workload takes from its labels, its
// namespace and what selects it. ports resolves named ports of the workload.
func (t *Tables) complete(r *collection.Reader, w *workloadpb.Workload, home Space, labels map[string]string, ports map[string]uint32) {
	c := t.Cluster(r, home.Cluster)
	w.Namespace = home.Name
	w.ClusterId = c.ID
	if c.TrustDomain != identity.DefaultTrustDomain {
		w.TrustDomain = c.TrustDomain
	}
	if w.Network == "" {
		w.Network = t.networkOf(r, home, labels, c)
	}
	if n := labels[wellknown.LabelWorkloadName]; n != "" {
		w.WorkloadName = n
	}
	w.CanonicalName = firstOf(labels, w.WorkloadName, wellknown.LabelCanonicalName, "app.kubernetes.io/name", "app")
	w.CanonicalRevision = firstOf(labels, "latest", wellknown.LabelCanonicalRevision, "app.kubernetes.io/version", "version")
	if labels[wellknown.LabelTunnel] == "http" {
		w.TunnelProtocol, w.NativeTunnel = workloadpb.TunnelProtocol_HBONE, true
	}
	services, policies := t.selected(r, home, labels)
	w.AuthorizationPolicies = policies
	for _, s := range t.partsOf(r, services) {
		addService(w, s.key.host, s.core, func(p service.Port) uint32 { return targetPort(ports, p) })
	}
}

// part is a part of a service with its key.
type part struct {
	key  coreKey
	core *core
}

// partsOf returns parts of services, those of one service with the oldest
// first, whose ports count where two have one port.
func (t *Tables) partsOf(r *collection.Reader, keys []coreKey) []part {
	out := make([]part, 0, len(keys))
	for _, k := range keys {
		if c, ok := collection.Fetch(r, t.cores, k); ok {
			out = append(out, part{k, c})
		}
	}
	slices.SortFunc(out, func(a, b part) int { return cmp.Or(cmp.Compare(a.core.created, b.core.created), a.key.Compare(b.key)) })
	return out
}

// ownPort marks the ports of an entry: they replace those of a service by the
// service port's name, whatever its target; a container's ports do not.
const ownPort = "\x00"

// targetPort is the port of a workload for a port of its service; 0 for none.
func targetPort(ports map[string]uint32, p service.Port) uint32 {
	if n := ports[ownPort+p.Name]; n != 0 {
		return n
	}
	if n := ports[p.ByName]; p.ByName != "" && n != 0 {
		return n
	}
	if p.TargetName == "" {
		return p.Target
	}
	if n := ports[p.TargetName]; n != 0 {
		return n
	}
	return ports[ownPort+p.TargetName]
}

// addService makes w an endpoint of a service. Ports without a target on this
// workload are left out; ports that w has for the service already stay.
func addService(w *workloadpb.Workload, s Host, c *core, target func(service.Port) uint32) {
	if w.Services == nil {
		w.Services = map[string]*workloadpb.PortList{}
	}
	key := s.String()
	list := w.Services[key]
	if list == nil {
		list = &workloadpb.PortList{}
		w.Services[key] = list
	}
	for _, p := range c.ports {
		if n := target(p); n != 0 && !hasPort(list, p.Port) {
			list.Ports = append(list.Ports, &workloadpb.Port{ServicePort: p.Port, TargetPort: n, AppProtocol: p.Protocol})
		}
	}
}

func hasPort(list *workloadpb.PortList, port uint32) bool {
	return slices.ContainsFunc(list.GetPorts(), func(p *workloadpb.Port) bool { return p.ServicePort == port })
}

// Network returns the network of an object, by its labels, its namespace, or its cluster.
func (t *Tables) Network(r *collection.Reader, home Space, labels map[string]string) string {
	return t.networkOf(r, home, labels, t.Cluster(r, home.Cluster))
}

// networkOf returns the network of a workload, whose cluster has these facts.
func (t *Tables) networkOf(r *collection.Reader, home Space, labels map[string]string, c ClusterFacts) string {
	if n := labels[wellknown.LabelNetwork]; n != "" {
		return n
	}
	ns, _ := collection.Fetch(r, t.Namespaces, home)
	if ns.network != "" {
		return ns.network
	}
	return c.Network
}

func firstOf(labels map[string]string, otherwise string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return otherwise
}

// selected finds what selects a workload by its labels: services, and the
// policies it has to name.
func (t *Tables) selected(r *collection.Reader, home Space, labels map[string]string) (services []coreKey, policies []string) {
	var peer *policy.PeerAuthentication
	// Policies are configuration, which is of the control plane's own cluster.
	scopes, n := [3]Space{home, {}, {Name: home.Name}}, 2
	if !home.Cluster.Own() {
		n = 3
	}
	for k, v := range labels {
		for _, scope := range scopes[:n] {
			for a, at := range collection.Lookup(r, t.attached, labelKey{scope, k, v}) {
				if !matches(at.selector, labels) {
					continue
				}
				switch a.kind {
				case attachService:
					if a.cluster == home.Cluster {
						services = append(services, a.service())
					}
				case attachPolicy:
					policies = append(policies, a.namespace+"/"+a.name)
				case attachPeer:
					// Selecting again when only the modes change.
					if p, ok := collection.Fetch(r, t.Peers, a.object()); ok && (peer == nil || policy.Older(p, peer)) {
						peer = p
					}
				}
			}
		}
	}
	if name := t.peerPolicy(r, home.Name, peer); name != "" {
		policies = append(policies, name)
	}
	slices.Sort(policies)
	return services, policies
}

// peerPolicy is the policy that says what PeerAuthentications demand of a
// workload; empty for nothing.
func (t *Tables) peerPolicy(r *collection.Reader, namespace string, own *policy.PeerAuthentication) string {
	outer := t.outerMode(r, namespace)
	strict := outer == policy.Strict
	if own != nil {
		pb, s := policy.Convert(own, outer)
		if pb != nil {
			return PolicyName(pb)
		}
		strict = s
	}
	if strict {
		return t.Opts.RootNamespace + "/" + policy.StaticStrict
	}
	return ""
}

// bindWaypoint sets the waypoint of a workload, and returns the policy that it names
// because of its waypoints. A waypoint's own pods have none, and say instead how they
// take connections.
func (t *Tables) bindWaypoint(r *collection.Reader, w *workloadpb.Workload, home Space, labels map[string]string, own binding.State) *securitypb.Authorization {
	if proxied, is := t.IsProxy(r, home, labels); is {
		w.ApplicationTunnel, own = proxied.binding, binding.State{}
		if proxied.account == w.ServiceAccount {
			return nil // else nobody trusts it as a waypoint: its services' ports are closed
		}
	}
	w.Waypoint = own.Waypoint
	return t.shut(r, w, home.Cluster, own)
}

// namedPorts are the TCP ports of a pod's containers by name. A native
// sidecar's (an init container that stays) count too.
func namedPorts(p *corev1.Pod) map[string]uint32 {
	var out map[string]uint32
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.Name == "" || port.Protocol != corev1.ProtocolTCP && port.Protocol != "" || port.ContainerPort <= 0 || port.ContainerPort > 65535 {
				continue
			}
			if out == nil {
				out = map[string]uint32{}
			}
			if _, dup := out[port.Name]; !dup {
				out[port.Name] = uint32(port.ContainerPort)
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

// cronJob is the name of a Job made by a CronJob: it ends in the minute.
var cronJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// owner is the name and type of what runs a pod, as people know it: the
// Deployment, not its ReplicaSet.
func owner(p *corev1.Pod) (string, workloadpb.WorkloadType) {
	ref := metav1.GetControllerOf(p)
	if ref == nil {
		return p.Name, workloadpb.WorkloadType_POD
	}
	switch ref.Kind {
	case "ReplicaSet":
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok {
				return name, workloadpb.WorkloadType_DEPLOYMENT
			}
		}
		return ref.Name, workloadpb.WorkloadType_DEPLOYMENT
	case "Job":
		if m := cronJob.FindStringSubmatch(ref.Name); m != nil {
			return m[1], workloadpb.WorkloadType_CRONJOB
		}
		return ref.Name, workloadpb.WorkloadType_JOB
	case "CronJob":
		return ref.Name, workloadpb.WorkloadType_CRONJOB
	case "Pod":
		return ref.Name, workloadpb.WorkloadType_POD
	}
	return ref.Name, workloadpb.WorkloadType_DEPLOYMENT
}
