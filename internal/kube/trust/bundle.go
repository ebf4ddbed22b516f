package trust

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// The ClusterTrustBundle.
const (
	BundleName = "istio.io:istiod-ca:root-cert"
	SignerName = "istio.io/istiod-ca"
)

// repairInterval is how long a ClusterTrustBundle may be other than it should.
const repairInterval = time.Minute

// bundleVersions are the versions of the API, the best first. Which of them is
// served, if any, depends on the release and on what its operator enabled.
var bundleVersions = []string{"v1", "v1beta1", "v1alpha1"}

func patch(ctx context.Context, c *client.Client, namespace string, d Document, text string) error {
	body, err := json.Marshal(map[string]any{"data": map[string]string{d.Key: text}})
	if err != nil {
		return err
	}
	_, err = c.Kube.CoreV1().ConfigMaps(namespace).Patch(ctx, d.ConfigMap, types.MergePatchType, body, metav1.PatchOptions{})
	return err
}

type clusterBundle struct {
	client *client.Client
	log    *slog.Logger
	failed string // the last failure, which is logged once
}

// put makes the bundle hold roots, where the API is served.
func (b *clusterBundle) put(ctx context.Context, roots string) {
	if roots == "" {
		return
	}
	err := b.write(ctx, roots)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		b.failed = ""
	case err.Error() != b.failed:
		b.failed = err.Error()
		b.log.Warn("cannot write the ClusterTrustBundle; trying again", "name", BundleName, "error", err)
	}
}

func (b *clusterBundle) write(ctx context.Context, roots string) error {
	for _, version := range bundleVersions {
		api := b.client.Dynamic.Resource(schema.GroupVersionResource{Group: "certificates.k8s.io", Version: version, Resource: "clustertrustbundles"})
		have, err := api.Get(ctx, BundleName, metav1.GetOptions{})
		if err == nil {
			if text, _, _ := unstructured.NestedString(have.Object, "spec", "trustBundle"); text == roots {
				return nil
			}
			if err := unstructured.SetNestedField(have.Object, roots, "spec", "trustBundle"); err != nil {
				return err
			}
			_, err = api.Update(ctx, have, metav1.UpdateOptions{})
			return err
		}
		switch served, err := b.served(ctx, version, err); {
		case err != nil:
			return err
		case !served:
			continue
		}
		_, err = api.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "certificates.k8s.io/" + version, "kind": "ClusterTrustBundle",
			"metadata": map[string]any{"name": BundleName},
			"spec":     map[string]any{"signerName": SignerName, "trustBundle": roots},
		}}, metav1.CreateOptions{})
		return err
	}
	return nil
}

// served tells what a failed Get means: an API that is not there answers like
// an object that is not there.
func (b *clusterBundle) served(ctx context.Context, version string, err error) (bool, error) {
	if !apierrors.IsNotFound(err) {
		return false, err
	}
	list, err := b.client.Served(ctx, "certificates.k8s.io", version)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, r := range list.APIResources {
		if r.Name == "clustertrustbundles" {
			return true, nil
		}
	}
	return false, nil
}
