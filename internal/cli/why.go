package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/next"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/cli/waypoint"
	"github.com/ambit-mesh/ambit/internal/cli/why"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/printer"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/source"
)

// whyQuestion is one run of `ambit why`.
type whyQuestion struct {
	*session.Session
	session.Kube
	call    why.Call
	headers []string
	port    uint16
	output  string
}

// Exit codes of `ambit why`.
const (
	codeRefused = 1
	codeFailed  = 2
)

// failedCode is an annotation of commands whose own failures end the program with
// codeFailed.
const failedCode = "failed"

func whyCommand(a *session.Session) *cobra.Command {
	w := &whyQuestion{Session: a}
	cmd := &cobra.Command{
		Use:   "why SOURCE DESTINATION",
		Short: "Explain what would happen to a connection or a request",
		Long: `Explains what the mesh would do with a connection or a request, without sending it:
which proxy carries it, by which route, policy and endpoint, and who refuses it.

The proxies on the way answer, one after the other, each from its own state and with
the code that decides about traffic: the node proxy of the client, the waypoint if
there is one, the node proxy of the destination. A star marks what decides.

SOURCE is a pod, as NAME.NAMESPACE or pod/NAME.NAMESPACE, or a service account, as
sa/NAME.NAMESPACE: then one of its pods is taken.
DESTINATION is a name as the pod calls it (web, web.shop), svc/NAME.NAMESPACE,
pod/NAME.NAMESPACE or an address, each with :PORT where needed, or a URL.

It is about a request of HTTP if the destination is an http:// URL, or with --method,
--path, --host or --header, or if the port declares HTTP; else about a connection.

It ends with code 0 if all of them allow it, 1 if one refuses, and 2 if there is no
answer.`,
		Example: `  ambit why client.shop web.shop
  ambit why pod/client.shop http://web.shop/admin --method POST --header x-role=admin
  ambit why sa/client.shop svc/web.shop:80 -o json
  ambit why client.shop pod/web-5d9c7f.shop:8080
  ambit why client.shop 10.96.0.16:5432 --lab demo`,
		Args: cobra.ExactArgs(2),

		ValidArgsFunction: cobra.NoFileCompletions,
		Annotations:       map[string]string{failedCode: ""},
		RunE:              w.run,
	}
	a.LabFlags(cmd, "lab")
	f := cmd.Flags()
	w.AddFlags(f)
	w.CompleteFlags(cmd)
	f.StringVar(&w.call.Method, "method", "", "method of the request (default GET)")
	f.StringVar(&w.call.Path, "path", "", "path and query of the request (default /)")
	f.StringVar(&w.call.Host, "host", "", "host of the request (default: the destination as it is written)")
	f.StringArrayVar(&w.headers, "header", nil, "header of the request, as NAME=VALUE; can be repeated")
	f.Uint16Var(&w.port, "port", 0, "port of the destination (default: the only one of the service)")
	f.BoolVar(&w.call.TCP, "tcp", false, "about a connection that carries no HTTP")
	f.StringVar(&w.call.SNI, "sni", "", "about a connection of TLS whose client wants this name")
	session.OutputFlag(cmd, &w.output, session.FormatTable)
	return cmd
}

func (w *whyQuestion) run(cmd *cobra.Command, args []string) error {
	switch w.output {
	case session.FormatTable, session.FormatJSON, session.FormatYAML:
	default:
		return fmt.Errorf("output format %q: there are table, json and yaml", w.output)
	}
	call, err := w.parse(args[1])
	if err != nil {
		return err
	}
	m, err := w.mesh(cmd)
	if err != nil {
		return err
	}
	from, err := w.source(cmd.Context(), m, args[0])
	if err != nil {
		return err
	}
	r, err := why.Follow(cmd.Context(), m, from, call)
	if err != nil {
		return session.Explain(err)
	}
	advise(r, m.typing())
	if w.output == session.FormatTable {
		err = w.Printf("%s", printer.Block(r.Text()))
	} else {
		err = w.Encode(w.output, r)
	}
	if err == nil && !r.Allowed {
		err = session.CodeError(codeRefused)
	}
	return err
}

// parse brings the destination and the flags together.
func (w *whyQuestion) parse(to string) (why.Call, error) {
	c, err := why.ParseCall(to)
	if err != nil {
		return c, err
	}
	if w.port != 0 {
		if c.Scheme == "" && c.Port != 0 && c.Port != w.port {
			return c, fmt.Errorf("--port %d: the destination %q has a port already", w.port, to)
		}
		c.Port = w.port
	}
	if w.call.Path != "" {
		if c.Path != "" && c.Path != "/" {
			return c, fmt.Errorf("--path %q: the destination %q has a path already", w.call.Path, to)
		}
		c.Path = w.call.Path
	}
	c.Method, c.Host, c.TCP = w.call.Method, w.call.Host, w.call.TCP || w.call.SNI != ""
	c.SNI = cmp.Or(w.call.SNI, c.SNI)
	for _, h := range w.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return c, fmt.Errorf("--header %q is not NAME=VALUE", h)
		}
		if strings.EqualFold(name, "host") {
			return c, errors.New("--header host: write --host")
		}
		c.Headers = append(c.Headers, verdict.Header{Name: strings.ToLower(name), Value: value})
	}
	if c.TCP && (c.Method != "" || c.Path != "" || c.Host != "" || len(c.Headers) > 0) {
		return c, errors.New("--tcp and --sni are about a connection without HTTP: --method, --path, --host, --header and URLs are about a request")
	}
	return c, nil
}

