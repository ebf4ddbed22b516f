package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/measure"
)

const (
	// readyWait bounds the start of the control plane and of all nodes.
	readyWait = 5 * time.Minute
	// tokenSeconds is longer than any run.
	tokenSeconds = 4 * 3600
)

// control is a control plane that is measured: the real program, outside of
// the cluster, which sees nothing of the cluster but what was made for it.
type control struct {
	*measure.Process
	grpc, serverName      string
	ready, metrics, pprof string // URLs
}

// selectors keep a control plane to what was made for it; both understand them.
func selectors(dir string) (path string, err error) {
	path = filepath.Join(dir, "mesh.yaml")
	text := fmt.Sprintf("rootNamespace: %s\ndiscoverySelectors: [{matchExpressions: [{key: %s, operator: Exists}]}]\n", systemNamespace, ownLabel)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// environment finds the cluster as this program does.
func environment() []string {
	return []string{"HOME=" + os.Getenv("HOME"), "KUBECONFIG=" + os.Getenv("KUBECONFIG")}
}

func startAmbitd(dir, binary, kubeconfig string) (*control, error) {
	addrs, err := measure.FreeAddrs(3)
	if err != nil {
		return nil, err
	}
	mesh, err := selectors(dir)
	if err != nil {
		return nil, err
	}
	grpc, monitor, admin := addrs[0], addrs[1], addrs[2]
	c := &control{grpc: grpc, serverName: "127.0.0.1", ready: "http://" + monitor + "/readyz", metrics: "http://" + monitor + "/metrics", pprof: "http://" + admin + "/debug/pprof/"}
	args := []string{"--kubernetes", "--namespace", systemNamespace, "--root-namespace", systemNamespace, "--mesh-config", mesh,
		"--listen", grpc, "--monitor", monitor, "--admin", admin, "--webhook-listen", "", "--server-name", "127.0.0.1",
		"--log-level", "xds=warn,info"}
	if kubeconfig != "" {
		args = append(args, "--kubeconfig", kubeconfig)
	}
	c.Process, err = measure.Start(dir, "ambitd", binary, environment(), args...)
	return c, err
}

// startIstiod starts Istio's pilot-discovery, as its chart does for the ambient
// profile, with the limit that it sets itself on what it asks of the API server.
func startIstiod(dir, binary, kubeconfig string) (*control, error) {
	addrs, err := measure.FreeAddrs(6)
	if err != nil {
		return nil, err
	}
	mesh, err := selectors(dir)
	if err != nil {
		return nil, err
	}
	if kubeconfig == "" {
		kubeconfig = os.Getenv("KUBECONFIG")
	}
	grpc, plain, web, hook, monitor := addrs[0], addrs[1], addrs[2], addrs[3], addrs[4]
	_, ctrlz, err := net.SplitHostPort(addrs[5])
	if err != nil {
		return nil, err
	}
	c := &control{grpc: grpc, serverName: "istiod." + systemNamespace + ".svc", ready: "http://" + web + "/ready", metrics: "http://" + monitor + "/metrics", pprof: "http://" + web + "/debug/pprof/"}
	env := append(environment(), "PILOT_ENABLE_AMBIENT=true", "POD_NAMESPACE="+systemNamespace, "POD_NAME=istiod-scale", "REVISION=default",
		"CLUSTER_ID="+wellknown.DefaultCluster, "CA_TRUSTED_NODE_ACCOUNTS="+systemNamespace+"/"+proxyAccount)
	args := []string{"discovery", "--kubeconfig", kubeconfig, "--meshConfig", mesh, "--networksConfig", filepath.Join(dir, "none"), "--namespace", systemNamespace,
		"--secureGRPCAddr", grpc, "--grpcAddr", plain, "--httpAddr", web, "--httpsAddr", hook, "--monitoringAddr", monitor, "--ctrlz_port", ctrlz,
		"--log_output_level", "default:warn"}
	c.Process, err = measure.Start(dir, "istiod", binary, env, args...)
	return c, err
}

// wait waits until the control plane serves.
func (c *control) wait(ctx context.Context) error {
	return c.Until(ctx, readyWait, func() error {
		_, err := measure.Get(ctx, c.ready)
		return err
	})
}

// profile keeps what the control plane says about itself.
func (c *control) profile(ctx context.Context, dir, name, query string) error {
	if dir == "" {
		return nil
	}
	name = filepath.Join(dir, c.Name+"-"+name)
	for url, file := range map[string]string{c.pprof + query: name + ".pprof", c.metrics: name + ".metrics"} {
		b, err := measure.Get(ctx, url)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// roots are what the control plane tells pods to trust.
func (w *world) roots(ctx context.Context, c *control) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	err := c.Until(ctx, readyWait, func() error {
		m, err := w.kube.CoreV1().ConfigMaps(systemNamespace).Get(ctx, trust.Roots.ConfigMap, metav1.GetOptions{})
		if err == nil && !pool.AppendCertsFromPEM([]byte(m.Data[trust.Roots.Key])) {
			err = errors.New("the ConfigMap of roots holds no certificate")
		}
		return err
	})
	return pool, err
}

// fleet makes the nodes' clients, each with the token of its proxy's pod.
func (w *world) fleet(ctx context.Context, c *control) (*fleet, []*node, error) {
	roots, err := w.roots(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	f := &fleet{address: c.grpc, serverName: c.serverName, roots: roots, synced: make(chan synced, w.nodes)}
	f.want(w.addresses())
	nodes := make([]*node, w.nodes)
	err = each(ctx, "tokens", w.nodes, func(ctx context.Context, i int) error {
		token, err := w.token(ctx, systemNamespace, proxyName(i), proxyAccount)
		if err == nil {
			nodes[i] = &node{name: nodeName(i), pod: proxyName(i), token: token, fleet: f, first: i == 0}
		}
		return err
	})
	return f, nodes, err
}

// token returns a token of a pod, for the control plane.
func (w *world) token(ctx context.Context, namespace, pod, account string) (string, error) {
	p, err := w.kube.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	t, err := w.kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{wellknown.TokenAudience}, ExpirationSeconds: new(int64(tokenSeconds)),
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return t.Status.Token, nil
}
