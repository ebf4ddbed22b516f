package scenario

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// many is a Service in front of three pods, with the session affinity that is
// asked for.
func many(affinity string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: many, namespace: shop}
spec: {selector: {app: many}, ipFamilyPolicy: PreferDualStack, sessionAffinity: %s, ports: [{name: http, port: 80, targetPort: 8080}]}
`, affinity)
}

// TestAffinitySwitchedOnAndOff changes the session affinity of a Service that
// has clients already.
func TestAffinitySwitchedOnAndOff(t *testing.T) {
	t.Parallel()
	pods := ""
	for i := range 3 {
		pods += rig.ServerObject("shop", fmt.Sprint("many-", i+1), fmt.Sprint("node", 1+i%2), "app: many")
	}
	w := rig.Start(t, lab.Config{YAML: rig.Shop + many("None") + pods})
	to := netip.AddrPortFrom(w.Service("shop", "many", false), 80)
	endpoints := func(want int) func() error {
		return func() error {
			// 40 draws of one of three pods miss one of them once in ten million.
			if got := w.Answers(rig.Far, to, 40); len(got) != want {
				return fmt.Errorf("answers of %v, want those of %d pods", got, want)
			}
			return nil
		}
	}
	w.Eventually("all pods answer", endpoints(3))
	for range 2 {
		w.MustApply(many("ClientIP"))
		w.Eventually("one pod answers", endpoints(1))
		w.MustApply(many("None"))
		w.Eventually("all pods answer again", endpoints(3))
	}
}
