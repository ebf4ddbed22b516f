// Package kit is what end-to-end tests on a real Kubernetes have in common: a
// cluster with the mesh installed by the real command line, namespaces that go
// away with their test, ordinary programs in pods, and the questions that tests
// ask of ztunnel's log.
//
// Tests take any kubeconfig (KUBECONFIG). What needs power over machines, such
// as a node that loses power, needs the project's own cluster (test/cluster).
package kit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/cluster/local"
)

// SystemNamespace is where the tests install the mesh.
const SystemNamespace = wellknown.SystemNamespace

// Cluster is a Kubernetes with the mesh in it.
type Cluster struct {
	*client.Client
	// Kubeconfig is the file's path, for programs that are started.
	Kubeconfig string
	// Bin holds the project's programs.
	Bin string
	// Own is the project's own cluster, if this is one: only there can tests
	// take a machine away.
	Own    *local.Cluster
	mapper *restmapper.DeferredDiscoveryRESTMapper
}

// Connect finds the cluster of KUBECONFIG, or else the project's own, and the
// programs of AMBIT_BIN (by default bin/ at the root of the repository).
func Connect() (*Cluster, error) {
	path := os.Getenv("KUBECONFIG")
	own, oerr := local.Find()
	switch {
	case path == "" && oerr != nil:
		return nil, fmt.Errorf("which cluster? Set KUBECONFIG, or bring the project's own up with make cluster: %w", oerr)
	case path == "":
		path = own.Kubeconfig()
	case oerr != nil || own.Kubeconfig() != path:
		own = nil
	}
	c, err := client.New(client.Options{Kubeconfig: path, UserAgent: "ambit-e2e", QPS: 200, Burst: 400})
	if err != nil {
		return nil, err
	}
	bin := os.Getenv("AMBIT_BIN")
	if bin == "" {
		root, err := repository()
		if err != nil {
			return nil, err
		}
		bin = filepath.Join(root, "bin")
	}
	if _, err := os.Stat(filepath.Join(bin, "ambit")); err != nil {
		return nil, fmt.Errorf("the programs of the mesh are not in %s: run make build, or set AMBIT_BIN: %w", bin, err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(c.Config)
	if err != nil {
		return nil, err
	}
	return &Cluster{
		Client: c, Kubeconfig: path, Bin: bin, Own: own,
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d)),
	}, nil
}

func repository() (string, error) {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, serr := os.Stat(filepath.Join(dir, "go.mod")); serr == nil {
			return dir, nil
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.Join(err, errors.New("not in the repository"))
}

// Ambit runs the command line against the cluster and returns what it prints
// on its standard output. An error carries the rest.
func (c *Cluster) Ambit(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Bin, "ambit"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ambit %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// Apply creates or changes what a YAML text says, by server-side apply.
// Namespaced objects that name no namespace go to namespace. Each is changed before.
func (c *Cluster) Apply(ctx context.Context, namespace, text string, change ...func(*unstructured.Unstructured)) error {
	return c.each(namespace, text, func(r dynamic.ResourceInterface, u *unstructured.Unstructured) error {
		for _, f := range change {
			f(u)
		}
		_, err := r.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
		return err
	})
}

// Delete removes what a YAML text says, as far as it is there.
func (c *Cluster) Delete(ctx context.Context, namespace, text string) error {
	return c.each(namespace, text, func(r dynamic.ResourceInterface, u *unstructured.Unstructured) error {
		err := r.Delete(ctx, u.GetName(), metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// Gone returns an error unless none of what a YAML text says is there.
func (c *Cluster) Gone(ctx context.Context, namespace, text string) error {
	return c.each(namespace, text, func(r dynamic.ResourceInterface, u *unstructured.Unstructured) error {
		_, err := r.Get(ctx, u.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it is there"))
	})
}

// each does something with every object of a YAML text.
func (c *Cluster) each(namespace, text string, do func(dynamic.ResourceInterface, *unstructured.Unstructured) error) error {
	d := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		var u unstructured.Unstructured
		if err := d.Decode(&u.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(u.Object) == 0 {
			continue
		}
		gvk := u.GroupVersionKind()
		m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			c.mapper.Reset()
			return fmt.Errorf("%s: %w", gvk, err)
		}
		r := c.Dynamic.Resource(m.Resource).Namespace("")
		if m.Scope.Name() == meta.RESTScopeNameNamespace {
			if u.GetNamespace() == "" {
				u.SetNamespace(namespace)
			}
			r = c.Dynamic.Resource(m.Resource).Namespace(u.GetNamespace())
		}
		if err := do(r, &u); err != nil {
			return fmt.Errorf("%s %s/%s: %w", u.GetKind(), u.GetNamespace(), u.GetName(), err)
		}
	}
}

// Exec runs a program in a pod's first container and returns its output. The
// error carries what it wrote to standard error.
func (c *Cluster) Exec(ctx context.Context, namespace, pod string, argv ...string) (string, error) {
	var out bytes.Buffer
	err := c.ExecTo(ctx, namespace, pod, &out, argv...)
	return out.String(), err
}

// ExecTo is Exec that hands over what the program writes as it comes.
func (c *Cluster) ExecTo(ctx context.Context, namespace, pod string, stdout io.Writer, argv ...string) error {
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true}, client.ParameterCodec)
	ex, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", req.URL().String())
	if err != nil {
		return err
	}
	var errs bytes.Buffer
	if err := ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: &errs}); err != nil {
		return fmt.Errorf("%s/%s: %s: %w: %s", namespace, pod, strings.Join(argv, " "), err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// Logs returns what a container has logged since a moment; container may be
// empty for the only one.
func (c *Cluster) Logs(ctx context.Context, namespace, pod, container string, since time.Time) (string, error) {
	opts := &corev1.PodLogOptions{Container: container}
	if !since.IsZero() {
		opts.SinceTime = &metav1.Time{Time: since}
	}
	b, err := c.Kube.CoreV1().Pods(namespace).GetLogs(pod, opts).DoRaw(ctx)
	return string(b), err
}

// Nodes lists the names of nodes that pods may run on, in order.
func (c *Cluster) Nodes(ctx context.Context) ([]string, error) {
	list, err := c.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range list.Items {
		if !n.Spec.Unschedulable {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// ZtunnelOn finds the running node proxy of a node, the youngest if there are
// two.
func (c *Cluster) ZtunnelOn(ctx context.Context, node string) (string, error) {
	list, err := c.Kube.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app=ztunnel", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil {
		return "", err
	}
	var best *corev1.Pod
	for i := range list.Items {
		p := &list.Items[i]
		if p.DeletionTimestamp == nil && (best == nil || best.CreationTimestamp.Before(&p.CreationTimestamp)) {
			best = p
		}
	}
	if best == nil {
		return "", fmt.Errorf("no ztunnel runs on %s", node)
	}
	return best.Name, nil
}
