package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
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

// control is the control plane that is measured: the real program, outside of
// the cluster, which sees nothing of the cluster but what was made for it.
type control struct {
	*measure.Process
	grpc, monitor, admin string
}

func startControl(dir, binary, kubeconfig string) (*control, error) {
	addrs, err := measure.FreeAddrs(3)
	if err != nil {
		return nil, err
	}
	mesh := filepath.Join(dir, "mesh.yaml")
	text := fmt.Sprintf("discoverySelectors: [{matchExpressions: [{key: %s, operator: Exists}]}]\n", ownLabel)
	if err := os.WriteFile(mesh, []byte(text), 0o600); err != nil {
		return nil, err
	}
	c := &control{grpc: addrs[0], monitor: addrs[1], admin: addrs[2]}
	args := []string{"--kubernetes", "--namespace", systemNamespace, "--root-namespace", systemNamespace, "--mesh-config", mesh,
		"--listen", c.grpc, "--monitor", c.monitor, "--admin", c.admin, "--webhook-listen", "", "--server-name", "127.0.0.1",
		"--log-level", "xds=warn,info"}
	if kubeconfig != "" {
		args = append(args, "--kubeconfig", kubeconfig)
	}
	env := []string{"HOME=" + os.Getenv("HOME"), "KUBECONFIG=" + os.Getenv("KUBECONFIG")}
	c.Process, err = measure.Start(dir, "ambitd", binary, env, args...)
	return c, err
}

// ready waits until the control plane serves.
func (c *control) ready(ctx context.Context) error {
	return c.Until(ctx, readyWait, func() error {
		_, err := measure.Get(ctx, "http://"+c.monitor+"/readyz")
		return err
	})
}

// profile keeps what the control plane says about itself.
func (c *control) profile(ctx context.Context, dir, name, query string) error {
	if dir == "" {
		return nil
	}
	for _, what := range []struct{ url, file string }{
		{"http://" + c.admin + "/debug/pprof/" + query, name + ".pprof"}, {"http://" + c.monitor + "/metrics", name + ".metrics"},
	} {
		b, err := measure.Get(ctx, what.url)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, what.file), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// roots are what the control plane tells pods to trust.
func (w *world) roots(ctx context.Context, c *control) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	err := c.Until(ctx, readyWait, func() error {
		m, err := w.kube.CoreV1().ConfigMaps(systemNamespace).Get(ctx, trust.ConfigMap, metav1.GetOptions{})
		if err == nil && !pool.AppendCertsFromPEM([]byte(m.Data[trust.Key])) {
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
	f := &fleet{address: c.grpc, roots: roots, synced: make(chan synced, w.nodes)}
	nodes := make([]*node, w.nodes)
	err = each(ctx, "tokens", w.nodes, func(ctx context.Context, i int) error {
		pod, err := w.kube.CoreV1().Pods(systemNamespace).Get(ctx, proxyName(i), metav1.GetOptions{})
		if err != nil {
			return err
		}
		t, err := w.kube.CoreV1().ServiceAccounts(systemNamespace).CreateToken(ctx, proxyAccount, &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{
				Audiences: []string{wellknown.TokenAudience}, ExpirationSeconds: new(int64(tokenSeconds)),
				BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
			},
		}, metav1.CreateOptions{})
		if err == nil {
			nodes[i] = &node{name: nodeName(i), pod: proxyName(i), token: t.Status.Token, fleet: f}
		}
		return err
	})
	return f, nodes, err
}
