package kit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// Patience is how long tests wait for what must happen. It is long because
// the machine may be slow; it says nothing about how fast the mesh is.
// A kubelet that had lost the API server can take a minute and a half to follow it again.
const Patience = 3 * time.Minute

// TestImage runs test/echo and test/load.
var TestImage = "ghcr.io/ambit-mesh/ambit-test:dev"

// Eventually repeats check until it answers nil, and fails the test with its
// last answer when it does not within Patience.
func Eventually(t testing.TB, what string, check func(ctx context.Context) error) {
	t.Helper()
	within(t, Patience, what, check)
}

// interrupted is done when somebody wants the tests to end.
var interrupted = context.Background()

// EndWith makes tests fail where they begin and where they wait, once ctx has
// ended, so that what they changed is put back soon. It is called before any test.
func EndWith(ctx context.Context) { interrupted = ctx }

func goOn(t testing.TB) {
	t.Helper()
	if interrupted.Err() != nil {
		t.Fatal("interrupted")
	}
}

func within(t testing.TB, limit time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	began := time.Now()
	var last error
	for time.Since(began) < limit {
		goOn(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		last = check(ctx)
		cancel()
		if last == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s: not within %s: %v", what, limit, last)
}

// Namespace is one that goes away with its test.
type Namespace struct {
	*Cluster
	t    testing.TB
	Name string
}

// For is the same namespace for a subtest: what fails is the subtest's.
func (n *Namespace) For(t testing.TB) *Namespace { return &Namespace{n.Cluster, t, n.Name} }

// Ambient are the labels that enrol a namespace.
func Ambient() map[string]string {
	return map[string]string{wellknown.LabelDataplaneMode: wellknown.DataplaneModeAmbient}
}

// Namespace makes a namespace with a name of its own.
func (c *Cluster) Namespace(t testing.TB, prefix string, labels map[string]string) *Namespace {
	t.Helper()
	goOn(t)
	ns, err := c.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-", Labels: labels},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := &Namespace{Cluster: c, t: t, Name: ns.Name}
	t.Cleanup(func() {
		if t.Failed() {
			n.describe()
		}
		// The test's context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Kube.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("namespace %s stays behind: %v", ns.Name, err)
		}
	})
	return n
}

// describe logs what an engineer would ask first when a test failed.
func (n *Namespace) describe() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if pods, err := n.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{}); err == nil {
		for _, p := range pods.Items {
			n.t.Logf("pod %s on %s: %s, addresses %v, annotations %v", p.Name, p.Spec.NodeName, p.Status.Phase, p.Status.PodIPs, p.Annotations)
		}
	}
	if events, err := n.Kube.CoreV1().Events(n.Name).List(ctx, metav1.ListOptions{}); err == nil {
		for _, e := range events.Items {
			if e.Type != corev1.EventTypeNormal {
				n.t.Logf("event: %s %s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
			}
		}
	}
}

// Label sets labels of the namespace; a nil value removes one.
func (n *Namespace) Label(labels map[string]*string) {
	n.t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.Kube.CoreV1().Namespaces().Patch(n.t.Context(), n.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// Enrol labels the namespace for the mesh, or takes the label away.
func (n *Namespace) Enrol(in bool) {
	n.t.Helper()
	var value *string
	if in {
		value = ptr.To(wellknown.DataplaneModeAmbient)
	}
	n.Label(map[string]*string{wellknown.LabelDataplaneMode: value})
}

// MustApply is Apply into this namespace, in which $NS stands for its name.
func (n *Namespace) MustApply(text string) {
	n.t.Helper()
	if err := n.Apply(n.t.Context(), n.Name, strings.ReplaceAll(text, "$NS", n.Name)); err != nil {
		n.t.Fatal(err)
	}
}

// Option changes a pod before it is made.
type Option func(*corev1.Pod)

// OnNode puts the pod on a node.
func OnNode(name string) Option {
	return func(p *corev1.Pod) { p.Spec.NodeName = name }
}

// WithLabels adds labels.
func WithLabels(labels map[string]string) Option {
	return func(p *corev1.Pod) { maps.Copy(p.Labels, labels) }
}

// WithCommand replaces the program.
func WithCommand(argv ...string) Option {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Command = argv }
}

// HostNetwork puts the pod into the node's network.
func HostNetwork(p *corev1.Pod) { p.Spec.HostNetwork = true }

// manifest is a pod that runs test/echo's server under a service account of
// its own name.
func (n *Namespace) manifest(name string, opts []Option) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: n.Name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			ServiceAccountName:            name,
			TerminationGracePeriodSeconds: ptr.To[int64](2),
			Containers: []corev1.Container{{
				Name: "echo", Image: TestImage, Command: []string{"/echo", "server", "-name", name},
				ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}},
			}},
		},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

