package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/measure"
)

const (
	waypointName = "waypoint"
	routeChange  = "HTTPRoute"
	crdDir       = "base/files/crds/gateway-api"
)

// Kinds that the cluster has from the Gateway API.
var (
	crdKind      = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	classKind    = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
	gatewayKind  = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	routeKind    = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}
	firstGateway = [4]byte{14, 0, 0, 1}
)

// routed is the waypoints of a mesh and their routes: the first namespaces have one
// waypoint each, which all of their services use. Routes go round these services.
type routed struct{ waypoints, replicas, routes int }

// routeOf is the service that a route is for.
func (s shape) routeOf(route int) int {
	return route % min(s.services, s.waypoints*servicesPerNamespace)
}

func (s shape) ofWaypoint(service int) bool { return service/servicesPerNamespace < s.waypoints }

func routeName(i int) string { return fmt.Sprintf("route-%d", i) }

func proxyOfWaypoint(replica int) string { return fmt.Sprintf("%s-%d", waypointName, replica) }

func waypointPod(gateway, replica, replicas, nodes int) *corev1.Pod {
	i := gateway*replicas + replica
	p := running(namespaceName(gateway), proxyOfWaypoint(replica), nodeName(i%nodes), address(firstGateway, i))
	p.Labels = map[string]string{wellknown.LabelGatewayName: waypointName}
	p.Spec.ServiceAccountName = waypointName
	return p
}

func waypointService(gateway int) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceName(gateway), Name: waypointName, Labels: map[string]string{labelServiceProxy: ownLabel, wellknown.LabelGatewayName: waypointName}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{wellknown.LabelGatewayName: waypointName},
			Ports:    []corev1.ServicePort{{Name: "hbone", Port: wellknown.PortHBONE}},
		},
	}
}

func object(kind schema.GroupVersionResource, name string, namespace, spec string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	text := fmt.Sprintf("apiVersion: %s/%s\nmetadata: {name: %s, namespace: %q, labels: {%s: \"\"}}\nspec: %s\n", kind.Group, kind.Version, name, namespace, ownLabel, spec)
	if err := yaml.Unmarshal([]byte(text), &u.Object); err != nil {
		panic(err) // the text is this program's own
	}
	u.SetKind(map[string]string{classKind.Resource: "GatewayClass", gatewayKind.Resource: "Gateway", routeKind.Resource: "HTTPRoute"}[kind.Resource])
	return u
}

// route is the i-th: of its service, by a path of its own, with a header that changes.
func (s shape) route(i int) *unstructured.Unstructured {
	service := s.routeOf(i)
	return object(routeKind, routeName(i), home(service), fmt.Sprintf(`
  parentRefs: [{group: "", kind: Service, name: %[1]s}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /%[2]d}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-version, value: "%[3]s"}]}}]
    backendRefs: [{name: %[1]s, port: 80, weight: 90}, {name: %[4]s, port: 80, weight: 10}]`,
		serviceName(service), i, marker(i, false), serviceName(service^1)))
}

// marker is the value of a route's header, before and after its change.
func marker(route int, changed bool) string {
	return fmt.Sprintf("route-%d-changed-%v.", route, changed)
}

// createWaypoints makes them, with pods that nobody runs, and the routes.
func (w *world) createWaypoints(ctx context.Context) error {
	if w.waypoints == 0 {
		return nil
	}
	if err := w.installGatewayAPI(ctx); err != nil {
		return err
	}
	none := metav1.CreateOptions{}
	return inTurn(ctx, []step{
		{"waypoints", w.waypoints, func(ctx context.Context, i int) error {
			ns := namespaceName(i)
			g := object(gatewayKind, waypointName, ns, "{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}")
			_, err := w.dynamic.Resource(gatewayKind).Namespace(ns).Create(ctx, g, none)
			_, aerr := w.kube.CoreV1().ServiceAccounts(ns).Create(ctx, account(ns, waypointName), none)
			_, serr := w.kube.CoreV1().Services(ns).Create(ctx, waypointService(i), none)
			return errors.Join(err, aerr, serr)
		}},
		{"proxies of waypoints", w.waypoints * w.replicas, func(ctx context.Context, i int) error {
			return w.createPod(ctx, waypointPod(i/w.replicas, i%w.replicas, w.replicas, w.nodes))
		}},
		{"routes", w.routes, func(ctx context.Context, i int) error {
			r := w.route(i)
			_, err := w.dynamic.Resource(routeKind).Namespace(r.GetNamespace()).Create(ctx, r, none)
			return err
		}},
	})
}

