package world

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/test/traffic"
)

// Waypoint returns the Gateway of a namespace with a number of proxies, which are to be
// applied, and annotations of these as the inside of a YAML map.
func Waypoint(namespace string, replicas int, annotations string) string {
	return fmt.Sprintf(`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: $%[1]s, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {annotations: {%[3]s}, parametersRef: {group: "", kind: ConfigMap, name: parameters}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: parameters, namespace: $%[1]s}
data: {deployment: "spec: {replicas: %[2]d}"}
`, namespace, replicas, annotations)
}

// Proxies returns the proxies of the waypoint of a namespace.
func (w *World) Proxies(namespace string) []Pod {
	w.Helper()
	all, err := w.mesh.Pods(w.Context(), w.Text("$"+namespace))
	w.must("pods", err)
	return slices.DeleteFunc(all, func(p Pod) bool { return !strings.HasPrefix(p.Name, "waypoint-") })
}

// ProxiesBecome waits until the waypoint of a namespace has n proxies, and is ready if
// there are some.
func (w *World) ProxiesBecome(namespace string, n int) {
	w.Helper()
	w.Eventually(fmt.Sprintf("the waypoint of %s has %d proxies", namespace, n), func() error {
		if got := len(w.Proxies(namespace)); got != n {
			return fmt.Errorf("it has %d", got)
		}
		return nil
	})
	if n > 0 {
		w.Condition("Gateway", namespace, "waypoint", "Programmed", "True ")
	}
}

// Through returns an error unless a server was called by a proxy of the waypoint.
func (w *World) Through(namespace string, caller netip.Addr) error {
	w.Helper()
	all := w.Proxies(namespace)
	if !slices.ContainsFunc(all, func(p Pod) bool { return slices.Contains(p.IPs, caller) }) {
		return fmt.Errorf("it was called by %s, which is no proxy of %v", caller, all)
	}
	return nil
}

// WaypointLog returns what the proxies of the waypoint of a namespace have written.
func (w *World) WaypointLog(namespace string) string {
	w.Helper()
	var b strings.Builder
	for _, p := range w.Proxies(namespace) {
		text, err := w.mesh.Log(w.Context(), p.Namespace, p.Name)
		w.must("log", err)
		b.WriteString(text)
	}
	return b.String()
}

// Samples returns the series of a metric of the waypoint of a namespace.
func (w *World) Samples(namespace, metric string) (all []traffic.Sample) {
	w.Helper()
	for _, p := range w.Proxies(namespace) {
		text, err := w.mesh.Scrape(w.Context(), p.Namespace, p.Name)
		w.must("metrics", err)
		list, err := traffic.Samples(text, metric)
		w.must("metrics", err)
		all = append(all, list...)
	}
	return all
}

// Counted returns the sum of a metric of the waypoint of a namespace, over the series that
// have these labels, given as pairs. A label without a value is one that they have not.
func (w *World) Counted(namespace, metric string, labels ...string) (sum float64) {
	w.Helper()
	for _, s := range w.Samples(namespace, metric) {
		fits := true
		for i := 0; i+1 < len(labels); i += 2 {
			fits = fits && s.Labels[labels[i]] == w.Text(labels[i+1])
		}
		if fits {
			sum += s.Value
		}
	}
	return sum
}
