package deployer

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/gateways"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

// world is an API server, and a deployer with a list of Gateways.
type world struct {
	t       *testing.T
	api     *kubetest.Server
	changed chan struct{}

	mu   sync.Mutex
	list []*deploy.Plan
}

// start runs a deployer for the length of the test. It begins with the Gateways.
func start(t *testing.T, list []*gatewayv1.Gateway, objects ...runtime.Object) *world {
	t.Helper()
	w := &world{t: t, api: kubetest.Start(t, objects...), changed: make(chan struct{}, 1), list: plans(list)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Client: w.api.Client(), Changed: w.changed, Classes: gateways.Classes(), Logger: slog.New(slog.DiscardHandler),
			Settings: deploy.Settings{Image: "hub/waypoint:1", XDS: "istiod:15012"},
			Gateways: func() []*deploy.Plan {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.list
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// plans returns Gateways whose objects nothing changes.
func plans(list []*gatewayv1.Gateway) (out []*deploy.Plan) {
	for _, g := range list {
		out = append(out, &deploy.Plan{Gateway: g})
	}
	return out
}

func (w *world) set(list ...*gatewayv1.Gateway) {
	w.mu.Lock()
	w.list = plans(list)
	w.mu.Unlock()
	w.changed <- struct{}{}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

func gateway(name string, change func(*gatewayv1.Gateway)) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("u-" + name)},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: "istio-waypoint",
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
		},
	}
	if change != nil {
		change(g)
	}
	return g
}

// parts are the objects of a name.
type parts struct {
	account    corev1.ServiceAccount
	service    corev1.Service
	deployment appsv1.Deployment
}

// get returns the objects of a name, and how many there are.
func (w *world) get(name string) (p parts, n int) {
	m := metav1.ObjectMeta{Namespace: "shop", Name: name}
	p.account.ObjectMeta, p.service.ObjectMeta, p.deployment.ObjectMeta = m, m, m
	for _, o := range []runtime.Object{&p.account, &p.service, &p.deployment} {
		if w.api.Get(o) {
			n++
		}
	}
	return p, n
}

func (w *world) has(name string, n int) func() bool {
	return func() bool { _, got := w.get(name); return got == n }
}

// TestLife: objects come with a Gateway, follow it, are put back, and go with it.
func TestLife(t *testing.T) {
	w := start(t, []*gatewayv1.Gateway{gateway("w", nil)})
	w.eventually("the objects are made", w.has("w", 3))
	p, _ := w.get("w")
	if r := p.deployment.OwnerReferences; len(r) != 1 || r[0].Kind != "Gateway" || r[0].Name != "w" || p.deployment.Spec.Template.Spec.Containers[0].Image != "hub/waypoint:1" {
		t.Errorf("%+v", p.deployment)
	}

	w.api.Delete(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "w"}})
	w.eventually("a Service that somebody deleted is back", w.has("w", 3))

	w.set(gateway("w", func(g *gatewayv1.Gateway) { g.Labels = map[string]string{"team": "a"} }))
	w.eventually("a label of the Gateway is on its pods", func() bool {
		p, _ := w.get("w")
		return p.deployment.Spec.Template.Labels["team"] == "a"
	})

	w.set(gateway("w", func(g *gatewayv1.Gateway) {
		g.Annotations = map[string]string{"gateway.istio.io/name-override": "other"}
	}))
	w.eventually("the objects have the new name", w.has("other", 3))
	w.eventually("those of the old name are gone", w.has("w", 0))

	w.set()
	w.eventually("the objects are gone", w.has("other", 0))
}

// TestScaledByHand: the number of replicas is not Ambit's.
func TestScaledByHand(t *testing.T) {
	w := start(t, []*gatewayv1.Gateway{gateway("w", nil)})
	w.eventually("the objects are made", w.has("w", 3))
	p, _ := w.get("w")
	three := int32(3)
	p.deployment.Spec.Replicas = &three
	w.api.Update(&p.deployment)
	w.set(gateway("w", func(g *gatewayv1.Gateway) { g.Labels = map[string]string{"team": "a"} }))
	w.eventually("the change is applied", func() bool {
		p, _ := w.get("w")
		return p.deployment.Spec.Template.Labels["team"] == "a"
	})
	if p, _ := w.get("w"); p.deployment.Spec.Replicas == nil || *p.deployment.Spec.Replicas != 3 {
		t.Errorf("replicas %v", p.deployment.Spec.Replicas)
	}
}

// TestOfOthers: what was not made for a Gateway is neither taken over nor deleted.
func TestOfOthers(t *testing.T) {
	own := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "w", Labels: map[string]string{"gateway.networking.k8s.io/gateway-name": "w"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "mine", Port: 1}}},
	}
	w := start(t, []*gatewayv1.Gateway{gateway("w", nil), gateway("next", nil)}, own)
	w.eventually("the objects of the other Gateway are made", w.has("next", 3))
	w.set(gateway("next", nil), gateway("third", nil))
	w.eventually("the objects of a third Gateway are made", w.has("third", 3))
	p, _ := w.get("w")
	if len(p.service.Spec.Ports) != 1 || p.service.Spec.Ports[0].Name != "mine" {
		t.Errorf("%+v", p.service)
	}
}

// TestStartAfterDeletion: a Gateway that went while nobody looked leaves nothing behind.
// One that another control plane looks after keeps its proxies, and one of another
// class does not.
func TestStartAfterDeletion(t *testing.T) {
	var objects []runtime.Object
	for _, name := range []string{"gone", "theirs", "changed"} {
		o, ok, err := deploy.For(gateway(name, nil), deploy.Settings{Image: "i"})
		if !ok || err != nil {
			t.Fatal(name)
		}
		objects = append(objects, o.ServiceAccount, o.Service, o.Deployment)
	}
	objects = append(objects, gateway("theirs", nil), gateway("changed", func(g *gatewayv1.Gateway) { g.Spec.GatewayClassName = "nginx" }))
	w := start(t, nil, objects...)
	w.eventually("objects of a Gateway that is gone are deleted", w.has("gone", 0))
	w.eventually("objects of a Gateway of another class are deleted", w.has("changed", 0))
	if _, n := w.get("theirs"); n != 3 {
		t.Errorf("%d objects of the other control plane's Gateway are left", n)
	}
}

// TestClassesAreCreated: classes come with the control plane, and one that exists
// stays as somebody wrote it.
func TestClassesAreCreated(t *testing.T) {
	theirs := &gatewayv1.GatewayClass{
		TypeMeta:   metav1.TypeMeta{APIVersion: "gateway.networking.k8s.io/v1", Kind: "GatewayClass"},
		ObjectMeta: metav1.ObjectMeta{Name: "istio-remote"},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: "example.org/other"},
	}
	w := start(t, nil, theirs)
	class := func(name string) *gatewayv1.GatewayClass {
		c := &gatewayv1.GatewayClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if !w.api.Get(c) {
			return nil
		}
		return c
	}
	w.eventually("the class of waypoints is created", func() bool { return class("istio-waypoint") != nil })
	if c := class("istio-waypoint"); c.Spec.ControllerName != "istio.io/mesh-controller" || c.Labels["app.kubernetes.io/part-of"] != "ambit" {
		t.Errorf("%+v", c)
	}
	if c := class("istio-remote"); c == nil || c.Spec.ControllerName != "example.org/other" {
		t.Errorf("%+v", c)
	}
}
