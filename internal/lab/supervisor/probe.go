package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/readiness"
)

// probeEvery is how often a pod that is not ready is asked; one that is ready
// is asked at its own period, as on Kubernetes.
const probeEvery = 100 * time.Millisecond

// defaultProbeTimeout is that of Kubernetes.
const defaultProbeTimeout = time.Second

// probe follows a pod's readiness until ctx ends.
func (s *supervisor) probe(ctx context.Context, p *pod) {
	var count readiness.Count
	for {
		s.mu.Lock()
		changed := s.changed
		up, over := p.allUp()
		s.mu.Unlock()
		if over {
			s.setProbed(p, false)
			return
		}
		wait := probeEvery
		var ready bool
		switch {
		case !up:
			ready = count.Down()
		default:
			threshold, err := s.checkAll(ctx, p)
			if err == nil {
				ready = count.Passed()
			} else if ready = count.Failed(threshold); !ready {
				s.setMessage(p, notReady+err.Error())
			}
		}
		if ready {
			wait = readiness.Period(&p.spec.Spec)
		}
		if ctx.Err() != nil {
			return
		}
		s.setProbed(p, ready)
		if !up {
			// Nothing to ask: wait for a change instead.
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		t := time.NewTimer(wait)
		s.waitProbe(ctx, p, t)
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// waitProbe waits for the next probe; a container that ends makes it due.
func (s *supervisor) waitProbe(ctx context.Context, p *pod, t *time.Timer) {
	for {
		s.mu.Lock()
		changed := s.changed
		up, _ := p.allUp()
		s.mu.Unlock()
		if !up {
			return
		}
		select {
		case <-t.C:
			return
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (s *supervisor) setMessage(p *pod, m string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.message != m {
		p.message = m
		s.notify()
	}
}

// allUp reports whether every container runs, and whether all are finished.
// supervisor.mu is held.
func (p *pod) allUp() (up, over bool) {
	up, over = true, true
	for _, c := range p.containers {
		up = up && c.child != nil
		over = over && c.finished
	}
	return up, over
}

// checkAll asks every container that has a probe. With an error comes how many of these in
// a row the container may have.
func (s *supervisor) checkAll(ctx context.Context, p *pod) (threshold int, err error) {
	for i := range p.spec.Spec.Containers {
		c := &p.spec.Spec.Containers[i]
		if c.ReadinessProbe == nil {
			continue
		}
		if err := s.check(ctx, p, c); err != nil {
			return readiness.Threshold(c.ReadinessProbe), fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return 0, nil
}

// check asks once. It asks from within the pod: on a lab no kubelet has to be
// let through the mesh.
func (s *supervisor) check(ctx context.Context, p *pod, c *corev1.Container) error {
	pr := c.ReadinessProbe
	timeout := defaultProbeTimeout
	if pr.TimeoutSeconds > 0 {
		timeout = time.Duration(pr.TimeoutSeconds) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s.mu.Lock()
	sp := p.space
	s.mu.Unlock()
	if sp == nil {
		return errNoNetwork
	}
	switch {
	case pr.TCPSocket != nil:
		port, err := probePort(c, pr.TCPSocket.Port)
		if err != nil {
			return err
		}
		f, err := network.Dial(ctx, sp, "tcp", netip.AddrPortFrom(p.ips().First(s.families), port).String())
		if err == nil {
			_ = f.Close()
		}
		return err
	case pr.HTTPGet != nil:
		return s.get(ctx, p, c, pr.HTTPGet, timeout)
	case pr.Exec != nil:
		return s.execProbe(ctx, p, c, pr.Exec.Command)
	}
	return nil
}

// preStop runs what a container does before it is asked to end.
func (s *supervisor) preStop(ctx context.Context, p *pod, c *corev1.Container) error {
	switch h := ends.Hook(c); {
	case h == nil:
		return nil
	case h.Sleep != nil:
		pause(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	case h.HTTPGet != nil:
		return s.get(ctx, p, c, h.HTTPGet, defaultProbeTimeout)
	case h.Exec != nil:
		return s.execProbe(ctx, p, c, h.Exec.Command)
	}
	return errors.New("a lab has exec, httpGet and sleep")
}

// get makes a request to a port of a pod, from within.
func (s *supervisor) get(ctx context.Context, p *pod, c *corev1.Container, g *corev1.HTTPGetAction, timeout time.Duration) error {
	s.mu.Lock()
	sp := p.space
	s.mu.Unlock()
	if sp == nil {
		return errNoNetwork
	}
	port, err := probePort(c, g.Port)
	if err != nil {
		return err
	}
	return getProbe(ctx, sp, fmt.Sprintf("http://%s/%s", netip.AddrPortFrom(p.ips().First(s.families), port), strings.TrimPrefix(g.Path, "/")), timeout)
}

var errNoNetwork = errors.New("no network")

func getProbe(ctx context.Context, sp *network.Space, url string, timeout time.Duration) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := network.HTTP(sp, timeout).Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

func (s *supervisor) execProbe(ctx context.Context, p *pod, c *corev1.Container, argv []string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	env := containerEnv(p, c, s.families)
	ch, err := s.spawn(p, s.initSpec(p, &container{spec: c}, argv), env, []*os.File{null, null, null})
	_ = null.Close()
	if err != nil {
		return err
	}
	select {
	case <-ch.Done:
	case <-ctx.Done():
		s.end(ch, 0)
	}
	if code := ch.ExitCode(); code != 0 {
		return fmt.Errorf("%q: code %d", argv, code)
	}
	return nil
}

func probePort(c *corev1.Container, p intstr.IntOrString) (uint16, error) {
	if p.Type == intstr.Int {
		if p.IntVal < 1 || p.IntVal > 65535 {
			return 0, fmt.Errorf("probe port %d", p.IntVal)
		}
		return uint16(p.IntVal), nil //nolint:gosec // checked
	}
	for _, port := range c.Ports {
		if port.Name == p.StrVal {
			return uint16(port.ContainerPort), nil //nolint:gosec // of an object that was checked when it was decoded
		}
	}
	return 0, fmt.Errorf("no port named %q", p.StrVal)
}
