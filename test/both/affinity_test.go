package both

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// many is a Service in front of three pods, with the session affinity that is asked for.
func many(affinity string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: many, namespace: $shop}
spec: {selector: {group: many}, ipFamilyPolicy: PreferDualStack, sessionAffinity: %s, ports: [{name: http, port: 80, targetPort: 8080}]}
`, affinity)
}

// answering returns the names of the servers that answer n requests.
func answering(w *world.World, n int, from world.Place, to netip.AddrPort) (names []string, err error) {
	all, err := w.Requests(n, from, to, "/")
	for _, r := range all {
		a, err := r.Answer()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, a.Name) {
			names = append(names, a.Name)
		}
	}
	return names, err
}

// TestSessionAffinity: a Service with affinity leads each of its clients to one pod, and to
// another one when that is gone. It is switched on and off while there are clients.
func TestSessionAffinity(t *testing.T) {
	w := start(t, world.Options{})
	pods := map[string]string{}
	yaml := rig.PodObject("$shop", "far", "node2", "") + many("None")
	for i := range 3 {
		name := fmt.Sprintf("many%d", i)
		pods[name] = server(name, "group: many")
		yaml += pods[name]
	}
	w.Apply(yaml)
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "many", 80, v6)
		var names []string
		answer := func(want int) func() error {
			return func() (err error) {
				// 40 draws of one of three pods miss one of them once in ten million.
				if names, err = answering(w, 40, far, to); err == nil && len(names) != want {
					err = fmt.Errorf("%v answer", names)
				}
				return err
			}
		}
		w.Eventually("all pods answer", answer(3))
		w.Apply(many("ClientIP"))
		w.Eventually("one pod answers", answer(1))
		first := names[0]
		w.Delete(pods[first])
		w.Eventually("another pod answers", func() error {
			if err := answer(1)(); err != nil || names[0] == first {
				return fmt.Errorf("%v answer, error %w", names, err)
			}
			return nil
		})
		w.Apply(pods[first] + many("None"))
		w.Eventually("all pods answer again", answer(3))
	})
}
