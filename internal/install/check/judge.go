package check

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// What the mesh needs.
const (
	minKubernetes = "1.30.0"
	// NAT in one table for both families came with Linux 5.2; 5.4 is the first
	// release after it that is maintained for long.
	minKernel = "5.4.0"
	// certificateWarning is how long before its end a certificate is worth a
	// word.
	certificateWarning = 30 * 24 * time.Hour
)

// ConditionRedirection is the condition of a Node by which its agent tells that
// redirection was tried and works.
const ConditionRedirection corev1.NodeConditionType = "AmbitRedirectionReady"

// judge collects findings.
type judge struct {
	*Snapshot
	found []Finding
}

func (j *judge) add(level Level, check, object, message, next string) {
	j.found = append(j.found, Finding{level, check, object, message, next})
}

// Judge tells what a snapshot means.
func Judge(s *Snapshot, now time.Time) []Finding {
	j := &judge{Snapshot: s}
	j.kubernetes()
	j.permissions()
	j.nodes()
	j.cni()
	j.kinds()
	j.otherMeshes()
	if s.installed() {
		j.parts()
		j.redirection()
		j.largePackets()
		j.webhooks()
		j.certificates(now)
		j.namespaces()
		j.enrolled()
	} else {
		j.add(Info, "installation", "namespace "+s.Namespace, "no mesh is installed", "ambit install")
	}
	j.networkPolicies()
	for _, text := range s.Unseen {
		j.add(Warning, "access", "", text, "ask somebody with the rights, or for the rights")
	}
	return j.found
}

func (j *judge) kubernetes() {
	v, err := version.ParseGeneric(j.ServerVersion)
	switch {
	case err != nil:
		j.add(Warning, "kubernetes", "", fmt.Sprintf("version %q is not understood", j.ServerVersion), "")
	case v.LessThan(version.MustParseGeneric(minKubernetes)):
		j.add(Error, "kubernetes", "", fmt.Sprintf("version %s is too old: %s is needed", j.ServerVersion, minKubernetes), "upgrade the cluster")
	default:
		j.add(OK, "kubernetes", "", "version "+j.ServerVersion, "")
	}
}

func (j *judge) permissions() {
	for _, what := range j.Denied {
		j.add(Error, "permissions", "", "you may not "+what, "installing needs the rights of a cluster administrator")
	}
	if len(j.Denied) == 0 {
		j.add(OK, "permissions", "", "you may install", "")
	}
}

// nodes looks at what the API knows of kernels.
func (j *judge) nodes() {
	kernels := map[string]int{}
	for i := range j.Nodes {
		n := &j.Nodes[i]
		info := n.Status.NodeInfo
		if info.OperatingSystem != "" && info.OperatingSystem != "linux" {
			j.add(Info, "nodes", "node "+n.Name, "runs "+info.OperatingSystem+": its pods are never in the mesh", "")
			continue
		}
		if a := info.Architecture; a != "" && a != "amd64" && a != "arm64" {
			j.add(Warning, "nodes", "node "+n.Name, "architecture "+a+": there are images for amd64 and arm64", "build images for it, or keep the mesh off it with nodeSelector")
		}
		kernels[info.KernelVersion]++
		// What distributions add behind the number is not a version.
		number, _, _ := strings.Cut(info.KernelVersion, "-")
		if k, err := version.ParseGeneric(number); err == nil && k.LessThan(version.MustParseGeneric(minKernel)) {
			j.add(Error, "nodes", "node "+n.Name, fmt.Sprintf("Linux %s is too old: redirection needs nftables of Linux %s", info.KernelVersion, minKernel), "upgrade the node, or keep the mesh off it with nodeSelector")
		}
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(kernels)) {
		list = append(list, fmt.Sprintf("%s (%d)", k, kernels[k]))
	}
	if len(list) > 0 {
		j.add(OK, "nodes", "", "Linux "+strings.Join(list, ", "), "")
	}
}

// cnis are the DaemonSets by which network plugins are known.
var cnis = map[string]string{
	"cilium": "Cilium", "calico-node": "Calico", "kube-flannel-ds": "Flannel", "kindnet": "kindnet", "aws-node": "Amazon VPC CNI",
	"weave-net": "Weave Net", "antrea-agent": "Antrea", "ovnkube-node": "OVN-Kubernetes", "kube-router": "kube-router", "azure-cns": "Azure CNI",
	"multus": "Multus", "kube-multus-ds": "Multus",
}

