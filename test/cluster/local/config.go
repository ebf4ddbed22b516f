package local

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"path/filepath"
	"text/template"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Images that come with the cluster's programs.
const (
	PauseImage   = "localhost/pause:1"
	CoreDNSImage = "localhost/coredns:1"
)

// StaticPods is the directory of a node in which its kubelet finds manifests of
// static pods. It is not kubeadm's: the machine's own may be a node's below it.
const StaticPods = "/etc/ambit-cluster/manifests"

//go:embed files
var files embed.FS

var templates = template.Must(template.ParseFS(files, "files/*"))

// values is what the templates in files/ may name.
type values struct {
	Bin, State, Node, Domain           string
	PauseImage, DNSImage, DNSNode, DNS string
	PodNetworks, StaticPods            string
	OpenFiles                          uint64
}

func (d dirs) values(p plan, bin, node string, openFiles uint64) values {
	return values{
		Bin: bin, State: d.root, Node: node, Domain: clusterName,
		PauseImage: PauseImage, DNSImage: CoreDNSImage, DNSNode: nodeName(1), DNS: p.dns()[0].String(),
		PodNetworks: join(p.pods()), StaticPods: StaticPods, OpenFiles: openFiles,
	}
}

func render(name string, v values) ([]byte, error) {
	var b bytes.Buffer
	err := templates.ExecuteTemplate(&b, name, v)
	return b.Bytes(), err
}

// configFiles makes what the programs of all nodes read, by file name, and the
// objects that the API server is given first.
func configFiles(d dirs, p plan, bin string, openFiles uint64) (map[string][]byte, error) {
	out := map[string][]byte{}
	var err error
	if out["containerd.toml"], err = render("containerd.toml", d.values(p, bin, "", openFiles)); err != nil {
		return nil, err
	}
	for _, n := range p.nodes() {
		v := d.values(p, bin, nodeName(n), openFiles)
		for _, file := range []string{"kubelet.yaml", "kube-proxy.yaml"} {
			if out[v.Node+"-"+file], err = render(file, v); err != nil {
				return nil, err
			}
		}
		if out[v.Node+".conflist"], err = cniConfig(p, n); err != nil {
			return nil, err
		}
	}
	out["objects.yaml"], err = objects(d, p)
	return out, err
}

// cniConfig connects each pod of a node to it by a link of its own.
func cniConfig(p plan, n int) ([]byte, error) {
	type object map[string]any
	var ranges, routes []any
	for i, pods := range p.podsOf(n) {
		ranges = append(ranges, []object{{"subnet": pods.String()}})
		routes = append(routes, object{"dst": []string{"0.0.0.0/0", "::/0"}[i]})
	}
	return json.MarshalIndent(object{
		"cniVersion": "1.0.0", "name": "ambit-cluster",
		"plugins": []object{
			{"type": "nodad"},
			{"type": "ptp", "ipMasq": false, "ipam": object{"type": "host-local", "ranges": ranges, "routes": routes}},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}

// objects are the nodes, made beforehand so that each has its own pod network,
// and the cluster's DNS.
func objects(d dirs, p plan) ([]byte, error) {
	var out bytes.Buffer
	for _, n := range p.nodes() {
		node := corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Labels: map[string]string{corev1.LabelHostname: nodeName(n)}},
		}
		for _, pods := range p.podsOf(n) {
			node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, pods.String())
		}
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
		b, err := yaml.Marshal(node)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%s---\n", b)
	}
	dns, err := render("coredns.yaml", d.values(p, "", "", 0))
	if err != nil {
		return nil, err
	}
	out.Write(dns)
	return out.Bytes(), nil
}

// daemon is a program that is kept running.
type daemon struct {
	Name string
	Args []string
}

// controlPlane lists the programs of the control plane in the order in which
// they are started.
func controlPlane(d dirs, p plan) []daemon {
	pki := func(name string) string { return filepath.Join(d.pki(), name) }
	// A client at its default of 20 requests a second takes seconds to start
	// the controllers.
	client := func(name string) []string {
		config := pki(name + ".kubeconfig")
		return []string{"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--leader-elect=false", "--bind-address=127.0.0.1", "--kube-api-qps=500", "--kube-api-burst=1000"}
	}
	return []daemon{
		// Nothing here outlives the machine: no need to wait for its disk.
		{"etcd", []string{"--data-dir=" + filepath.Join(d.root, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380"}},
		{APIServer, []string{
			"--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + p.node(1)[0].String(),
			fmt.Sprintf("--secure-port=%d", apiPort), "--service-cluster-ip-range=" + join(p.services()),
			"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"), "--client-ca-file=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc." + clusterName,
			"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
			"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy-client.crt"), "--proxy-client-key-file=" + pki("front-proxy-client.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			// Beta, and so off unless asked for.
			"--feature-gates=ClusterTrustBundle=true", "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
		}},
		{"kube-controller-manager", append(client("kube-controller-manager"),
			"--root-ca-file="+pki("ca.crt"), "--service-account-private-key-file="+pki("sa.key"), "--use-service-account-credentials=true",
			"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"))},
		{"kube-scheduler", client("kube-scheduler")},
	}
}

// nodeDaemons lists the programs of a node in the order of starting.
func nodeDaemons(d dirs, p plan, n int) []daemon {
	name := nodeName(n)
	return []daemon{
		{containerd, nil},
		{"kubelet", []string{"--config=" + filepath.Join(d.etc(), name+"-kubelet.yaml"), "--kubeconfig=" + filepath.Join(d.pki(), "kubelet-"+name+".kubeconfig"),
			"--hostname-override=" + name, "--node-ip=" + join(p.node(n))}},
		{"kube-proxy", []string{"--config=" + filepath.Join(d.etc(), name+"-kube-proxy.yaml")}},
	}
}