// whyMesh is where the proxies are: a lab or a cluster.
type whyMesh interface {
	why.Mesh
	// pods lists those of a namespace.
	pods(ctx context.Context, namespace string) ([]corev1.Pod, error)
	home() string
	typing() next.Commands
}

func (w *whyQuestion) mesh(cmd *cobra.Command) (whyMesh, error) {
	if w.InCluster(cmd, &w.Kube) {
		c, err := w.Client()
		if err != nil {
			return nil, err
		}
		return &whyCluster{Kube: &w.Kube, c: c}, nil
	}
	l, err := w.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	return &whyLab{lab: l, namespace: w.Namespace, says: next.Lab{Name: w.NameArg("name"), Flag: w.NameArg("lab")}}, nil
}

// source finds the pod that connects.
func (w *whyQuestion) source(ctx context.Context, m whyMesh, text string) (why.Pod, error) {
	kind, name, qualified := strings.Cut(text, "/")
	if !qualified {
		kind, name = "pod", text
	}
	namespace := m.home()
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		name, namespace = name[:i], name[i+1:]
	}
	account := false
	switch kind {
	case "pod", "pods", "po":
	case "sa", "serviceaccount", "serviceaccounts":
		account = true
	default:
		return why.Pod{}, fmt.Errorf("source %q: there are pod/NAME.NAMESPACE and sa/NAME.NAMESPACE", text)
	}
	pods, err := m.pods(ctx, namespace)
	if err != nil {
		return why.Pod{}, err
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := range pods {
		p := &pods[i]
		is := p.Name == name
		if account {
			has, ok := source.Account(p)
			is = ok && has == name && !source.Ended(p) && p.Spec.NodeName != ""
		}
		if !is {
			continue
		}
		if p.Spec.NodeName == "" {
			return why.Pod{}, fmt.Errorf("pod %s/%s runs on no node yet", namespace, p.Name)
		}
		return why.Pod{Namespace: namespace, Name: p.Name, Node: p.Spec.NodeName}, nil
	}
	what := "pod " + namespace + "/" + name
	if account {
		what = "running pod of service account " + namespace + "/" + name
	}
	return why.Pod{}, fmt.Errorf("source %q: there is no %s (`%s` lists pods)", text, what, m.typing().Pods(namespace, ""))
}

// asked reads the answer of a proxy.
func asked(b []byte, err error) (*verdict.Verdict, error) {
	var refused *session.HTTPError
	if errors.As(err, &refused) {
		switch {
		case strings.Contains(refused.Said, "page not found"):
			return nil, errors.New("its version does not know " + verdict.Path + " (`ambit version` shows the versions)")
		default:
			said := refused.Said
			for _, e := range []error{verdict.ErrUnknown, verdict.ErrQuestion} {
				said = strings.TrimPrefix(said, e.Error()+": ")
			}
			return nil, errors.New(said)
		}
	}
	if err != nil {
		return nil, err
	}
	v := &verdict.Verdict{}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("its answer cannot be read: %w", err)
	}
	return v, nil
}

func questionPath(q *verdict.Question) string { return verdict.Path + "?" + q.Values().Encode() }

type whyLab struct {
	lab       *lab.Lab
	namespace string
	says      next.Lab
	nodes     []string
}

func (m *whyLab) home() string          { return cmp.Or(m.namespace, metav1.NamespaceDefault) }
func (m *whyLab) typing() next.Commands { return m.says }

func (m *whyLab) pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	st, err := m.lab.Status(ctx)
	if err != nil {
		return nil, err
	}
	pods := live.Values(live.Objects(m.lab.Objects(), source.Pod, namespace))
	// A pod that the lab made itself may not be written down.
	for _, p := range st.Pods {
		if p.Namespace == namespace && !slices.ContainsFunc(pods, func(o corev1.Pod) bool { return o.Name == p.Name }) {
			pods = append(pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.Name}, Spec: corev1.PodSpec{NodeName: p.Node}})
		}
	}
	return pods, nil
}

