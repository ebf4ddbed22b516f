package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/process"
)

// Back-off of restarts. Kubernetes waits from 10 s to 5 min; nobody at a
// keyboard does. A program that ran for resetAfter is treated as if new.
const (
	firstDelay = 200 * time.Millisecond
	lastDelay  = 10 * time.Second
	resetAfter = 10 * time.Second
)

// backoff is the wait before the next start.
type backoff struct{ delay time.Duration }

// next returns how long to wait after a run of the given length.
func (b *backoff) next(ran time.Duration) time.Duration {
	switch {
	case b.delay == 0 || ran >= resetAfter:
		b.delay = firstDelay
	default:
		b.delay = min(2*b.delay, lastDelay)
	}
	return b.delay
}

// container is one program of a pod.
type container struct {
	spec *corev1.Container

	// Guarded by supervisor.mu.
	child    *process.Child
	restarts int
	finished bool // will not be started again
	failed   bool // finished with another code than 0
}

// runContainers runs the pod's programs until ctx ends or they are done.
func (s *supervisor) runContainers(ctx context.Context, p *pod) {
	for i := range p.spec.Spec.InitContainers {
		c := &container{spec: &p.spec.Spec.InitContainers[i]}
		if !s.runToSuccess(ctx, p, c) {
			return
		}
	}
	s.mu.Lock()
	for i := range p.spec.Spec.Containers {
		p.containers = append(p.containers, &container{spec: &p.spec.Spec.Containers[i]})
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range p.containers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.keepRunning(ctx, p, c)
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		s.probe(ctx, p)
	}()
	wg.Wait()
	s.setProbed(p, false)
	<-ctx.Done()
}

// runToSuccess runs an init container, as often as it takes.
func (s *supervisor) runToSuccess(ctx context.Context, p *pod, c *container) bool {
	var b backoff
	for ctx.Err() == nil {
		began := time.Now()
		code := s.runOnce(ctx, p, c)
		if code == 0 {
			return true
		}
		if ctx.Err() != nil || !pause(ctx, b.next(time.Since(began))) {
			return false
		}
	}
	return false
}

func (s *supervisor) keepRunning(ctx context.Context, p *pod, c *container) {
	var b backoff
	for {
		began := time.Now()
		code := s.runOnce(ctx, p, c)
		if ctx.Err() != nil {
			return
		}
		policy := p.spec.Spec.RestartPolicy
		if policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && code == 0 {
			s.finish(p, c, code)
			return
		}
		s.fail(p, fmt.Errorf("container %s ended with code %d%s", c.spec.Name, code, s.lastWords(p, c)))
		if !pause(ctx, b.next(time.Since(began))) {
			return
		}
		s.mu.Lock()
		c.restarts++
		s.mu.Unlock()
	}
}

// lastWords quotes what a container printed last.
func (s *supervisor) lastWords(p *pod, c *container) string {
	t := strings.TrimSpace(process.Tail(s.d.Log(logName(p, c)), 300))
	if i := strings.LastIndexByte(t, '\n'); i >= 0 {
		t = t[i+1:]
	}
	if t != "" {
		t = ": " + t
	}
	return t
}

// pause waits, and returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *supervisor) finish(p *pod, c *container, code int) {
	s.mu.Lock()
	c.finished, c.failed = true, code != 0
	phase := corev1.PodSucceeded
	for _, other := range p.containers {
		if !other.finished {
			phase = p.phase
			break
		}
		if other.failed {
			phase = corev1.PodFailed
		}
	}
	p.phase = phase
	s.notify()
	s.mu.Unlock()
	if err := s.publish(p); err != nil {
		s.fail(p, err)
	}
}

func logName(p *pod, c *container) string {
	return "pod/" + p.key.Namespace + "/" + p.key.Name + "/" + c.spec.Name
}

// runOnce runs a container's program to its end and returns its exit code.
func (s *supervisor) runOnce(ctx context.Context, p *pod, c *container) int {
	log, err := process.OpenLog(s.d.Log(logName(p, c)))
	if err != nil {
		s.fail(p, err)
		return process.ExitCannotRun
	}
	w, err := log.Pipe()
	if err != nil {
		s.fail(p, err)
		return process.ExitCannotRun
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = w.Close()
		s.fail(p, err)
		return process.ExitCannotRun
	}
	env := containerEnv(p, c.spec, s.families)
	ch, err := s.spawn(p, s.initSpec(p, c, process.ExpandAll(append(append([]string{}, c.spec.Command...), c.spec.Args...), env)), env, []*os.File{null, w, w})
	lab.CloseAll([]*os.File{null, w})
	if err != nil {
		s.fail(p, err)
		return process.ExitCannotRun
	}
	s.started(p, c, ch)
	select {
	case <-ch.Done:
	case <-ctx.Done():
		s.endContainer(p, c, ch)
	}
	s.mu.Lock()
	c.child = nil
	s.notify()
	s.mu.Unlock()
	return ch.ExitCode()
}

