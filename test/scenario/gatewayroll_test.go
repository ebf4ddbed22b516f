package scenario

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// gentle returns a server that answers for two seconds after it was asked to end, as
// programs of Kubernetes do that have a preStop hook. The lab asks a whole process group.
func gentle(name string) string {
	return strings.Replace(rig.PodObject("shop", name, "node1", "app: "+name+", tier: server", "/bin/sh", "-c",
		`setsid ECHO server -grpc :9200 -name `+name+` & p=$!; trap 'sleep 2; kill $p' TERM; wait $p; wait $p`)+"    readinessProbe: {tcpSocket: {port: 9000}}\n",
		"terminationGracePeriodSeconds: 0", "terminationGracePeriodSeconds: 8", 1)
}

// calling is versions with a port of gRPC.
func calling() string {
	y := strings.ReplaceAll(versions(), `"ECHO", "server"`, `"ECHO", "server", "-grpc", ":9200"`)
	at := strings.LastIndex(y, "ports: [{name: http")
	return y[:at] + strings.Replace(y[at:], "ports: [", "ports: [{name: grpc, port: 9200, appProtocol: grpc}, ", 1)
}

// rollRate is low by default: other tests run on the same machine.
var rollRate = flag.Int("roll.rate", 64, "requests a second of each client that keeps its connections")

// startStreams starts clients that keep 64 connections each: of HTTP/1.1, HTTP/2 and gRPC.
func startStreams(w *rig.World, loads map[string]*rig.Load, to netip.AddrPort) {
	for _, protocol := range []string{"http1", "h2", "grpc"} {
		at := to
		if protocol == "grpc" {
			at = netip.AddrPortFrom(to.Addr(), 9200)
		}
		loads[protocol] = w.StartKeptOn(far, at, *rollRate, protocol, 64)
	}
}

// TestGatewayEndpointsEnd: endpoints behind a waypoint end and come back, one after the
// other, under load. No request fails. At a pod that ends in peace those under way are
// answered. Those at one that is killed are sent again when they may be.
func TestGatewayEndpointsEnd(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: calling()})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		a := newAsker(w, v6)
		w.Eventually("the waypoint answers", func() error {
			_, err := a.ask()
			return err
		})
		to := netip.AddrPortFrom(a.to, 80)
		// serves waits until a server gets requests again.
		serves := func(v string) {
			w.Eventually(v+" gets requests", func() error {
				got, err := a.ask()
				if err == nil && got != v {
					err = fmt.Errorf("%s answers", got)
				}
				return err
			})
		}
		t.Run("killed", func(t *testing.T) {
			w := world.For(t)
			stop := getAll(w, to)
			for _, v := range []string{"v1", "v2", "v1"} {
				w.MustDelete("Pod", "shop", v)
				w.MustApply(rig.ServerObject("shop", v, "node1", "app: "+v+", tier: server"))
				serves(v)
			}
			if n := stop(); n == 0 {
				t.Error("there was no load")
			}
		})
		t.Run("in peace", func(t *testing.T) {
			w := world.For(t)
			for _, v := range []string{"v1", "v2"} {
				w.MustDelete("Pod", "shop", v)
				w.MustApply(gentle(v))
				serves(v)
			}
			loads := map[string]*rig.Load{"some": w.StartLoad(far, to, 100), "fresh": w.StartConnections(far, to, 25)}
			startStreams(w, loads, to)
			for _, v := range []string{"v1", "v2", "v1"} {
				w.MustDelete("Pod", "shop", v)
				loads["some"].Seconds(1)
				w.MustApply(gentle(v))
				serves(v)
			}
			for name, l := range loads {
				t.Logf("%s: %+v", name, l.Clean())
			}
		})
		if at, err := gatewayPod(w); err == nil && t.Failed() {
			for line := range strings.Lines(w.Log("pod/shop/" + path.Base(string(at)) + "/" + deploy.Container)) {
				if strings.Contains(line, " reason=") {
					t.Log(line)
				}
			}
		}
	})
}

// getAll makes GET requests until stop is called, which returns how many were answered.
// One that fails fails the test.
func getAll(w *rig.World, to netip.AddrPort) (stop func() int) {
	ctx, cancel := context.WithCancel(w.T().Context())
	client := w.HTTP(far)
	var mu sync.Mutex
	n := 0
	var workers sync.WaitGroup
	get := func() error {
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, "http://"+to.String()+"/", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read to the end
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return err
	}
	for range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				if err := get(); err != nil {
					w.T().Error(err)
					return
				}
				mu.Lock()
				n++
				mu.Unlock()
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	return func() int {
		cancel()
		workers.Wait()
		client.CloseIdleConnections()
		return n
	}
}

// TestGatewayProxiesEnd: proxies of a waypoint are added and asked to end, again and
// again, while clients make requests on connections that they keep, which are idle most
// of the time. None fails.
func TestGatewayProxiesEnd(t *testing.T) {
	before, servers, _ := strings.Cut(calling(), managed)
	// A lab's proxies end at once, unless they are told otherwise.
	world := rig.Start(t, lab.Config{YAML: before + replicated(2) + servers, Env: map[string][]string{"waypoint": {"MINIMUM_DRAIN_DURATION=2s"}}})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "front", v6), 80)
		pods := func(n int) {
			w.MustApply(replicated(n))
			w.Eventually(fmt.Sprint("the waypoint has pods: ", n), func() error { return gatewayPods(w, n) })
		}
		pods(2)
		throughAny(w, to)
		loads := map[string]*rig.Load{"fresh": w.StartConnections(far, to, 50)}
		startStreams(w, loads, to)
		for range 3 {
			for _, n := range []int{1, 2} {
				pods(n)
				for _, l := range loads {
					l.Seconds(2)
				}
			}
		}
		for name, l := range loads {
			t.Logf("%s: %+v", name, l.Clean())
		}
	})
}

// throughAny waits until another workload than the client calls the server.
func throughAny(w *rig.World, to netip.AddrPort) {
	w.Eventually("requests go through the waypoint", func() error {
		a, err := w.Get(far, to)
		if err == nil && a.Caller == w.Pod("shop", "far", a.Caller.Is6()) {
			err = fmt.Errorf("the client itself calls")
		}
		return err
	})
}
