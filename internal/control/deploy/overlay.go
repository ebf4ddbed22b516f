package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Defaults of an autoscaler that an overlay asks for.
const (
	defaultMaxReplicas = 5
	defaultUtilization = 80 // percent of the requested processor time
)

// Overlay is what a ConfigMap changes of the objects of Gateways.
type Overlay struct {
	From string            // such as ConfigMap shop/parameters
	Data map[string]string // YAML by key

	trusted bool // may change every field: it is of whoever installed the mesh
}

// Equal reports whether two overlays change the same.
func (o Overlay) Equal(p Overlay) bool { return o.From == p.From && maps.Equal(o.Data, p.Data) }

// Parameters returns the name of the ConfigMap, in the Gateway's namespace, that
// spec.infrastructure names. It is empty when none is named.
func Parameters(g *gatewayv1.Gateway) (string, error) {
	if g.Spec.Infrastructure == nil || g.Spec.Infrastructure.ParametersRef == nil {
		return "", nil
	}
	ref := g.Spec.Infrastructure.ParametersRef
	if ref.Group != "" || ref.Kind != "ConfigMap" {
		return "", fmt.Errorf("spec.infrastructure.parametersRef is of kind %s of group %q: name a ConfigMap, of group \"\"", ref.Kind, ref.Group)
	}
	return ref.Name, nil
}

// Plan is a Gateway whose proxies are to run, and what is changed of its objects.
type Plan struct {
	Gateway  *gatewayv1.Gateway
	Overlays []Overlay
	// Err is why the overlays cannot be applied. Objects stay as they are then.
	Err error
}

// Check returns why the infrastructure or the overlays of a Gateway cannot be applied, or nil.
func Check(g *gatewayv1.Gateway, overlays []Overlay) error {
	_, _, err := For(g, Settings{}, overlays...)
	return err
}

// lay applies an overlay to all objects.
func (o *Objects) lay(b *builder, l Overlay) error {
	for _, key := range slices.Sorted(maps.Keys(l.Data)) {
		var err error
		text := l.Data[key]
		switch key {
		case wellknown.OverlayDeployment:
			o.Deployment, err = overlaid(o.Deployment, key, text, l.trusted)
		case wellknown.OverlayService:
			o.Service, err = overlaid(o.Service, key, text, l.trusted)
		case wellknown.OverlayServiceAccount:
			o.ServiceAccount, err = overlaid(o.ServiceAccount, key, text, l.trusted)
		case wellknown.OverlayAutoscaler:
			if o.Autoscaler == nil {
				o.Autoscaler = b.autoscaler()
			}
			o.Autoscaler, err = overlaid(o.Autoscaler, key, text, l.trusted)
		case wellknown.OverlayBudget:
			if o.Budget == nil {
				o.Budget = b.budget()
			}
			o.Budget, err = overlaid(o.Budget, key, text, l.trusted)
		default:
			err = fmt.Errorf("there is no such key: write %s", strings.Join(wellknown.OverlayKeys, ", "))
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", l.From, key, err)
		}
	}
	return nil
}

// CheckDeployment returns why Settings.Deployment cannot be applied, or nil.
func CheckDeployment(text string) error {
	g := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Name: "waypoint", Namespace: "any"}, Spec: gatewayv1.GatewaySpec{GatewayClassName: wellknown.ClassWaypoint}}
	_, _, err := For(g, Settings{Deployment: text})
	return err
}

// finish sets what overlays left open.
func (o *Objects) finish(b *builder) {
	pod := &o.Deployment.Spec.Template.Spec
	if n := pod.TerminationGracePeriodSeconds; n != nil {
		for i := range pod.Containers {
			setEnv(pod.Containers[i].Env, variableGrace, strconv.FormatInt(*n, 10))
		}
	}
	if o.Budget == nil && value(o.Deployment.Spec.Replicas) > 1 {
		o.Budget = b.budget()
	}
	if a := o.Autoscaler; a != nil {
		// Otherwise each change of the Gateway would undo what the autoscaler did.
		o.Deployment.Spec.Replicas = nil
		if a.Spec.MaxReplicas == 0 {
			a.Spec.MaxReplicas = max(defaultMaxReplicas, value(a.Spec.MinReplicas))
		}
		if len(a.Spec.Metrics) == 0 {
			percent := int32(defaultUtilization)
			a.Spec.Metrics = []autoscalingv2.MetricSpec{{
				Type: autoscalingv2.ResourceMetricSourceType,
				Resource: &autoscalingv2.ResourceMetricSource{
					Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
				},
			}}
		}
	}
	if p := o.Budget; p != nil && p.Spec.MinAvailable == nil && p.Spec.MaxUnavailable == nil {
		one := intstr.FromInt32(1)
		p.Spec.MaxUnavailable = &one
	}
}

// setEnv changes the value of a variable that is there.
func setEnv(env []corev1.EnvVar, name, value string) {
	for i := range env {
		if env[i].Name == name {
			env[i].Value = value
		}
	}
}

func value(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// overlaid returns an object with YAML of a ConfigMap's key merged into it.
func overlaid[T any, P interface {
	*T
	metav1.Object
}](base P, key, text string, trusted bool) (P, error) {
	out, err := merged[T, P](base, text)
	if err == nil {
		err = kept(base, out)
	}
	if err == nil && !trusted {
		err = confined(key, base, out)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// merged returns an object with YAML merged into it, as kubectl patch does.
func merged[T any, P interface {
	*T
	metav1.Object
}](base P, text string) (P, error) {
	patch, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(patch)) == "null" {
		return base, nil
	}
	before, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	after, err := patched(before, patch, new(T))
	if err != nil {
		return nil, err
	}
	out := P(new(T))
	strict, err := kjson.UnmarshalStrict(after, out)
	if err != nil {
		return nil, err
	}
	if len(strict) > 0 {
		return nil, strict[0]
	}
	return out, nil
}

// patched merges a patch into JSON. The library panics at patches in which a list's key is
// not a plain value.
func patched(before, patch []byte, schema any) (after []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be merged: %v", p)
		}
	}()
	return strategicpatch.StrategicMergePatch(before, patch, schema)
}

// kept returns an error when an overlay has changed what the control plane finds an
// object by.
func kept(before, after metav1.Object) error {
	switch {
	case after.GetName() != before.GetName():
		return fmt.Errorf("metadata.name cannot be changed (the annotation %s of the Gateway does that)", annotationName)
	case after.GetNamespace() != before.GetNamespace():
		return fmt.Errorf("metadata.namespace cannot be changed: it is the Gateway's")
	case !reflect.DeepEqual(after.GetOwnerReferences(), before.GetOwnerReferences()):
		return fmt.Errorf("metadata.ownerReferences cannot be changed: the objects go with the Gateway")
	}
	for _, l := range []string{wellknown.LabelGatewayName, LabelManaged} {
		if after.GetLabels()[l] != before.GetLabels()[l] {
			return fmt.Errorf("label %s cannot be changed", l)
		}
	}
	return nil
}

func (b *builder) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: b.meta(b.name, nil),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: b.name},
		},
	}
}

func (b *builder) budget() *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: b.meta(b.name, nil),
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: b.selector()}},
	}
}
