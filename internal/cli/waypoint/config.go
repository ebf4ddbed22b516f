package waypoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/dump"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/source"
)

// waypointConfig is `ambit waypoint-config`: where the dump comes from, which part of
// it counts, and how it is printed.
type waypointConfig struct {
	*session.Session
	session.Kube
	file, output, service string
	port                  int
	withHeaders           bool
}

var (
	routeColumns              = []string{"NAMESPACE", "ROUTE", "KIND", "RULE", "FOR", "MATCHES", "BACKENDS", "SETTINGS"}
	backendColumns            = []string{"NAMESPACE", "SERVICE", "PORT", "PROTOCOL", "ENDPOINTS", "LEFT OUT", "LIMITS"}
	waypointPolicyColumns     = []string{"NAMESPACE", "POLICY NAME", "ACTION", "RULES", "FOR"}
	waypointConnectionColumns = []string{"CLIENT", "SOURCE", "SERVICE", "PORT", "PROTOCOL", "ENDPOINT", "SINCE"}
)

// Config returns `ambit waypoint-config`.
func Config(a *session.Session) *cobra.Command {
	w := &waypointConfig{Session: a}
	cmd := &cobra.Command{
		Use:     "waypoint-config",
		Aliases: []string{"wc"},
		Short:   "Show what a waypoint knows and does",
		Long: `Shows what a pod of a waypoint knows and does: the routes and policies that it
executes, where it can send requests, and the connections that it carries.

It asks the pod that is named, as POD or POD.NAMESPACE, or a pod of the waypoint that
is named, as WAYPOINT or WAYPOINT.NAMESPACE. Without a name it asks the only waypoint
of the namespace. With -f it reads a config_dump from a file.`,
		Example: `  ambit waypoint-config routes -n shop
  ambit waypoint-config backends waypoint.shop --service web
  ambit waypoint-config policies waypoint.shop -o json
  ambit waypoint-config connections waypoint-5d9c7f-x7k2p.shop
  curl -s localhost:15000/config_dump | ambit waypoint-config all -f -`,
	}
	a.LabFlags(cmd, "lab")
	f := cmd.PersistentFlags()
	w.AddFlags(f)
	w.CompleteFlags(cmd)
	f.StringVarP(&w.file, "file", "f", "", "read a config_dump from a file instead (- is standard input)")
	f.StringVarP(&w.output, "output", "o", session.FormatShort, "output format: short (a table), json or yaml")
	f.StringVar(&w.service, "service", "", "only what is about a service, as NAME or NAME.NAMESPACE")
	f.IntVar(&w.port, "proxy-admin-port", wellknown.PortAdmin, "port of the waypoint's admin endpoint, in a cluster")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{session.FormatShort, session.FormatJSON, session.FormatYAML}, cobra.ShellCompDirectiveNoFileComp))
	cmd.AddCommand(
		w.sub("routes", "Rules of routes that the waypoint executes", w.printRoutes, "route", "r"),
		w.sub("backends", "Services that the waypoint sends to, and their endpoints", w.printBackends, "backend", "b", "cluster", "clusters", "endpoint", "endpoints"),
		w.sub("policies", "Policies that the waypoint enforces", w.printPolicies, "policy", "pol", "p"),
		w.sub("connections", "Connections that the waypoint carries", w.printConnections, "connection", "cons"),
		w.all())
	return cmd
}

func (w *waypointConfig) sub(use, short string, show func(*waypointDumps) error, aliases ...string) *cobra.Command {
	return &cobra.Command{
		Use: use + " [POD|WAYPOINT]", Aliases: aliases, Short: short, Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: w.CompleteKube(w.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := w.read(cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return show(d)
		},
	}
}

func (w *waypointConfig) table() bool {
	return w.output == session.FormatShort || w.output == session.FormatTable
}

// read gets the dump of the pod that is meant.
func (w *waypointConfig) read(cmd *cobra.Command, name string) (*waypointDumps, error) {
	switch w.output {
	case session.FormatShort, session.FormatTable, session.FormatJSON, session.FormatYAML:
	default:
		return nil, fmt.Errorf("output format %q: there are short, json and yaml", w.output)
	}
	var b []byte
	var err error
	switch w.file {
	case "":
		b, err = w.ask(cmd, name)
	case "-":
		b, err = session.ReadAll(w.In)
	default:
		b, err = os.ReadFile(w.file)
	}
	if err != nil {
		return nil, err
	}
	d := &waypointDumps{}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("this is not a config_dump of a waypoint: %w", err)
	}
	if d.Routes == nil || d.Policies == nil {
		return nil, errors.New("this is not a config_dump of a waypoint: it has no routes and policies (a ztunnel's is for `ambit ztunnel-config`)")
	}
	return d, nil
}