// installGatewayAPI makes the kinds of the Gateway API, which the cluster must not have,
// and the class of waypoints.
func (w *world) installGatewayAPI(ctx context.Context) error {
	files, err := fs.Glob(charts.FS, crdDir+"/*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("%d files in %s: %w", len(files), crdDir, err)
	}
	for _, file := range files {
		b, err := fs.ReadFile(charts.FS, file)
		if err != nil {
			return err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		labels := u.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[ownLabel] = ""
		u.SetLabels(labels)
		if _, err := w.dynamic.Resource(crdKind).Create(ctx, u, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("the Gateway API: %w (use a cluster without it)", err)
		}
	}
	class := object(classKind, wellknown.ClassWaypoint, "", "{controllerName: istio.io/mesh-controller}")
	deadline := time.Now().Add(readyWait)
	for {
		// The API server serves a new kind a moment after it has been made.
		_, err := w.dynamic.Resource(classKind).Create(ctx, class, metav1.CreateOptions{})
		if err == nil || !apierrors.IsNotFound(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// removeGatewayAPI removes the objects of the kinds that installGatewayAPI has made, and
// then the kinds: an object that outlives its kind would be in the next one of this name.
func (w *world) removeGatewayAPI(ctx context.Context) error {
	ours := metav1.ListOptions{LabelSelector: ownLabel}
	kinds, err := w.dynamic.Resource(crdKind).List(ctx, ours)
	if err != nil || len(kinds.Items) == 0 {
		return err
	}
	for _, kind := range []schema.GroupVersionResource{routeKind, gatewayKind, classKind} {
		list, err := w.dynamic.Resource(kind).List(ctx, metav1.ListOptions{})
		if err != nil {
			if err = ignoreMissing(err); err != nil {
				return err
			}
			continue
		}
		err = each(ctx, kind.Resource+" deleted", len(list.Items), func(ctx context.Context, i int) error {
			o := &list.Items[i]
			return ignoreMissing(w.dynamic.Resource(kind).Namespace(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{}))
		})
		if err != nil {
			return err
		}
	}
	return w.dynamic.Resource(crdKind).DeleteCollection(ctx, metav1.DeleteOptions{}, ours)
}

// gateway is the control plane's client in one proxy of a waypoint. It follows what a
// waypoint follows, and looks at rules of routes.
type gateway struct {
	fleet           *fleet
	namespace, name string
	token           string
	rules           int // to begin with
	awaited         atomic.Pointer[routeExpectation]
	bytes, messages atomic.Int64 // of rules
	synced          chan time.Time
}

// routeExpectation is a marker that a rule will have.
type routeExpectation struct {
	marker []byte
	acks   chan time.Time
}

// gateways makes the clients of all proxies, each with the token of its pod.
func (w *world) gateways(ctx context.Context, f *fleet) ([]*gateway, error) {
	all := make([]*gateway, w.waypoints*w.replicas)
	err := each(ctx, "tokens of waypoints", len(all), func(ctx context.Context, i int) error {
		ns, name := namespaceName(i/w.replicas), proxyOfWaypoint(i%w.replicas)
		token, err := w.token(ctx, ns, name, waypointName)
		if err != nil {
			return err
		}
		all[i] = &gateway{fleet: f, namespace: ns, name: name, token: token, synced: make(chan time.Time, 1)}
		for r := range w.routes {
			if home(w.routeOf(r)) == ns {
				all[i].rules++
			}
		}
		return nil
	})
	return all, err
}

// run follows the control plane until ctx ends or something is wrong.
func (g *gateway) run(ctx context.Context) error {
	err := g.follow(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the run is over
	}
	return fmt.Errorf("%s/%s: %w", g.namespace, g.name, err)
}

func (g *gateway) follow(ctx context.Context) error {
	s, done, err := g.fleet.stream(ctx, g.token)
	if err != nil {
		return err
	}
	defer done()
	for _, url := range []string{wellknown.TypeAuthentication, wellknown.TypePolicy, wellknown.TypeRoute} {
		hello := &discovery.DeltaDiscoveryRequest{TypeUrl: url, Node: &core.Node{
			Id: "waypoint~127.0.0.1~" + g.name + "." + g.namespace + "~" + g.namespace + ".svc.cluster.local", ClientFeatures: []string{partialResponses},
		}}
		if err := s.SendMsg(hello); err != nil {
			return errors.Join(err, s.RecvMsg(new([]byte)))
		}
	}
	var msg []byte
	seen := map[string]bool{}
	for {
		if err := s.RecvMsg(&msg); err != nil {
			return err
		}
		awaited, met := g.awaited.Load(), false
		r, err := readResponse(msg, func(r resource) error {
			if seen != nil {
				seen[string(r.name)] = true
			}
			met = met || awaited != nil && bytes.Contains(r.body, awaited.marker)
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}); err != nil {
			return errors.Join(err, s.RecvMsg(&msg))
		}
		if r.typeURL != wellknown.TypeRoute {
			continue
		}
		g.bytes.Add(int64(len(msg)) + frameBytes)
		g.messages.Add(1)
		if met {
			awaited.acks <- time.Now()
		}
		if seen != nil && len(seen) >= g.rules {
			seen, msg = nil, nil
			g.synced <- time.Now()
		}
	}
}

// writeRoute changes the header that a route sets, there and back.
func (w *world) writeRoute(ctx context.Context, route int, changed bool) error {
	patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/rules/0/filters/0/requestHeaderModifier/set/0/value","value":%q}]`, marker(route, changed))
	_, err := w.dynamic.Resource(routeKind).Namespace(home(w.routeOf(route))).Patch(ctx, routeName(route), types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// routes is all proxies of waypoints for the first time, and then changes of routes, one
// after the other.
func (m *measuring) routes(ctx context.Context) error {
	if m.w.waypoints == 0 || m.c.Name != "ambitd" {
		return nil // Istio's waypoints follow other types of resources
	}
	all, err := m.w.gateways(ctx, m.f)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, g := range all {
		go func() {
			if err := g.run(ctx); err != nil {
				m.fail(err)
			}
		}()
	}
	var bytes int64
	last := began
	for i, g := range all {
		select {
		case last = <-g.synced:
			bytes += g.bytes.Load()
		case <-time.After(readyWait):
			return fmt.Errorf("%d of %d proxies of waypoints have their rules; %s said: %s", i, len(all), m.c.Name, m.c.Words())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	m.r.seconds("proxies of waypoints at once, to all rules on the last", last.Sub(began))
	m.r.add("bytes of a rule, to each proxy", float64(bytes)/float64(max(1, m.w.routes*m.w.replicas)), "bytes")
	if err := m.usage("waypoints connected"); err != nil {
		return err
	}
	if err := m.oneWaypoint(ctx, all[0]); err != nil {
		return err
	}
	return m.changeRoutes(ctx, all)
}

// settleWait is how long a waypoint has to give back the memory of its start.
const settleWait = 30 * time.Second

// oneWaypoint starts the real program as one proxy of a waypoint, and measures its memory
// with its routes and policies.
func (m *measuring) oneWaypoint(ctx context.Context, of *gateway) error {
	dir, err := os.MkdirTemp("", "ambit-scale-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	binary, err := m.program(ctx, dir, "waypoint")
	if err != nil {
		return err
	}
	roots, err := m.w.kube.CoreV1().ConfigMaps(systemNamespace).Get(ctx, trust.Roots.ConfigMap, metav1.GetOptions{})
	if err != nil {
		return err
	}
	rootFile, tokenFile := filepath.Join(dir, "roots.pem"), filepath.Join(dir, "token")
	for file, text := range map[string]string{rootFile: roots.Data[trust.Roots.Key], tokenFile: of.token} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	addrs, err := measure.FreeAddrs(4)
	if err != nil {
		return err
	}
	p, err := measure.Start(dir, "waypoint", binary, []string{
		"XDS_ADDRESS=https://" + m.c.grpc, "CA_ADDRESS=https://" + m.c.grpc, "XDS_ROOT_CA=" + rootFile, "CA_ROOT_CA=" + rootFile, "AUTH_TOKEN=" + tokenFile,
		"POD_NAME=" + of.name, "POD_NAMESPACE=" + of.namespace, "SERVICE_ACCOUNT=" + waypointName, "NODE_NAME=" + nodeName(0), "INSTANCE_IP=127.0.0.1",
		"AMBIT_HBONE_ADDR=" + addrs[0], "AMBIT_ADMIN_ADDR=" + addrs[1], "AMBIT_STATS_ADDR=" + addrs[2], "AMBIT_READY_ADDR=" + addrs[3],
	})
	if err != nil {
		return err
	}
	defer p.Kill()
	if err := p.Until(ctx, readyWait, func() error {
		_, err := measure.Get(ctx, "http://"+addrs[3]+"/healthz/ready")
		return err
	}); err != nil {
		return fmt.Errorf("a waypoint: %w: %s", err, p.Words())
	}
	select {
	case <-time.After(settleWait):
	case <-ctx.Done():
		return ctx.Err()
	}
	u, err := p.Usage()
	if err != nil {
		return err
	}
	m.r.add("routes of the waypoint that is measured", float64(of.rules), "routes")
	m.r.mib("resident memory of one proxy of a waypoint", u.RSS)
	return nil
}

func (m *measuring) changeRoutes(ctx context.Context, all []*gateway) error {
	var write, every, lastAck []time.Duration
	var own, others, otherMessages int64
	for _, changed := range []bool{true, false} {
		for i := range m.changes / 2 {
			route := i * 7919 % m.w.routes
			e := &routeExpectation{marker: []byte(marker(route, changed)), acks: make(chan time.Time, m.w.replicas)}
			before := map[*gateway][2]int64{}
			for _, g := range all {
				before[g] = [2]int64{g.bytes.Load(), g.messages.Load()}
				g.awaited.Store(e)
			}
			began := time.Now()
			if err := m.w.writeRoute(ctx, route, changed); err != nil {
				return err
			}
			write = append(write, time.Since(began))
			for n := range m.w.replicas {
				select {
				case at := <-e.acks:
					every = append(every, at.Sub(began))
					if n == m.w.replicas-1 {
						lastAck = append(lastAck, at.Sub(began))
					}
				case <-time.After(ackWait):
					return fmt.Errorf("route %d: %d of %d proxies have its change after %s", route, n, m.w.replicas, ackWait)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			for _, g := range all {
				bytes, messages := g.bytes.Load()-before[g][0], g.messages.Load()-before[g][1]
				if g.namespace == home(m.w.routeOf(route)) {
					own += bytes
				} else {
					others, otherMessages = others+bytes, otherMessages+messages
				}
			}
		}
	}
	m.r.quantiles(routeChange+": answer of the API server", write)
	m.r.quantiles(routeChange+": acknowledged by a proxy of its waypoint", every)
	m.r.quantiles(routeChange+": acknowledged by all of them", lastAck)
	m.r.add("bytes of a changed route, to each proxy of its waypoint", float64(own)/float64(len(every)), "bytes")
	m.r.add("bytes of a changed route, to all other waypoints", float64(others)/float64(len(lastAck)), "bytes")
	return m.usage("after the changes of routes")
}
