package deployer

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// classLook is how often missing classes are looked for: Gateway API may be
// installed after the control plane, and a class may be deleted.
const classLook = 10 * time.Second

// classes creates the GatewayClasses that are missing, until ctx ends. One that
// exists stays as it is.
func (d *deployer) classes(ctx context.Context) {
	tick := time.NewTicker(classLook)
	defer tick.Stop()
	warned := false
	for {
		err := d.createClasses(ctx)
		if err != nil && ctx.Err() == nil && !warned {
			d.Logger.Warn("cannot create the GatewayClasses; trying again", "error", err)
		}
		warned = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// createClasses returns no error where Gateway API is not installed.
func (d *deployer) createClasses(ctx context.Context) error {
	api := d.Client.Dynamic.Resource(gatewayResource("gatewayclasses"))
	for _, c := range d.Classes {
		_, err := api.Get(ctx, c.Name, metav1.GetOptions{})
		if err == nil {
			continue
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		body, err := runtime.DefaultUnstructuredConverter.ToUnstructured(c)
		if err != nil {
			return err
		}
		delete(body, "status")
		unstructured.RemoveNestedField(body, "metadata", "creationTimestamp")
		_, err = api.Create(ctx, &unstructured.Unstructured{Object: body}, metav1.CreateOptions{FieldManager: fieldManager})
		switch {
		case err == nil:
			d.Logger.Info("GatewayClass created", "class", c.Name)
		case apierrors.IsAlreadyExists(err):
		case apierrors.IsNotFound(err):
			return nil // the kind is not installed
		default:
			return err
		}
	}
	return nil
}

func gatewayResource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: gatewayv1.GroupName, Version: gatewayv1.GroupVersion.Version, Resource: name}
}