// Account makes a service account.
func (n *Namespace) Account(name string) {
	n.t.Helper()
	_, err := n.Kube.CoreV1().ServiceAccounts(n.Name).Create(n.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		n.t.Fatal(err)
	}
}

// Create makes a pod and its service account, without waiting.
func (n *Namespace) Create(name string, opts ...Option) {
	n.t.Helper()
	n.Account(name)
	if _, err := n.Kube.CoreV1().Pods(n.Name).Create(n.t.Context(), n.manifest(name, opts), metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// Pod makes a pod and waits until it is ready.
func (n *Namespace) Pod(name string, opts ...Option) *corev1.Pod {
	n.t.Helper()
	n.Create(name, opts...)
	return n.Ready(name)
}

// Ready waits for a pod.
func (n *Namespace) Ready(name string) *corev1.Pod {
	n.t.Helper()
	var pod *corev1.Pod
	Eventually(n.t, "pod "+n.Name+"/"+name+" is ready", func(ctx context.Context) (err error) {
		if pod, err = n.Kube.CoreV1().Pods(n.Name).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		return ready(pod)
	})
	return pod
}

func ready(pod *corev1.Pod) error {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	var why []string
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil {
			why = append(why, w.Reason+": "+w.Message)
		}
	}
	return fmt.Errorf("%s is %s %s", pod.Name, pod.Status.Phase, strings.Join(why, ", "))
}

// Deployment makes a deployment of the pod, waits until it is available and
// returns its pods.
func (n *Namespace) Deployment(name string, replicas int32, opts ...Option) []corev1.Pod {
	n.t.Helper()
	n.Account(name)
	p := n.manifest(name, opts)
	_, err := n.Kube.AppsV1().Deployments(n.Name).Create(n.t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels, Annotations: p.Annotations}, Spec: p.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	var pods []corev1.Pod
	Eventually(n.t, "deployment "+n.Name+"/"+name+" is available", func(ctx context.Context) error {
		list, err := n.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		pods = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		if len(pods) != int(replicas) {
			return fmt.Errorf("%d pods of %d", len(pods), replicas)
		}
		for i := range pods {
			if err := ready(&pods[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return pods
}

// Service makes a service in front of the pods labelled app=name: HTTP on 80,
// echo on 9000, a server that speaks first on 9100.
func (n *Namespace) Service(name string) {
	n.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)},
				{Name: "tcp", Port: 9000},
				{Name: "first", Port: 9100},
			},
		},
	}
	if _, err := n.Kube.CoreV1().Services(n.Name).Create(n.t.Context(), svc, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// URL is a service's, by its full name.
func (n *Namespace) URL(service string) string {
	return "http://" + service + "." + n.Name + ".svc." + wellknown.DefaultDomain + "/"
}

// Get makes one HTTP request from a pod, on a connection of its own, and
// returns the answer.
func (n *Namespace) Get(ctx context.Context, from, url string) (string, error) {
	out, err := n.Exec(ctx, n.Name, from, "/echo", "get", "-url", url)
	return strings.TrimSpace(out), err
}

// MustGet is Get that must work, after a while.
func (n *Namespace) MustGet(from, url string) string {
	n.t.Helper()
	var out string
	Eventually(n.t, from+" gets "+url, func(ctx context.Context) (err error) {
		out, err = n.Get(ctx, from, url)
		return err
	})
	return out
}

// MustRefuse waits until a request is refused.
func (n *Namespace) MustRefuse(from, url string) error {
	n.t.Helper()
	var refusal error
	Eventually(n.t, from+" is refused at "+url, func(ctx context.Context) error {
		out, err := n.Get(ctx, from, url)
		if err == nil {
			return fmt.Errorf("it was answered: %s", out)
		}
		if ctx.Err() != nil || !strings.Contains(err.Error(), "/echo get") {
			return err
		}
		refusal = err
		return nil
	})
	return refusal
}

// Redirected waits until the node agent has announced that a pod is enrolled,
// or is not.
func (n *Namespace) Redirected(pod string, in bool) {
	n.t.Helper()
	Eventually(n.t, fmt.Sprintf("pod %s/%s enrolled: %t", n.Name, pod, in), func(ctx context.Context) error {
		p, err := n.Kube.CoreV1().Pods(n.Name).Get(ctx, pod, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := p.Annotations[wellknown.AnnotationRedirection]; (got == wellknown.RedirectionEnabled) != in {
			return fmt.Errorf("its annotation is %q", got)
		}
		return nil
	})
}

// Tunnelled waits until a request from a pod arrives at another through the
// mesh: the destination's node proxy logs it with the identity of the client.
func (n *Namespace) Tunnelled(from, url string, to *corev1.Pod) {
	n.t.Helper()
	identity := fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", wellknown.DefaultDomain, n.Name, from)
	Eventually(n.t, fmt.Sprintf("%s reaches %s as %s", from, to.Name, identity), func(ctx context.Context) error {
		since := time.Now().Add(-time.Second)
		if _, err := n.Get(ctx, from, url); err != nil {
			return err
		}
		line, err := n.access(ctx, to.Spec.NodeName, to, since, `direction="inbound"`)
		if err != nil {
			return err
		}
		if !strings.Contains(line, `src.identity="`+identity+`"`) {
			return fmt.Errorf("the connection had no such identity: %s", line)
		}
		return nil
	})
}

// access finds the newest line of a node's access log about connections to a
// pod since a moment that contains all of the texts.
func (n *Namespace) access(ctx context.Context, node string, to *corev1.Pod, since time.Time, texts ...string) (string, error) {
	zt, err := n.ZtunnelOn(ctx, node)
	if err != nil {
		return "", err
	}
	log, err := n.Logs(ctx, SystemNamespace, zt, "", since)
	if err != nil {
		return "", err
	}
	texts = append(texts, `dst.workload="`+to.Name+`"`, `dst.namespace="`+to.Namespace+`"`)
	for _, line := range slices.Backward(strings.Split(log, "\n")) {
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) }) {
			return line, nil
		}
	}
	return "", fmt.Errorf("ztunnel on %s logged no connection with %q", node, texts)
}

// Logged waits for a line of the access log about a connection to a pod, where
// that pod runs.
func (n *Namespace) Logged(to *corev1.Pod, since time.Time, texts ...string) string {
	n.t.Helper()
	return n.LoggedOn(to.Spec.NodeName, to, since, texts...)
}

// LoggedOn is Logged on any node, such as the client's.
func (n *Namespace) LoggedOn(node string, to *corev1.Pod, since time.Time, texts ...string) string {
	n.t.Helper()
	var line string
	Eventually(n.t, fmt.Sprintf("log on %s of connections to %s has %q", node, to.Name, texts), func(ctx context.Context) (err error) {
		line, err = n.access(ctx, node, to, since, texts...)
		return err
	})
	return line
}

// Load is test/echo's load client at work in a pod of its own. Its reports are
// read from its log whenever they are asked for, so that it goes on by itself
// while the API server is away.
type Load struct {
	n    *Namespace
	name string
}

// StartLoad begins to make requests at a constant rate, each connection used
// for 20 of them, and returns when the first second is over.
func (n *Namespace) StartLoad(name, url string, rate int, opts ...Option) *Load {
	n.t.Helper()
	opts = append([]Option{WithCommand("/echo", "load", "-url", url, "-rate", fmt.Sprint(rate), "-duration", "0"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = nil
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](10)
	}}, opts...)
	n.Pod(name, opts...)
	l := &Load{n: n, name: name}
	l.Seconds(1)
	return l
}

