// Package kubernetes puts programs of Istio into a mesh on a real Kubernetes,
// in place of Ambit's, and makes sure that nobody notices:
//
//   - PEER_ZTUNNEL: ambitd and our agents everywhere, our node proxy on the first
//     node and the other on the rest.
//   - PEER_ISTIOD: the other control plane, with our agents and our node proxies;
//     if PEER_ZTUNNEL is given too, the node proxies are mixed as above.
//
// Each is the path of a program, of which an image is made for the project's
// own cluster, or the reference of an image. The cluster is that of KUBECONFIG,
// or else the project's own (test/cluster), and has no mesh yet; what the tests
// install is taken away at the end, unless AMBIT_KEEP is set.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// The variables that name Istio's programs.
const (
	istiodVariable  = "PEER_ISTIOD"
	ztunnelVariable = "PEER_ZTUNNEL"
)

var (
	cluster *kit.Cluster
	// The references of the images of Istio's programs, empty if not given.
	peerIstiod, peerZtunnel string
)

func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := 1
	if err := prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
	} else {
		kit.EndWith(ctx)
		code = m.Run()
	}
	stop()
	os.Exit(code)
}

func prepare(ctx context.Context) error {
	istiod, ztunnel := os.Getenv(istiodVariable), os.Getenv(ztunnelVariable)
	if istiod == "" && ztunnel == "" {
		return fmt.Errorf("neither %s nor %s is set: they name programs of Istio, as in\n\n  make interop %s=/path/to/pilot-discovery %s=/path/to/ztunnel",
			istiodVariable, ztunnelVariable, istiodVariable, ztunnelVariable)
	}
	c, err := kit.Connect()
	if err != nil {
		return err
	}
	cluster = c
	if err := errors.Join(unoccupied(ctx), c.LoadImages(ctx)); err != nil {
		return err
	}
	peerIstiod, err = image(ctx, istiodVariable, istiod, "istiod")
	if err != nil {
		return err
	}
	peerZtunnel, err = image(ctx, ztunnelVariable, ztunnel, "ztunnel")
	return err
}

// unoccupied refuses a cluster with a mesh in it: these tests replace its parts.
func unoccupied(ctx context.Context) error {
	if os.Getenv("AMBIT_KEEP") != "" {
		return nil // it may be the one of the last run
	}
	there, err := systemNamespace(ctx)
	if err == nil && there {
		err = fmt.Errorf("namespace %s exists: these tests install meshes and take them away again, and need a cluster without one (`ambit uninstall --purge` removes ours)", kit.SystemNamespace)
	}
	return err
}

// systemNamespace reports whether the namespace of the mesh is there, once it is
// not on its way out.
func systemNamespace(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, uninstallTime)
	defer cancel()
	for {
		ns, err := cluster.Kube.CoreV1().Namespaces().Get(ctx, kit.SystemNamespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return false, nil
		case err != nil:
			return false, err
		case ns.DeletionTimestamp == nil:
			return true, nil
		}
		time.Sleep(200 * time.Millisecond)
	}
}
