package local

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

func testConfig(t *testing.T, p plan) map[string][]byte {
	t.Helper()
	files, err := configFiles(dirs{"/run/x"}, p, "/opt/bin", 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if bytes.Contains(b, []byte("<no value>")) || bytes.Contains(b, []byte("{{")) {
			t.Errorf("%s has holes:\n%s", name, b)
		}
	}
	return files
}

func TestConfigurationOfNodes(t *testing.T) {
	files := testConfig(t, plan{count: 2, ipv6: true})
	var kubelet struct {
		ClusterDNS     []string
		TLSCertFile    string
		MaxOpenFiles   int
		FailCgroupV1   *bool
		Authentication struct{ X509 struct{ ClientCAFile string } }
	}
	if err := yaml.UnmarshalStrict(files["node2-kubelet.yaml"], &map[string]any{}); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(files["node2-kubelet.yaml"], &kubelet); err != nil {
		t.Fatal(err)
	}
	if kubelet.TLSCertFile != "/run/x/pki/kubelet-node2.crt" || kubelet.Authentication.X509.ClientCAFile != "/run/x/pki/ca.crt" ||
		kubelet.MaxOpenFiles != 1024 || kubelet.FailCgroupV1 == nil || *kubelet.FailCgroupV1 || !cmp.Equal(kubelet.ClusterDNS, []string{"10.96.0.10"}) {
		t.Errorf("kubelet: %+v", kubelet)
	}
	var proxy struct{ ClusterCIDR, HostnameOverride, Mode string }
	if err := yaml.Unmarshal(files["node1-kube-proxy.yaml"], &proxy); err != nil {
		t.Fatal(err)
	}
	if proxy.ClusterCIDR != "10.244.0.0/16,fd00:10:244::/48" || proxy.HostnameOverride != "node1" || proxy.Mode != "nftables" {
		t.Errorf("kube-proxy: %+v", proxy)
	}
	if s := string(files["containerd.toml"]); !strings.Contains(s, "BinaryName = '/opt/bin/runc'") || !strings.Contains(s, "sandbox = '"+PauseImage+"'") {
		t.Errorf("containerd:\n%s", s)
	}
}

func TestPodNetworkOfANode(t *testing.T) {
	for ipv6, want := range map[bool][]string{
		false: {"10.244.2.0/24 0.0.0.0/0"},
		true:  {"10.244.2.0/24 0.0.0.0/0", "fd00:10:244:2::/64 ::/0"},
	} {
		var c struct {
			Plugins []struct {
				Type string
				IPAM struct {
					Ranges [][]struct{ Subnet string }
					Routes []struct{ Dst string }
				}
			}
		}
		if err := json.Unmarshal(testConfig(t, plan{count: 2, ipv6: ipv6})["node2.conflist"], &c); err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, r := range c.Plugins[1].IPAM.Ranges {
			got = append(got, r[0].Subnet+" "+c.Plugins[1].IPAM.Routes[i].Dst)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestObjects(t *testing.T) {
	nodes := map[string][]string{}
	var kinds []string
	d := k8syaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(testConfig(t, plan{count: 3})["objects.yaml"])))
	for {
		b, err := d.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var o corev1.Node
		if err := yaml.Unmarshal(b, &o); err != nil && o.Kind == "Node" {
			t.Fatal(err)
		}
		if o.Kind == "Node" {
			nodes[o.Name] = o.Spec.PodCIDRs
		} else {
			kinds = append(kinds, o.Kind)
		}
	}
	if diff := cmp.Diff(map[string][]string{"node1": {"10.244.1.0/24"}, "node2": {"10.244.2.0/24"}, "node3": {"10.244.3.0/24"}}, nodes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Service", "Deployment"}, kinds); diff != "" {
		t.Error(diff)
	}
}

func TestDaemons(t *testing.T) {
	p := plan{count: 2, ipv6: true}
	var names []string
	for _, dm := range slices.Concat(controlPlane(dirs{"/run/x"}, p), nodeDaemons(dirs{"/run/x"}, p, 2)) {
		names = append(names, dm.Name)
		if !slices.Contains(Programs(), dm.Name) {
			t.Errorf("%s is not among the programs that are built", dm.Name)
		}
		switch args := strings.Join(dm.Args, " ") + " "; dm.Name {
		case APIServer:
			if !strings.Contains(args, "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112 ") {
				t.Error(args)
			}
		case "kubelet":
			if !strings.Contains(args, "--node-ip=172.30.0.12,fd00:172:30::c ") || !strings.Contains(args, "kubelet-node2.kubeconfig ") {
				t.Error(args)
			}
		}
	}
	if diff := cmp.Diff([]string{"etcd", APIServer, "kube-controller-manager", "kube-scheduler", containerd, "kubelet", "kube-proxy"}, names); diff != "" {
		t.Error(diff)
	}
}