// Seconds waits until the client has reported more seconds.
func (l *Load) Seconds(more int) {
	l.n.t.Helper()
	want := -1
	Eventually(l.n.t, "reports of the load client "+l.n.Name+"/"+l.name, func(ctx context.Context) error {
		all, err := l.n.Reports(ctx, l.n.Name, l.name, time.Time{})
		if err != nil {
			return err
		}
		if want < 0 {
			want = len(all) + more
		}
		if len(all) > 0 && all[len(all)-1].Final {
			l.n.t.Fatalf("the load client %s/%s has ended", l.n.Name, l.name)
		}
		if len(all) < want {
			return fmt.Errorf("%d of %d", len(all), want)
		}
		return nil
	})
}

// Stop ends the load and returns the sum of it.
func (l *Load) Stop() traffic.Report {
	l.n.t.Helper()
	// A pod whose time is over ends like one that is deleted, and its log stays.
	pods := l.n.Kube.CoreV1().Pods(l.n.Name)
	if _, err := pods.Patch(l.n.t.Context(), l.name, types.MergePatchType, []byte(`{"spec":{"activeDeadlineSeconds":1}}`), metav1.PatchOptions{}); err != nil {
		l.n.t.Fatal(err)
	}
	var sum traffic.Report
	Eventually(l.n.t, "the load client "+l.n.Name+"/"+l.name+" ends", func(ctx context.Context) error {
		all, err := l.n.Reports(ctx, l.n.Name, l.name, time.Time{})
		if err != nil {
			return err
		}
		if len(all) == 0 || !all[len(all)-1].Final {
			return fmt.Errorf("it has made %d reports", len(all))
		}
		sum = all[len(all)-1]
		return nil
	})
	return sum
}

// Clean ends the load, of which nothing may have failed.
func (l *Load) Clean() traffic.Report {
	l.n.t.Helper()
	r := l.Stop()
	if err := r.Clean(); err != nil {
		l.n.t.Error(err)
	}
	return r
}