func (j *judge) cni() {
	found := map[string]string{}
	for _, d := range j.DaemonSets {
		if name, ok := cnis[d.Name]; ok {
			found[name] = fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		j.add(OK, "cni", found[name], name+" is in use", "")
	}
	if j.Cilium != nil {
		j.cilium()
	}
	if j.CalicoEBPF {
		j.add(Warning, "cni", "FelixConfiguration default", "Calico's eBPF data plane may rewrite connections before they can be captured", "set bpfConnectTimeLoadBalancing: Disabled in it")
	}
	if found["Multus"] != "" {
		j.add(Info, "cni", found["Multus"], "only a pod's first interface is captured, unless istio.io/reroute-virtual-interfaces names more", "")
	}
}

func (j *judge) cilium() {
	const object = "ConfigMap cilium-config"
	is := func(key string, values ...string) bool { return slices.Contains(values, j.Cilium[key]) }
	if is("cni-exclusive", "true") {
		j.add(Error, "cni", object, "cni-exclusive is true: Cilium removes the mesh's CNI plugin, and new pods start outside the mesh", "helm upgrade cilium … --set cni.exclusive=false")
	}
	if is("kube-proxy-replacement", "true", "strict") && !is("bpf-lb-sock-hostns-only", "true") {
		j.add(Error, "cni", object, "Cilium balances connections at the socket, before they can be captured: services are not seen", "helm upgrade cilium … --set socketLB.hostNamespaceOnly=true")
	}
	if is("enable-bpf-masquerade", "true") {
		j.add(Warning, "cni", object, "enable-bpf-masquerade is true: the source of health probes may not be the node's, and they fail under STRICT", "helm upgrade cilium … --set bpf.masquerade=false, if probes fail")
	}
}

func (j *judge) kinds() {
	var missing []string
	for _, name := range j.WantedKinds {
		if _, ok := j.Kinds[name]; !ok {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) == 0:
		j.add(OK, "kinds", "", fmt.Sprintf("all %d kinds of the mesh are installed", len(j.WantedKinds)), "")
	case j.installed():
		j.add(Error, "kinds", "", "missing: "+strings.Join(missing, ", "), "ambit install, or helm upgrade of chart base")
	default:
		j.add(Info, "kinds", "", fmt.Sprintf("%d of %d kinds of the mesh are not installed yet", len(missing), len(j.WantedKinds)), "")
	}
	const gateways = "gateways.gateway.networking.k8s.io"
	if release, ok := j.Kinds[gateways]; ok && release != "" {
		j.add(OK, "kinds", gateways, "Gateway API "+release, "")
	}
}

// otherMeshes looks for what would get in the way.
func (j *judge) otherMeshes() {
	for _, d := range j.istios() {
		object := fmt.Sprintf("Deployment %s/%s", d.Namespace, d.Name)
		if len(j.control()) == 0 && len(j.daemons()) > 0 {
			j.add(Info, "other meshes", object, "Istio's control plane serves this mesh: what ambitd would answer is not available", "")
			continue
		}
		j.add(Warning, "other meshes", object, "Istio's control plane is installed in the mesh's namespace", "install with --revision or into another namespace (-i), and enrol each pod in one mesh only")
	}
	for _, d := range j.DaemonSets {
		if d.Labels["k8s-app"] == "istio-cni-node" && d.Labels["app.kubernetes.io/part-of"] != "ambit" {
			j.add(Error, "other meshes", fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name), "Istio's node agent is installed: two agents would fight over each pod", "remove one of them; agents cannot share a node")
		}
	}
}