func (m *whyLab) Node(ctx context.Context, node string, q verdict.Question) (*verdict.Verdict, string, error) {
	if m.nodes == nil {
		st, err := m.lab.Status(ctx)
		if err != nil {
			return nil, "", err
		}
		if m.nodes = session.NodeNames(st); !st.Mesh {
			return nil, "", errors.New("this lab was started with --plaintext: it has no proxies")
		}
	}
	if !slices.Contains(m.nodes, node) {
		return nil, "", fmt.Errorf("no node %q in this lab", node)
	}
	v, err := asked(session.FetchIn(ctx, m.lab, lab.InZtunnel(node), wellknown.PortAdmin, http.MethodGet, questionPath(&q)))
	return v, session.PartZtunnel.Name + "/" + node, err
}

func (m *whyLab) Waypoint(ctx context.Context, namespace, name string, q verdict.Question) (*verdict.Verdict, string, error) {
	v, err := asked(session.FetchIn(ctx, m.lab, lab.InPod(namespace, name), wellknown.PortAdmin, http.MethodGet, questionPath(&q)))
	return v, "waypoint " + namespace + "/" + name, err
}

type whyCluster struct {
	*session.Kube
	c        *client.Client
	ztunnels []corev1.Pod
}

func (m *whyCluster) home() string          { return m.Ns(m.c) }
func (m *whyCluster) typing() next.Commands { return next.Kubectl{Root: m.IstioNamespace} }

func (m *whyCluster) pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	list, err := m.c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, session.Explain(err)
	}
	return list.Items, nil
}

func (m *whyCluster) Node(ctx context.Context, node string, q verdict.Question) (*verdict.Verdict, string, error) {
	if m.ztunnels == nil {
		pods, err := m.PodsOf(ctx, m.c, session.PartZtunnel)
		if err != nil {
			return nil, "", err
		}
		if m.ztunnels = session.Running(pods); len(m.ztunnels) == 0 {
			return nil, "", m.Missing(session.PartZtunnel)
		}
	}
	pod, err := session.PickZtunnel(m.ztunnels, "", node)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", why.ErrNoProxy, err)
	}
	v, err := asked(session.AskPod(ctx, m.c, pod, session.PartZtunnel.Admin, http.MethodGet, questionPath(&q)))
	return v, pod.Name + "." + pod.Namespace, err
}

func (m *whyCluster) Waypoint(ctx context.Context, namespace, name string, q verdict.Question) (*verdict.Verdict, string, error) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	v, err := asked(session.AskPod(ctx, m.c, pod, wellknown.PortAdmin, http.MethodGet, questionPath(&q)))
	return v, "waypoint " + namespace + "/" + name, err
}

// advise adds what to do next.
func advise(r *why.Report, t next.Commands) {
	last := r.Last()
	if r.Allowed {
		if n := last.Next; n != nil && n.To == verdict.ToProgram {
			r.Next = "if it fails nevertheless, no proxy has refused it: see the program of the pod, and what the proxies log"
			r.Command = "ambit describe pod " + n.Name + " -n " + n.Namespace + t.Also()
		}
		return
	}
	why, info := r.Info()
	r.Next = info.Next
	pod, service, gateway := "", "", ""
	for _, h := range r.Hops {
		for _, s := range h.Steps {
			if name, ok := strings.CutPrefix(s.Object, "Pod "); ok && h.Role != verdict.RoleWaypoint {
				pod = name
			}
			if name, ok := strings.CutPrefix(s.Object, "Service "); ok {
				service = name
			}
			if name, ok := strings.CutPrefix(s.Object, "Gateway "); ok && s.Step == verdict.StepWaypoint {
				gateway = name
			}
		}
	}
	describe := func(kind, name string) string {
		ns, name, _ := strings.Cut(name, "/")
		return "ambit describe " + kind + " " + name + " -n " + ns + t.Also()
	}
	inspect := func(part string) string {
		_, name, _ := strings.Cut(last.Proxy, " ")
		if gateway != "" {
			name = gateway
		}
		ns, name, _ := strings.Cut(name, "/")
		return "ambit waypoint-config " + part + " " + name + "." + ns + t.Also()
	}
	switch first := &r.Hops[0]; {
	case !first.Captured && last.Role == verdict.RoleDestination && why != reason.ConnectFailure:
		// Only pods of the mesh have an identity, and pass waypoints.
		_, ns := waypoint.LastName(r.From)
		r.Next = "bring the client into the mesh: it connects without an identity"
		r.Command = t.Enrol(ns)
	case last.Role == verdict.RoleWaypoint && (why == reason.NoRoute || why == reason.NoBackend):
		r.Command = inspect("routes")
	case last.Role == verdict.RoleWaypoint && slices.Contains([]reason.Reason{reason.PolicyDenied, reason.NotAllowed, reason.PolicyUnsupported}, why):
		r.Command = inspect("policies")
		if why == reason.PolicyDenied {
			r.Next = "see the named policy, and what else the waypoint enforces"
		}
	case (why == reason.NoHealthyUpstream || why == reason.WaypointUnavailable) && service != "":
		r.Command = describe("service", service)
	case pod != "" && last.Role != verdict.RoleWaypoint:
		r.Command = describe("pod", pod)
	}
}
