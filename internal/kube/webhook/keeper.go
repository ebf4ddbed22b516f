package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// resync is how often the configuration is compared although nothing was
// reported.
const resync = 10 * time.Minute

// callTimeout bounds one call of the API server.
const callTimeout = 15 * time.Second

// annotationPolicy of the configuration is the failurePolicy that somebody has
// chosen. With Ignore it stays so.
const annotationPolicy = "ambit/failure-policy"

// keeper keeps the ValidatingWebhookConfiguration in order: our roots in it at
// once, and failurePolicy Fail as soon as we were seen to answer through it.
// It goes back to Ignore only for who has chosen that: who asks for an answer
// and gets none has to know.
type keeper struct {
	o      Options
	m      *metrics
	proven map[string]bool // webhooks through which an answer has arrived
	last   string          // the last failure that was logged
}

func (k *keeper) run(ctx context.Context) {
	k.proven = map[string]bool{}
	changed := k.watch(ctx)
	wait := k.o.retry
	for ctx.Err() == nil {
		bundle, rotated := k.o.CABundle()
		again := resync
		if err := k.reconcile(ctx, bundle); err != nil {
			k.failed(err)
			again, wait = wait, min(wait*2, maxRetry)
		} else {
			k.last, wait = "", k.o.retry
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-rotated:
			clear(k.proven)
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// failed reports a failure, and repeats only what is new.
func (k *keeper) failed(err error) {
	reason := string(apierrors.ReasonForError(err))
	if reason == "" {
		reason = "other"
	}
	k.m.updateErrors.WithLabelValues(reason).Inc()
	if err.Error() == k.last {
		return
	}
	k.last = err.Error()
	k.o.Logger.Warn("the validating webhook is not in order; configuration may be stored unjudged until it is", "configuration", k.o.ConfigName, "error", err)
}

// watch reports changes of the configuration. A lost report costs until the
// next resync.
func (k *keeper) watch(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	report := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	informer := client.Informer(k.o.Client.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations(),
		&admissionregistrationv1.ValidatingWebhookConfiguration{}, client.Selection{Name: k.o.ConfigName})
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only after it was stopped
		AddFunc: report, UpdateFunc: func(_, o any) { report(o) }, DeleteFunc: report,
	})
	go informer.RunWithContext(ctx)
	return changed
}

// reconcile brings the configuration nearer to what it should be. An error
// means that something is left to do.
func (k *keeper) reconcile(ctx context.Context, bundle []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cfg, err := k.write(ctx, bundle)
	if err != nil {
		return err
	}
	var failures []error
	fresh := false
	for i := range cfg.Webhooks {
		w := &cfg.Webhooks[i]
		if !k.ours(w) || k.proven[w.Name] {
			continue
		}
		if err := k.prove(ctx, w); err != nil {
			failures = append(failures, err)
			continue
		}
		k.proven[w.Name], fresh = true, true
	}
	if fresh {
		if _, err := k.write(ctx, bundle); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// write puts our roots, and Fail where it is proven, into the configuration.
func (k *keeper) write(ctx context.Context, bundle []byte) (cfg *admissionregistrationv1.ValidatingWebhookConfiguration, err error) {
	api := k.o.Client.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		cfg, err = api.Get(ctx, k.o.ConfigName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("%w: install the chart ambitd with global.configValidation, or stop serving the webhook (--webhook-listen=\"\")", err)
		}
		if err != nil {
			return err
		}
		if !k.apply(cfg, bundle) {
			return nil
		}
		if cfg, err = api.Update(ctx, cfg, metav1.UpdateOptions{}); err != nil {
			return err
		}
		k.m.updates.Inc()
		k.o.Logger.Info("webhook configuration updated", "configuration", k.o.ConfigName, "enforced", k.enforced(cfg))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("keep the webhook configuration: %w", err)
	}
	k.m.demanded.Set(0)
	if k.enforced(cfg) {
		k.m.demanded.Set(1)
	}
	return cfg, nil
}

// apply changes cfg to what it should be, and reports whether it was not.
func (k *keeper) apply(cfg *admissionregistrationv1.ValidatingWebhookConfiguration, bundle []byte) bool {
	changed := false
	chosen := admissionregistrationv1.FailurePolicyType(cfg.Annotations[annotationPolicy])
	for i := range cfg.Webhooks {
		w := &cfg.Webhooks[i]
		if !k.ours(w) {
			continue
		}
		policy := admissionregistrationv1.Fail // what the API server takes none for
		if w.FailurePolicy != nil {
			policy = *w.FailurePolicy
		}
		switch {
		case chosen == admissionregistrationv1.Ignore:
			policy = chosen
		case k.proven[w.Name]:
			policy = admissionregistrationv1.Fail
		}
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			w.ClientConfig.CABundle, changed = bundle, true
		}
		if w.FailurePolicy == nil || *w.FailurePolicy != policy {
			w.FailurePolicy, changed = &policy, true
		}
	}
	return changed
}

func (k *keeper) ours(w *admissionregistrationv1.ValidatingWebhook) bool {
	s := w.ClientConfig.Service
	return s != nil && s.Namespace == k.o.Namespace && s.Name == k.o.ServiceName
}

func (k *keeper) enforced(cfg *admissionregistrationv1.ValidatingWebhookConfiguration) bool {
	some := false
	for i := range cfg.Webhooks {
		w := &cfg.Webhooks[i]
		if !k.ours(w) {
			continue
		}
		if w.FailurePolicy == nil || *w.FailurePolicy != admissionregistrationv1.Fail {
			return false
		}
		some = true
	}
	return some
}

var policies = schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}

// prove sends an object that must be refused through the API server, in a dry
// run: only when the refusal is that of the webhook, it was asked.
func (k *keeper) prove(ctx context.Context, w *admissionregistrationv1.ValidatingWebhook) error {
	set, err := k.labelsFor(w)
	if err != nil {
		return err
	}
	bad := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": policies.GroupVersion().String(),
		"kind":       "AuthorizationPolicy",
		"metadata":   map[string]any{"name": "ambit-webhook-self-test", "namespace": k.o.Namespace},
		"spec": map[string]any{"rules": []any{map[string]any{
			"from": []any{map[string]any{"source": map[string]any{"ipBlocks": []any{"not-an-address"}}}},
		}}},
	}}
	bad.SetLabels(set)
	_, err = k.o.Client.Dynamic.Resource(policies).Namespace(k.o.Namespace).Create(ctx, bad, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err == nil:
		return fmt.Errorf("self-test of webhook %s: an invalid object would have been stored; the API server does not reach service %s/%s yet", w.Name, k.o.Namespace, k.o.ServiceName)
	case strings.Contains(err.Error(), fmt.Sprintf("admission webhook %q denied the request", w.Name)):
		return nil
	}
	return fmt.Errorf("self-test of webhook %s: %w", w.Name, err)
}

// labelsFor returns labels with which an object is shown to this webhook.
func (k *keeper) labelsFor(w *admissionregistrationv1.ValidatingWebhook) (map[string]string, error) {
	selector := labels.Everything()
	if w.ObjectSelector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(w.ObjectSelector); err != nil {
			return nil, fmt.Errorf("objectSelector of webhook %s: %w", w.Name, err)
		}
	}
	for _, set := range []labels.Set{nil, {"istio.io/rev": k.o.Revision}} {
		if selector.Matches(set) {
			return set, nil
		}
	}
	return nil, fmt.Errorf("self-test of webhook %s: its objectSelector matches neither unlabelled objects nor those of revision %s", w.Name, k.o.Revision)
}
