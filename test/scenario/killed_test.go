package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// span is from when something began to when it was over.
type span struct{ from, to time.Time }

func (s span) meets(o span) bool { return !s.from.After(o.to) && !o.from.After(s.to) }

// failure is a connection that was not answered.
type failure struct {
	span
	err error
}

// unexcused returns the failures that are not of connections which were there while a
// program died.
func unexcused(failures []failure, deaths []span) (left []failure) {
	for _, f := range failures {
		if !slices.ContainsFunc(deaths, f.meets) {
			left = append(left, f)
		}
	}
	return left
}

func TestUnexcused(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	failed := func(from, to int) failure { return failure{span{at(from), at(to)}, nil} }
	deaths := []span{{at(10), at(12)}, {at(20), at(21)}}
	for _, tc := range []struct {
		f       failure
		excused bool
	}{
		{failed(8, 9), false}, {failed(9, 10), true}, {failed(11, 11), true}, {failed(12, 15), true},
		{failed(13, 15), false}, {failed(13, 20), true}, {failed(1, 30), true}, {failed(22, 23), false},
	} {
		if got := len(unexcused([]failure{tc.f}, deaths)) == 0; got != tc.excused {
			t.Errorf("%v: excused is %v", tc.f.span, got)
		}
	}
}

// connecting makes new connections at a rate, each for one request, until stop is called.
func connecting(w *rig.World, to netip.AddrPort, rate int) (stop func() (made int, failures []failure)) {
	ctx, cancel := context.WithCancel(w.T().Context())
	var (
		mu       sync.Mutex
		made     int
		failures []failure
		workers  sync.WaitGroup
	)
	one := func() error {
		client := w.HTTP(far)
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, "http://"+to.String()+"/", nil)
		if err != nil {
			return err
		}
		req.Close = true
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	}
	due := make(chan struct{})
	for range 16 {
		workers.Go(func() {
			for range due {
				from := time.Now()
				err := one()
				mu.Lock()
				if made++; err != nil {
					failures = append(failures, failure{span{from, time.Now()}, err})
				}
				mu.Unlock()
			}
		})
	}
	workers.Go(func() {
		defer close(due)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			select {
			case due <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (int, []failure) {
		cancel()
		workers.Wait()
		return made, failures
	}
}

// TestProgramsKilled: the programs of ten pods are killed, one after the other, while clients
// make new connections all the time. Connections that the program had then may fail. One that
// is made after that never does: it takes another pod before its client sees anything. The
// same holds for pods that are removed without a grace period, with their network.
func TestProgramsKilled(t *testing.T) {
	for name, env := range map[string][]string{"all": nil, "on demand": {"XDS_ON_DEMAND=true"}} {
		t.Run(name, func(t *testing.T) {
			server := func(i int) string {
				return rig.ServerObject("shop", fmt.Sprintf("web%d", i), "node1", "app: web", "-name", fmt.Sprintf("web%d", i))
			}
			y := rig.NamespaceObject("shop", true) + rig.PodObject("shop", "far", "node2", "") + rig.ServiceObject("shop", "web", "web", "{name: http, port: 80, targetPort: 8080}")
			const pods = 10
			for i := range pods {
				y += server(i)
			}
			world := rig.Start(t, lab.Config{YAML: y, Env: map[string][]string{"ztunnel": env}})
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := world.For(t)
				to := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
				w.MustGet(far, to)
				// dies returns when the program of a pod is not there any more, from when it was asked.
				dies := func(pod string, how func(pid int)) span {
					t.Helper()
					s, err := w.Status(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					p, _ := s.Pod("shop", pod)
					if len(p.PIDs) != 1 {
						t.Fatalf("%s has processes %v", pod, p.PIDs)
					}
					from := time.Now()
					how(p.PIDs[0])
					_, err = w.Wait(t.Context(), func(s *lab.Status) bool {
						now, _ := s.Pod("shop", pod)
						return !slices.Equal(now.PIDs, p.PIDs)
					})
					if err != nil {
						t.Fatal(err)
					}
					return span{from, time.Now()}
				}
				stop := connecting(w, to, *rollRate)
				var deaths []span
				for i := range pods {
					pod := fmt.Sprintf("web%d", i)
					if i%2 == 0 {
						deaths = append(deaths, dies(pod, func(pid int) {
							w.MustRun(lab.InPod("shop", pod), "/bin/sh", "-c", "kill -9 "+strconv.Itoa(pid))
						}))
					} else {
						gone := make(chan error, 1)
						deaths = append(deaths, dies(pod, func(int) {
							go func() { gone <- w.Delete(context.WithoutCancel(t.Context()), "Pod", "shop", pod) }()
						}))
						if err := <-gone; err != nil {
							t.Fatal(err)
						}
						w.MustApply(server(i))
					}
					w.Eventually(pod+" is ready", func() error {
						s, err := w.Status(t.Context())
						if p, _ := s.Pod("shop", pod); err == nil && !p.Ready {
							err = fmt.Errorf("it is not: %s", p.Message)
						}
						return err
					})
				}
				made, failures := stop()
				for _, f := range unexcused(failures, deaths) {
					t.Errorf("a connection of %s to %s failed, and no program died then: %v", f.from.Format("15:04:05.000"), f.to.Format("15:04:05.000"), f.err)
				}
				for _, d := range deaths {
					t.Logf("a program died between %s and %s", d.from.Format("15:04:05.000"), d.to.Format("15:04:05.000"))
				}
				t.Logf("of %d connections %d failed", made, len(failures))
				if made == len(failures) {
					t.Error("there was no load")
				}
			})
		})
	}
}