// parts looks at what is installed: is it ready, and of which version?
func (j *judge) parts() {
	for _, d := range j.control() {
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		j.part(fmt.Sprintf("Deployment %s/%s", d.Namespace, d.Name), d.Labels, d.Spec.Template.Spec, d.Status.AvailableReplicas, want)
	}
	if len(j.control())+len(j.istios()) == 0 {
		j.add(Warning, "installation", "namespace "+j.Namespace, "there is no control plane here: nothing new reaches the node proxies, unless one elsewhere serves them", "ambit install, or helm install of its chart")
	}
	byApp := map[string]bool{}
	for _, d := range j.DaemonSets {
		if d.Namespace == j.Namespace && d.Spec.Template.Labels["app"] == "ztunnel" {
			byApp["ztunnel"] = true // Istio's serves as well
		}
	}
	for _, d := range j.daemons() {
		byApp[d.Spec.Template.Labels["app.kubernetes.io/name"]] = true
		j.part(fmt.Sprintf("DaemonSet %s/%s", d.Namespace, d.Name), d.Labels, d.Spec.Template.Spec, d.Status.NumberAvailable, d.Status.DesiredNumberScheduled)
	}
	for _, name := range []string{"ambit-cni", "ztunnel"} {
		if !byApp[name] {
			j.add(Warning, "installation", "namespace "+j.Namespace, "there is no "+name+": no pod can be in the mesh", "ambit install, or helm install of its chart")
		}
	}
}

func (j *judge) part(object string, labels map[string]string, spec corev1.PodSpec, have, want int32) {
	level, next := OK, ""
	switch {
	case want == 0:
		level, next = Error, "nothing of it is to run: a Deployment was scaled to 0 (`kubectl scale --replicas=1`), a DaemonSet selects no node"
	case have < want:
		level, next = Error, fmt.Sprintf("kubectl describe pods and logs in namespace %s; `ambit install` says what they wait for", j.Namespace)
	}
	image := ""
	if len(spec.Containers) > 0 {
		image = spec.Containers[0].Image
	}
	v := labels["app.kubernetes.io/version"]
	j.add(level, "installation", object, fmt.Sprintf("version %s, %d of %d ready, %s", v, have, want, image), next)
	if err := skew(v, j.Version); err != "" {
		j.add(Warning, "versions", object, err, "ambit upgrade, with the `ambit` of the version that is wanted")
	}
}

// skew says what is wrong with the distance between two versions.
func skew(part, program string) string {
	a, errA := version.ParseSemantic(part)
	b, errB := version.ParseSemantic(program)
	if errA != nil || errB != nil || a.Major() == b.Major() && max(a.Minor(), b.Minor())-min(a.Minor(), b.Minor()) <= 1 {
		return ""
	}
	return fmt.Sprintf("version %s and this program's %s are more than one minor version apart", part, program)
}

func (j *judge) redirection() {
	ready := 0
	for i := range j.Nodes {
		n := &j.Nodes[i]
		if n.Status.NodeInfo.OperatingSystem == "windows" {
			continue
		}
		at := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == ConditionRedirection })
		switch {
		case at < 0:
			j.add(Warning, "redirection", "node "+n.Name, "the node agent has not said yet whether redirection works here", "kubectl logs -n "+j.Namespace+" -l k8s-app=istio-cni-node")
		case n.Status.Conditions[at].Status != corev1.ConditionTrue:
			j.add(Error, "redirection", "node "+n.Name, n.Status.Conditions[at].Reason+": "+n.Status.Conditions[at].Message, "pods of this node stay out of the mesh until this is mended")
		default:
			ready++
		}
	}
	if ready > 0 {
		j.add(OK, "redirection", "", fmt.Sprintf("tried and works on %d nodes", ready), "")
	}
}