func (s *supervisor) started(p *pod, c *container, ch *process.Child) {
	s.mu.Lock()
	c.child = ch
	if p.phase == corev1.PodPending {
		p.phase = corev1.PodRunning
	}
	s.notify()
	s.mu.Unlock()
}

// endContainer runs a container's hook and ends its program, within the pod's grace period.
func (s *supervisor) endContainer(p *pod, c *container, ch *process.Child) {
	began, grace := time.Now(), ends.Grace(&p.spec.Spec)
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	go func() { // the lab's end does not wait for hooks
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.preStop(ctx, p, c.spec); err != nil && ctx.Err() == nil {
		s.fail(p, fmt.Errorf("container %s: hook preStop: %w", c.spec.Name, err))
	}
	s.end(ch, max(0, grace-time.Since(began)))
}

// end stops a process group: politely, then not.
func (s *supervisor) end(ch *process.Child, grace time.Duration) {
	s.kids.Signal(ch, unix.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-ch.Done:
		return
	case <-t.C:
	case <-s.ending:
		// With the lab's end, nobody gets more than stopGrace.
		if t.Reset(min(grace, stopGrace)); grace > 0 {
			select {
			case <-ch.Done:
				return
			case <-t.C:
			}
		}
	}
	s.kids.Signal(ch, unix.SIGKILL)
	<-ch.Done
}

func (s *supervisor) initSpec(p *pod, c *container, argv []string) process.InitSpec {
	spec := process.InitSpec{
		Hostname: p.key.Name, Dir: "/", Argv: argv,
		Binds: map[string]string{"/etc/hosts": s.hostsPath(p), "/etc/resolv.conf": s.resolvPath(p)},
	}
	if c.spec.WorkingDir != "" {
		spec.Dir = c.spec.WorkingDir
	} else if st, err := os.Stat(s.files(p)); err == nil && st.IsDir() {
		spec.Dir = s.files(p)
	}
	if sc := p.spec.Spec.SecurityContext; sc != nil {
		spec.User, spec.Group = sc.RunAsUser, sc.RunAsGroup
	}
	if sc := c.spec.SecurityContext; sc != nil {
		if sc.RunAsUser != nil {
			spec.User = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			spec.Group = sc.RunAsGroup
		}
	}
	return spec
}

// spawn starts a program as a container of a pod. The files stay the caller's.
func (s *supervisor) spawn(p *pod, spec process.InitSpec, env []string, files []*os.File) (*process.Child, error) {
	s.mu.Lock()
	sp := p.space
	s.mu.Unlock()
	if sp == nil {
		return nil, fmt.Errorf("pod %s/%s has no network", p.key.Namespace, p.key.Name)
	}
	return s.startInit(sp, spec, env, files)
}

// startInit starts this program as the first process of a container.
func (s *supervisor) startInit(sp *network.Space, spec process.InitSpec, env []string, files []*os.File) (*process.Child, error) {
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return s.kids.Start(sp.Ns, "/proc/self/exe", []string{lab.InitName, string(b)}, &os.ProcAttr{
		Dir: "/", Env: env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS},
	})
}

// containerEnv is the environment of a container, as a list of "NAME=value".
func containerEnv(p *pod, c *corev1.Container, f network.Families) []string {
	env := process.HostEnv()
	env["HOSTNAME"] = p.key.Name
	for _, e := range c.Env {
		v := process.Expand(e.Value, env)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			v = podField(p, e.ValueFrom.FieldRef.FieldPath, f)
		}
		env[e.Name] = v
	}
	return process.Environ(env)
}

// podField is the downward API.
func podField(p *pod, path string, f network.Families) string {
	switch path {
	case "metadata.name":
		return p.key.Name
	case "metadata.namespace":
		return p.key.Namespace
	case "metadata.uid":
		return p.uid
	case "spec.nodeName":
		return p.node.name
	case "spec.serviceAccountName":
		return p.spec.Spec.ServiceAccountName
	case "status.podIP":
		return p.ips().First(f).String()
	case "status.podIPs":
		return strings.Join(p.ips().Strings(f), ",")
	case "status.hostIP":
		return network.NodeAddr(p.node.n).First(f).String()
	}
	return ""
}

// killIn ends whatever still runs in a pod's network namespace: programs that
// left their process group.
func (s *supervisor) killIn(sp *network.Space) {
	self := os.Getpid()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	var want unix.Stat_t
	if unix.Fstat(int(sp.Ns.File().Fd()), &want) != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
