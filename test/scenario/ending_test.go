package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/test/rig"
)

// held returns a server of the service web that lives until a file is there, once its end was
// asked for.
func held(name, file string) string {
	y := rig.ServerObject("shop", name, "node1", "app: web", "-name", name)
	return strings.Replace(y, "terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 60", 1) +
		`    lifecycle: {preStop: {exec: {command: [/bin/sh, -c, "until [ -e ` + file + ` ]; do sleep 0.1; done"]}}}` + "\n"
}

// TestTunnelsOfAnEndingPod: as soon as the end of a pod was asked for, a peer that reads nothing
// of it gets GOAWAY on its tunnel, and no proxy chooses the pod for new connections. Streams
// go on until the pod is gone. That holds for proxies that ask for what they meet, too.
func TestTunnelsOfAnEndingPod(t *testing.T) {
	for name, env := range map[string][]string{"all": nil, "on demand": {"XDS_ON_DEMAND=true"}} {
		t.Run(name, func(t *testing.T) {
			end := t.TempDir() + "/end"
			world := rig.Start(t, lab.Config{
				YAML: rig.NamespaceObject("shop", true) + rig.NamespaceObject("street", false) + rig.PodObject("shop", "far", "node2", "") +
					rig.PodObject("street", "stranger", "node2", "") + rig.ServerObject("shop", "stays", "node1", "app: web", "-name", "stays") +
					rig.ServiceObject("shop", "web", "web", "{name: http, port: 80, targetPort: 8080}"),
				Env: map[string][]string{"ztunnel": env},
			})
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := world.For(t)
				end := fmt.Sprint(end, v6)
				w.MustApply(held("leaves", end))
				to, pod := netip.AddrPortFrom(w.Service("shop", "web", v6), 80), w.Pod("shop", "leaves", v6)
				w.Eventually("both answer", func() error {
					if n := w.Answers(far, to, 30); len(n) != 2 {
						return fmt.Errorf("%v", n)
					}
					return nil
				})
				open := w.MustHold(far, netip.AddrPortFrom(pod, 9000))
				account := func(name string) identity.Identity {
					return identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: name}
				}
				peer := w.MustTunnel(stranger, netip.AddrPortFrom(pod, 15008), w.Bundle(account("far").String()), account("leaves").String())
				stream, status, err := peer.Open("CONNECT", netip.AddrPortFrom(pod, 9000).String(), nil)
				if err != nil || status != 200 {
					t.Fatalf("status %d, error %v", status, err)
				}
				if err := stream.Exchange("before"); err != nil || !peer.Takes() {
					t.Fatalf("takes streams: %v, error %v", peer.Takes(), err)
				}
				gone := make(chan error, 1)
				go func() { gone <- w.Delete(context.WithoutCancel(t.Context()), "Pod", "shop", "leaves") }()
				w.Eventually("the peer gets GOAWAY", func() error {
					if peer.Takes() {
						return errors.New("its tunnel takes streams")
					}
					return nil
				})
				w.Eventually("the other pod alone is chosen", func() error {
					if n := w.Answers(far, to, 30); n["stays"] != 30 {
						return fmt.Errorf("%v", n)
					}
					return nil
				})
				for range 3 {
					if n := w.Answers(far, to, 30); n["stays"] != 30 {
						t.Errorf("answers of %v", n)
					}
					if err := errors.Join(open.Ping(), stream.Exchange("after")); err != nil {
						t.Errorf("what was open: %v", err)
					}
				}
				// A client that names the pod gets the pod.
				late := w.MustHold(far, netip.AddrPortFrom(pod, 9000))
				if s, err := w.Status(t.Context()); err != nil {
					t.Error(err)
				} else if p, _ := s.Pod("shop", "leaves"); p.Phase != ends.Terminating {
					t.Errorf("the pod is %q", p.Phase)
				}
				select {
				case err := <-gone:
					t.Fatalf("the pod has gone before its hook was over: %v", err)
				default:
				}
				w.MustRun(lab.InNode("node1"), "/bin/sh", "-c", "touch "+end)
				if err := <-gone; err != nil {
					t.Fatal(err)
				}
				for what, c := range map[string]*rig.Conn{"open": open, "late": late} {
					if err := c.AwaitEnd(); err == nil {
						t.Errorf("the connection that was %s goes on without the pod", what)
					}
				}
			})
		})
	}
}