// largePackets reports what the way out of nodes allows, as their agents have seen it.
func (j *judge) largePackets() {
	nodes := map[string][]string{}
	for i := range j.Nodes {
		n := &j.Nodes[i]
		for _, c := range n.Status.Conditions {
			if _, path, ok := strings.Cut(c.Message, wellknown.ConditionLargePackets); ok && c.Type == ConditionRedirection {
				nodes[path] = append(nodes[path], n.Name)
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(nodes)) {
		object := "node " + nodes[path][0]
		if more := len(nodes[path]) - 1; more > 0 {
			object += fmt.Sprintf(" and %d more", more)
		}
		j.add(Info, "large packets", object, path, "")
	}
}

func (j *judge) webhooks() {
	if len(j.Webhooks) > 0 && !slices.ContainsFunc(j.Webhooks, func(w Webhook) bool { return w.Unlabelled }) {
		j.add(Warning, "admission", "", "objects without the label istio.io/rev are not checked when they are made: no control plane is the default one", "ambit upgrade --revision NAME --set 'values.revisionTags={default}', with the settings of that installation")
	}
	for _, w := range j.Webhooks {
		switch {
		case !w.HasBundle:
			j.add(Warning, "admission", w.Object, "the control plane has not put its certificate there yet: objects are not checked when they are made", "kubectl logs -n "+j.Namespace+" -l app=istiod")
		case w.Policy != "Fail":
			j.add(Info, "admission", w.Object, "failurePolicy is "+w.Policy+": when the control plane is away, objects are not checked", "")
		default:
			j.add(OK, "admission", w.Object, "objects are checked when they are made", "")
		}
	}
}

func (j *judge) certificates(now time.Time) {
	for _, c := range j.Certificates {
		left := c.NotAfter.Sub(now)
		until := c.NotAfter.UTC().Format("2006-01-02 15:04 MST")
		switch {
		case c.Problem != "":
			j.add(Error, "certificates", c.Object, c.Problem, "")
		case left <= 0:
			j.add(Error, "certificates", c.Object, fmt.Sprintf("%s ended %s", c.Name, until), "connections fail: replace it")
		case now.Before(c.NotBefore):
			j.add(Error, "certificates", c.Object, fmt.Sprintf("%s is valid only from %s", c.Name, c.NotBefore.UTC().Format(time.RFC3339)), "compare the clocks")
		case left < certificateWarning:
			j.add(Warning, "certificates", c.Object, fmt.Sprintf("%s ends %s, in %d days", c.Name, until, int(left.Hours()/24)), "a self-signed root is replaced by itself; replace a plugged-in one")
		default:
			j.add(OK, "certificates", c.Object, fmt.Sprintf("%s until %s", c.Name, until), "")
		}
	}
}

// wantsMesh reports whether labels ask for a pod to be in the mesh.
func (j *judge) wantsMesh(p *corev1.Pod) bool {
	if p.Spec.HostNetwork || p.Namespace == "kube-system" || p.Namespace == j.Namespace || p.Annotations[wellknown.AnnotationSidecarStatus] != "" {
		return false
	}
	switch p.Labels[wellknown.LabelDataplaneMode] {
	case wellknown.DataplaneModeAmbient:
		return true
	case wellknown.DataplaneModeNone:
		return false
	}
	at := slices.IndexFunc(j.Namespaces, func(n corev1.Namespace) bool { return n.Name == p.Namespace })
	return at >= 0 && j.Namespaces[at].Labels[wellknown.LabelDataplaneMode] == wellknown.DataplaneModeAmbient
}

// discovered reports whether the control plane looks at a namespace.
func (j *judge) discovered(namespace string) bool {
	at := slices.IndexFunc(j.Namespaces, func(n corev1.Namespace) bool { return n.Name == namespace })
	return at < 0 || meshconfig.Discovers(j.Discovery, j.Namespaces[at].Labels)
}

// labelledInVain reports whether a pod is out of the mesh because of its
// namespace, which namespaces reports.
func (j *judge) labelledInVain(p *corev1.Pod) bool {
	return p.Labels[wellknown.LabelDataplaneMode] == "" && !j.discovered(p.Namespace)
}

// namespaces finds those that are labelled for the mesh and that the control
// plane leaves out.
func (j *judge) namespaces() {
	for _, n := range j.Namespaces {
		if n.Labels[wellknown.LabelDataplaneMode] == wellknown.DataplaneModeAmbient && !j.discovered(n.Name) {
			j.add(Warning, "namespaces", "namespace "+n.Name, "is labelled for the mesh, and no selector of meshConfig.discoverySelectors chooses it: none of its pods is enrolled",
				"give it labels that a selector chooses, or remove "+wellknown.LabelDataplaneMode)
		}
	}
}

func (j *judge) enrolled() {
	in := 0
	for i := range j.Pods {
		p := &j.Pods[i]
		if p.Status.Phase != corev1.PodRunning || !j.wantsMesh(p) {
			continue
		}
		if j.labelledInVain(p) {
			continue // reported by namespaces
		}
		if state := p.Annotations[wellknown.AnnotationRedirection]; state != wellknown.RedirectionEnabled {
			j.add(Warning, "pods", fmt.Sprintf("pod %s/%s", p.Namespace, p.Name), "is labelled for the mesh and not in it", "kubectl describe pod -n "+p.Namespace+" "+p.Name+" has the agent's events; `ambit describe pod` says more")
			continue
		}
		in++
	}
	j.add(OK, "pods", "", strconv.Itoa(in)+" pods are in the mesh", "")
}

func matches(selector *metav1.LabelSelector, labels map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labelSet(labels))
}