// ask asks the pod that the command line means.
func (w *waypointConfig) ask(cmd *cobra.Command, name string) ([]byte, error) {
	ctx := cmd.Context()
	name, namespace := LastName(strings.TrimPrefix(name, "pod/"))
	if w.InCluster(cmd, &w.Kube) {
		c, err := w.Client()
		if err != nil {
			return nil, err
		}
		namespace = cmp.Or(namespace, w.Ns(c))
		list, err := c.Kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName})
		if err != nil {
			return nil, session.Explain(fmt.Errorf("listing the pods of waypoints in namespace %s: %w", namespace, err))
		}
		pod, err := pickWaypoint(session.Running(list.Items), name, namespace)
		if err != nil {
			return nil, err
		}
		return session.AskPod(ctx, c, pod, w.port, http.MethodGet, admin.PathDump)
	}
	l, err := w.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster)", err)
	}
	namespace = cmp.Or(namespace, w.Namespace, metav1.NamespaceDefault)
	pods := live.Values(live.Objects(l.Objects(), source.Pod, namespace))
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.Labels[wellknown.LabelGatewayName] == "" || source.Ended(&p) })
	pod, err := pickWaypoint(pods, name, namespace)
	if err != nil {
		return nil, err
	}
	b, err := session.FetchIn(ctx, l, lab.InPod(pod.Namespace, pod.Name), wellknown.PortAdmin, http.MethodGet, admin.PathDump)
	if err != nil {
		err = fmt.Errorf("asking pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return b, err
}

// LastName reads NAME[.NAMESPACE]; a namespace has no dot.
func LastName(s string) (name, namespace string) {
	if i := strings.LastIndexByte(s, '.'); i > 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// pickWaypoint chooses the pod of a name, or the first of the waypoint of that name, or
// of the only waypoint there is.
func pickWaypoint(pods []corev1.Pod, name, namespace string) (*corev1.Pod, error) {
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	first := map[string]*corev1.Pod{}
	var waypoints []string
	for i := range pods {
		p := &pods[i]
		if name != "" && p.Name == name {
			return p, nil
		}
		if gw := p.Labels[wellknown.LabelGatewayName]; first[gw] == nil {
			first[gw] = p
			waypoints = append(waypoints, gw)
		}
	}
	slices.Sort(waypoints)
	switch {
	case name != "" && first[name] != nil:
		return first[name], nil
	case len(waypoints) == 0:
		return nil, fmt.Errorf("no pod of a waypoint runs in namespace %s (`ambit waypoint list -A` lists waypoints; another namespace is named with -n)", namespace)
	case name != "":
		return nil, fmt.Errorf("no pod and no waypoint %q runs in namespace %s: there are the waypoints %s", name, namespace, strings.Join(waypoints, ", "))
	case len(waypoints) > 1:
		return nil, fmt.Errorf("namespace %s has several waypoints: name one of %s", namespace, strings.Join(waypoints, ", "))
	}
	return first[waypoints[0]], nil
}

// names lists what can be given as an argument.
func (w *waypointConfig) names(ctx context.Context, c *client.Client) ([]string, error) {
	list, err := c.Kube.CoreV1().Pods(w.Ns(c)).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range list.Items {
		out = append(out, p.Labels[wellknown.LabelGatewayName], p.Name)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// about reports whether a service, as namespace/hostname, is the one that was asked for.
func (w *waypointConfig) about(service string) bool {
	if w.service == "" {
		return true
	}
	ns, host, _ := strings.Cut(service, "/")
	host, _, _ = strings.Cut(host, ":")
	want := strings.ToLower(w.service)
	short, _, _ := strings.Cut(host, ".")
	return host == want || short == want || short+"."+ns == want
}

func (w *waypointConfig) printRoutes(d *waypointDumps) error {
	list := slices.DeleteFunc(slices.Clone(d.Routes), func(r dump.Element[admin.Route]) bool { return !slices.ContainsFunc(r.V.Parents, w.about) })
	if !w.table() {
		return w.Encode(w.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, r := range list {
		rows = append(rows, []string{
			r.V.Namespace, r.V.Route, r.V.Kind, strconv.Itoa(r.V.Rule), session.OrNone(strings.Join(shortAll(r.V.Parents), ", ")),
			cmp.Or(strings.Join(r.V.Matches, " | "), "everything"), backendsText(&r.V), settingsText(&r.V),
		})
	}
	return w.Table(session.Narrow, routeColumns, rows)
}

func (w *waypointConfig) printBackends(d *waypointDumps) error {
	list := slices.DeleteFunc(slices.Clone(d.Backends), func(b dump.Element[admin.Backend]) bool { return !w.about(b.V.Namespace + "/" + b.V.Hostname) })
	if !w.table() {
		return w.Encode(w.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, b := range list {
		healthy, out := 0, 0
		for _, e := range b.V.Endpoints {
			if e.Healthy {
				healthy++
			}
			if e.LeftOut {
				out++
			}
		}
		endpoints := fmt.Sprintf("%d/%d", healthy, len(b.V.Endpoints))
		if !b.V.Known {
			endpoints = "unknown"
		}
		rows = append(rows, []string{b.V.Namespace, b.V.Hostname, strconv.Itoa(int(b.V.Port)), b.V.Protocol, endpoints, strconv.Itoa(out), limitsText(b.V.Limits)})
	}
	return w.Table(session.Narrow, backendColumns, rows)
}

func (w *waypointConfig) printPolicies(d *waypointDumps) error {
	list := slices.DeleteFunc(slices.Clone(d.Policies), func(p dump.Element[admin.RequestPolicy]) bool {
		return !slices.ContainsFunc(p.V.For, func(s string) bool { return s == "*" || w.about(s) })
	})
	if !w.table() {
		return w.Encode(w.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		ns, name, _ := strings.Cut(p.V.Policy, "/")
		action := p.V.Action
		if p.V.Provider != "" {
			action += ": asks " + p.V.Provider
		}
		if p.V.DryRun {
			action += " (dry run)"
		}
		rules := strconv.Itoa(p.V.Rules)
		if p.V.Error != "" {
			rules = "not enforceable: " + p.V.Error
		}
		rows = append(rows, []string{ns, name, action, rules, strings.Join(shortAll(p.V.For), ", ")})
	}
	return w.Table(session.Narrow, waypointPolicyColumns, rows)
}

func (w *waypointConfig) printConnections(d *waypointDumps) error {
	list := slices.DeleteFunc(slices.Clone(d.Connections), func(c dump.Element[admin.GatewayConnection]) bool { return !w.about(c.V.Called) })
	if !w.table() {
		return w.Encode(w.output, list)
	}
	rows := make([][]string, 0, len(list))
	for _, c := range list {
		rows = append(rows, []string{
			cmp.Or(c.V.Client, c.V.Identity), c.V.Source, short(c.V.Called), strconv.Itoa(int(c.V.Port)), session.OrNone(c.V.Protocol), session.OrNone(c.V.Endpoint), c.V.Since.Format(time.RFC3339),
		})
	}
	err := w.Table(session.Narrow, waypointConnectionColumns, rows)
	if d.Omitted > 0 {
		err = errors.Join(err, w.Printf("… and %d more\n", d.Omitted))
	}
	return err
}

func (w *waypointConfig) all() *cobra.Command {
	sections := []struct {
		title string
		print func(*waypointDumps) error
	}{{"Routes", w.printRoutes}, {"Backends", w.printBackends}, {"Policies", w.printPolicies}, {"Connections", w.printConnections}}
	cmd := w.sub("all", "All of it", func(d *waypointDumps) error {
		if !w.table() {
			return w.Encode(w.output, d)
		}
		var err error
		for i, s := range sections {
			if i > 0 {
				err = errors.Join(err, w.Printf("\n"))
			}
			if w.withHeaders {
				err = errors.Join(err, w.Printf("%s:\n", s.title))
			}
			err = errors.Join(err, s.print(d))
		}
		return err
	})
	cmd.Flags().BoolVar(&w.withHeaders, "with-headers", false, "a title above every table")
	return cmd
}
