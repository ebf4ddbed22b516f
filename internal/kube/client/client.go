// Package client connects to the Kubernetes API: one set of flags, one way to
// find the cluster, the clients that everything else is built on.
package client

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Options say which cluster, and how hard it may be asked. The zero value is
// the cluster this process runs in, or else the one kubectl would use.
type Options struct {
	Kubeconfig string // a file; empty: in-cluster, else $KUBECONFIG, else ~/.kube/config
	Context    string // of the kubeconfig; empty: its current one
	UserAgent  string
	QPS        float32 // requests a second; default 50
	Burst      int     // default 100
}

// Client is a connection to one cluster.
type Client struct {
	Config  *rest.Config
	Kube    *Typed
	Dynamic dynamic.Interface
	// Namespace is that of the kubeconfig's context or of our own pod, else
	// default.
	Namespace string
}

// namespaceFile is where a pod finds the name of its own namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// New finds the cluster. It does not talk to it yet.
func New(o Options) (*Client, error) {
	cfg, namespace, err := load(o)
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API: %w", err)
	}
	if o.UserAgent != "" {
		cfg.UserAgent = o.UserAgent
	}
	cfg.QPS = cmp.Or(o.QPS, 50)
	cfg.Burst = cmp.Or(o.Burst, 100)
	return ForConfig(cfg, namespace)
}

// load returns the configuration and the namespace it names.
func load(o Options) (*rest.Config, string, error) {
	if o.Kubeconfig == "" && o.Context == "" {
		cfg, err := rest.InClusterConfig()
		if err == nil {
			return cfg, ownNamespace(), nil
		}
		if !errors.Is(err, rest.ErrNotInCluster) {
			return nil, "", err
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.Context})
	cfg, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, "", errors.New("this is not a pod, and there is no kubeconfig: name one with --kubeconfig or KUBECONFIG")
	}
	if err != nil {
		return nil, "", err
	}
	namespace, _, err := loader.Namespace()
	return cfg, namespace, err
}

func ownNamespace() string {
	if ns := os.Getenv("POD_NAMESPACE"); ns != "" {
		return ns
	}
	data, err := os.ReadFile(namespaceFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// ForConfig makes the clients of a configuration, which it keeps. Built-in
// kinds are asked for in protobuf, which costs both ends a fraction of JSON.
func ForConfig(cfg *rest.Config, namespace string) (*Client, error) {
	typed := rest.CopyConfig(cfg)
	typed.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	kube, err := newTyped(typed)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	return &Client{Config: cfg, Kube: kube, Dynamic: dyn, Namespace: cmp.Or(namespace, metav1.NamespaceDefault)}, nil
}
