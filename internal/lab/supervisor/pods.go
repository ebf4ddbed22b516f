package supervisor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/ends"
	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/lab/process"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/file"
)

// overlayWriter is the lab's folder in the status directory.
const overlayWriter = "lab"

// pod is one pod from its creation to its end.
type pod struct {
	key   objects.Key
	spec  *corev1.Pod // not changed
	sum   [sha256.Size]byte
	uid   string
	node  *node
	host  int            // its number on the node
	link  string         // its interface in the node's namespace
	space *network.Space // guarded by supervisor.mu

	cancel context.CancelFunc
	done   chan struct{}

	// Guarded by supervisor.mu.
	captured   bool
	containers []*container
	probed     bool      // ready, as far as the pod itself goes
	announced  bool      // ready, and services lead to it
	ending     time.Time // when its end was asked for; zero before
	phase      corev1.PodPhase
	message    string
	hostsText  string // what its hosts file holds
}

func (p *pod) ips() network.Dual { return network.HostAddr(p.node.n, p.host) }

// checksum tells pods apart that have to be made anew. Labels and annotations
// change while a pod lives.
func checksum(p *corev1.Pod) [sha256.Size]byte {
	b, _ := json.Marshal(p.Spec)
	return sha256.Sum256(b)
}

// endPods ends the pods that are no longer wanted, or not as they are, and returns when
// they are gone. As on Kubernetes, the object of a pod that ends has a time of deletion, and
// stays until its programs have ended: connections that are open go on until then.
func (s *supervisor) endPods(want *objects.Desired) error {
	var gone []*pod
	s.mu.Lock()
	for k, p := range s.pods {
		if w := want.Pods[k]; w == nil || checksum(w) != p.sum {
			p.ending = time.Now()
			gone = append(gone, p)
		}
	}
	s.notify()
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	var errs []error
	for _, p := range gone {
		errs = append(errs, s.publish(p))
	}
	errs = append(errs, s.wire())
	// Who has to hear of it does so while programs end, as on Kubernetes.
	for _, p := range gone {
		p.cancel()
	}
	for _, p := range gone {
		<-p.done
	}
	s.mu.Lock()
	for _, p := range gone {
		delete(s.pods, p.key)
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// beginPods begins the pods that are wanted and not there.
func (s *supervisor) beginPods(want *objects.Desired) error {
	s.mu.Lock()
	for k, p := range s.pods {
		p.captured = want.Captured[k]
	}
	s.mu.Unlock()
	var errs []error
	for k, w := range want.Pods {
		s.mu.Lock()
		_, exists := s.pods[k]
		s.mu.Unlock()
		if !exists {
			errs = append(errs, s.newPod(k, w, want.Captured[k]))
		}
	}
	return errors.Join(errs...)
}

// newPod schedules a pod and starts its life.
func (s *supervisor) newPod(k objects.Key, spec *corev1.Pod, inMesh bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errors.New("the lab is ending")
	}
	n := s.schedule(spec.Spec.NodeName)
	host, ok := n.hosts.Take()
	if !ok {
		return fmt.Errorf("%s: %s has no free address (%d pods)", k, n.name, s.lastHost()-network.FirstHost+1)
	}
	n.links++
	ctx, cancel := context.WithCancel(context.Background())
	p := &pod{
		key: k, spec: spec, sum: checksum(spec), uid: newUID(spec), node: n, host: host,
		link: fmt.Sprintf("pod%d", n.links), captured: inMesh,
		cancel: cancel, done: make(chan struct{}), phase: corev1.PodPending,
	}
	s.pods[k] = p
	s.notify()
	s.running.Add(1)
	go s.live(ctx, p)
	return nil
}

// schedule honours a wish, and otherwise takes the node with the fewest pods.
func (s *supervisor) schedule(wish string) *node {
	count := map[*node]int{}
	for _, p := range s.pods {
		count[p.node]++
	}
	best := s.nodes[0]
	for _, n := range s.nodes {
		if n.name == wish {
			return n
		}
		if count[n] < count[best] {
			best = n
		}
	}
	return best
}

func newUID(p *corev1.Pod) string {
	if p.UID != "" {
		return string(p.UID)
	}
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// live is a pod's life.
func (s *supervisor) live(ctx context.Context, p *pod) {
	defer s.running.Done()
	defer close(p.done)
	defer s.bury(p)
	defer p.cancel()
	go func() { // the lab's end is every pod's
		select {
		case <-s.ending:
			p.cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.sandbox(p); err != nil {
		s.fail(p, err)
		<-ctx.Done()
		return
	}
	if !s.joinMesh(ctx, p) {
		return
	}
	s.runContainers(ctx, p)
}

// fail says why a pod does not run.
func (s *supervisor) fail(p *pod, err error) {
	s.mu.Lock()
	p.message = err.Error()
	s.mu.Unlock()
	s.event("pod "+p.key.Namespace+"/"+p.key.Name, "%v", err)
}

// sandbox makes what the containers run in.
func (s *supervisor) sandbox(p *pod) error {
	path := filepath.Join(s.d.PodNetns(p.node.name), p.uid)
	sp, err := network.NewPodSpace(p.node.space, path, p.link, p.node.n, p.host, s.families)
	if err != nil {
		return err
	}
	s.mu.Lock()
	p.space = sp
	s.mu.Unlock()
	if err := errors.Join(s.writeResolvConf(p), s.writeVolumes(p)); err != nil {
		return err
	}
	if err := s.wire(); err != nil {
		return err
	}
	return s.publish(p)
}

// bury undoes what sandbox made.
func (s *supervisor) bury(p *pod) {
	s.mu.Lock()
	sp := p.space
	p.space = nil
	replaced := s.pods[p.key] != nil && s.pods[p.key] != p
	s.mu.Unlock()
	if !replaced {
		_ = file.RemoveOverlay(s.d.Status(), overlayWriter, source.Pod.Key(p.key.Namespace, p.key.Name))
	}
	if sp != nil {
		s.killIn(sp)
		p.node.space.Remove(p.link)
		sp.Close()
	}
	_ = os.Remove(s.hostsPath(p))
	_ = os.Remove(s.resolvPath(p))
	_ = os.RemoveAll(s.files(p))
	s.mu.Lock()
	p.node.hosts.Give(p.host)
	s.notify()
	s.mu.Unlock()
}

// publish writes the pod's status for the mesh to read, as a kubelet does.
func (s *supervisor) publish(p *pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pods[p.key] != p {
		return nil // deleted meanwhile: its overlay is gone, or a successor's
	}
	o := &corev1.Pod{}
	o.Name, o.Namespace, o.UID = p.key.Name, p.key.Namespace, types.UID(p.uid)
	o.Spec.NodeName = p.node.name
	if !p.ending.IsZero() {
		ends.Mark(&o.ObjectMeta, p.ending, ends.Grace(&p.spec.Spec))
	}
	o.Status.Phase = p.phase
	o.Status.HostIP = network.NodeAddr(p.node.n).First(s.families).String()
	for i, ip := range p.ips().Strings(s.families) {
		if i == 0 {
			o.Status.PodIP = ip
		}
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	ready := corev1.ConditionFalse
	if p.probed {
		ready = corev1.ConditionTrue
	}
	for _, t := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
		o.Status.Conditions = append(o.Status.Conditions, corev1.PodCondition{
			Type: t, Status: ready, LastTransitionTime: metav1.Now().Rfc3339Copy(),
		})
	}
	return file.WriteOverlay(s.d.Status(), overlayWriter, o)
}

// setProbed makes a pod ready or not: first its services, then the word.
func (s *supervisor) setProbed(p *pod, ready bool) {
	s.mu.Lock()
	same := p.probed == ready
	p.probed = ready
	if !ready {
		p.announced = false
	}
	s.mu.Unlock()
	if same {
		return
	}
	err := errors.Join(s.publish(p), s.wire())
	if ready {
		err = errors.Join(err, s.announceGateway(p))
	}
	if err != nil {
		s.fail(p, err)
		return
	}
	s.mu.Lock()
	p.announced = ready
	if ready && (strings.HasPrefix(p.message, notReady) || strings.HasPrefix(p.message, waitsToJoin)) {
		p.message = "" // how a program ended last stays: it may do so again
	}
	s.notify()
	s.mu.Unlock()
}

func (s *supervisor) podStatus(p *pod) lab.PodStatus {
	st := lab.PodStatus{
		Namespace: p.key.Namespace, Name: p.key.Name, UID: p.uid, Node: p.node.name,
		IPs: p.ips().Strings(s.families), Phase: string(p.phase), Ready: p.announced,
		Captured: p.captured, Message: p.message,
	}
	if !p.ending.IsZero() {
		st.Phase = ends.Terminating
	}
	for _, c := range p.containers {
		st.Restarts += c.restarts
		if c.child != nil {
			st.PIDs = append(st.PIDs, c.child.Pid)
			st.RSS += process.ResidentMemory(c.child.Pid)
		}
	}
	return st
}

func split(w lab.Where) (kind, rest string) {
	kind, rest, _ = strings.Cut(string(w), "/")
	return kind, rest
}

// findPod looks a pod up. s.mu is held.
func (s *supervisor) findPod(w lab.Where) (*pod, error) {
	_, rest := split(w)
	ns, name, ok := strings.Cut(rest, "/")
	if !ok {
		ns, name = "default", rest
	}
	if p := s.pods[objects.NewKey("Pod", ns, name)]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no pod %q in namespace %q: `ambit lab status` lists them", name, ns)
}

// Beginnings of what is said about a pod that is not ready.
const (
	notReady    = "not ready: "
	waitsToJoin = "waits to join the mesh, and does not start before: "
)

// joinRetry is how long a pod that must join the mesh waits between attempts.
const joinRetry = 200 * time.Millisecond

// joinMesh asks the node's agent to enrol a new pod before its first program
// runs. There is no way around it: a pod that should be in the mesh and cannot
// be does not start.
func (s *supervisor) joinMesh(ctx context.Context, p *pod) bool {
	t := time.NewTicker(joinRetry)
	defer t.Stop()
	for {
		s.mu.Lock()
		needed := s.cfg.Mesh && p.captured
		s.mu.Unlock()
		if !needed {
			return ctx.Err() == nil
		}
		err := s.cmdAdd(ctx, p)
		if err == nil {
			s.mu.Lock()
			p.message = ""
			s.mu.Unlock()
			return true
		}
		s.fail(p, fmt.Errorf(waitsToJoin+"%w", err))
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
}
