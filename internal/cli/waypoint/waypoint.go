// Package waypoint has `ambit waypoint`, and `ambit waypoint-config`, which shows the
// state of a running one.
package waypoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// defaultWaypoint is the name of a waypoint that is given none.
const defaultWaypoint = "waypoint"

// waypointTimeout bounds the wait for waypoints.
const waypointTimeout = 90 * time.Second

// waypointCommands are what the commands about waypoints share.
type waypointCommands struct {
	session.AdminClient
	name, serves, revision, output string
	all, wait                      bool
	timeout                        time.Duration
}

// Command returns `ambit waypoint`.
func Command(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "waypoint",
		Short: "Run waypoints: proxies that see HTTP",
		Long: `A waypoint is a proxy of a namespace that sees HTTP: routes, policies and telemetry
of requests need one. It is a Gateway of class istio-waypoint; the control plane
runs its pods. Services and namespaces use it by the label istio.io/use-waypoint.`,
		Example: `  # a waypoint for the services of a namespace, which all of them use
  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint status -n shop`,
	}
	cmd.AddCommand(waypointGenerate(a), waypointApply(a), waypointList(a), waypointStatus(a), waypointDelete(a))
	return cmd
}

func newWaypoint(a *session.Session) *waypointCommands {
	return &waypointCommands{AdminClient: session.AdminClient{Session: a}}
}

// shape adds the flags that say what a waypoint is.
func (w *waypointCommands) shape(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.name, "name", defaultWaypoint, "name of the waypoint")
	f.StringVar(&w.serves, "for", "", "traffic that it is for: service, workload, all or none (default: service)")
	f.StringVarP(&w.revision, "revision", "r", "", "control plane that runs it, where there are several")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"service", "workload", "all", "none"}, cobra.ShellCompDirectiveNoFileComp))
}

// gateway returns the object that the flags describe.
func (w *waypointCommands) gateway(namespace string) (*gatewayv1.Gateway, error) {
	if w.name == wellknown.DataplaneModeNone {
		return nil, errors.New("--name none: the label istio.io/use-waypoint=none means that no waypoint is used; choose another name")
	}
	if problems := validation.IsDNS1035Label(w.name); len(problems) > 0 {
		return nil, fmt.Errorf("--name %q: %s", w.name, strings.Join(problems, "; "))
	}
	g := &gatewayv1.Gateway{
		TypeMeta:   metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{Name: w.name, Namespace: namespace, Labels: map[string]string{}},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: wellknown.ClassWaypoint,
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: wellknown.PortHBONE, Protocol: "HBONE"}},
		},
	}
	switch w.serves {
	case "":
	case "service", "workload", "all", "none":
		g.Labels[wellknown.LabelWaypointFor] = w.serves
	default:
		return nil, fmt.Errorf("--for %q: there are service, workload, all and none", w.serves)
	}
	if w.revision != "" {
		g.Labels[wellknown.LabelRevision] = w.revision
	}
	return g, nil
}

// plain returns a Gateway as people write it, without what an API server fills in.
func plain(g *gatewayv1.Gateway) map[string]any {
	meta := map[string]any{"name": g.Name}
	if g.Namespace != "" {
		meta["namespace"] = g.Namespace
	}
	if len(g.Labels) > 0 {
		meta["labels"] = g.Labels
	}
	listeners := []map[string]any{}
	for _, l := range g.Spec.Listeners {
		listeners = append(listeners, map[string]any{"name": l.Name, "port": l.Port, "protocol": l.Protocol})
	}
	return map[string]any{
		"apiVersion": g.APIVersion, "kind": g.Kind, "metadata": meta,
		"spec": map[string]any{"gatewayClassName": g.Spec.GatewayClassName, "listeners": listeners},
	}
}

func waypointGenerate(a *session.Session) *cobra.Command {
	w := newWaypoint(a)
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Print a waypoint as YAML, to be kept in files",
		Example: `  ambit waypoint generate -n shop
  ambit waypoint generate --for all | kubectl apply -n shop -f -`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			g, err := w.gateway(w.Namespace)
			if err != nil {
				return err
			}
			return a.Encode(w.output, plain(g))
		},
	}
	w.shape(cmd)
	cmd.Flags().StringVarP(&w.Namespace, "namespace", "n", "", "namespace (default: none is written)")
	cmd.Flags().StringVarP(&w.output, "output", "o", session.FormatYAML, "output format: yaml or json")
	return cmd
}

func waypointApply(a *session.Session) *cobra.Command {
	w := newWaypoint(a)
	var enroll, overwrite bool
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Run a waypoint in a namespace",
		Long: `Creates or changes a waypoint. Nothing uses it before a service or a namespace says
so by the label istio.io/use-waypoint; --enroll-namespace labels the namespace.`,
		Example: `  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint apply -n shop --name payments --for all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if overwrite && !enroll {
				return errors.New("--overwrite is about --enroll-namespace, which was not given")
			}
			return w.apply(cmd.Context(), enroll, overwrite)
		},
	}
	w.shape(cmd)
	w.Flags(cmd)
	w.waitFlags(cmd, "wait until its proxy is ready")
	cmd.Flags().BoolVar(&enroll, "enroll-namespace", false, "label the namespace, so that what is in it uses the waypoint")
	cmd.Flags().BoolVar(&overwrite, "overwrite", false, "replace the waypoint that the namespace uses now")
	return cmd
}

func (w *waypointCommands) waitFlags(cmd *cobra.Command, usage string) {
	cmd.Flags().BoolVarP(&w.wait, "wait", "w", false, usage)
	cmd.Flags().DurationVar(&w.timeout, "waypoint-timeout", waypointTimeout, "longest wait")
}

func (w *waypointCommands) apply(ctx context.Context, enroll, overwrite bool) error {
	site, err := w.site()
	if err != nil {
		return err
	}
	g, err := w.gateway(site.home())
	if err != nil {
		return err
	}
	labels, err := site.namespaceLabels(ctx, g.Namespace)
	if err != nil {
		return err
	}
	if used := labels[wellknown.LabelUseWaypoint]; enroll && used != "" && used != g.Name && !overwrite {
		return fmt.Errorf("namespace %s uses waypoint %s already (--overwrite replaces it)", g.Namespace, used)
	}
	if err := site.apply(ctx, g); err != nil {
		return err
	}
	if err := w.Printf("waypoint %s/%s applied\n", g.Namespace, g.Name); err != nil {
		return err
	}
	if labels[wellknown.LabelDataplaneMode] != wellknown.DataplaneModeAmbient {
		_ = w.Err.Printf("warning: namespace %s is not in the mesh: connections of its pods do not pass the waypoint (label it %s=%s)\n",
			g.Namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient)
	}
	if w.wait {
		if err := w.await(ctx, func(g2 *gatewayv1.Gateway) bool { return g2.Namespace == g.Namespace && g2.Name == g.Name }); err != nil {
			return err
		}
		if err := w.Printf("waypoint %s/%s is ready\n", g.Namespace, g.Name); err != nil {
			return err
		}
	}
	if !enroll {
		return nil
	}
	// Last, so that connections do not fail while the waypoint is not ready.
	if err := site.label(ctx, g.Namespace, map[string]*string{wellknown.LabelUseWaypoint: &g.Name, wellknown.LabelUseWaypointNamespace: nil}); err != nil {
		return err
	}
	return w.Printf("namespace %s uses waypoint %s\n", g.Namespace, g.Name)
}

// row is a waypoint with what the control plane says of it.
type waypointRow struct {
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Revision   string          `json:"revision,omitempty"`
	Traffic    string          `json:"trafficType"`
	Programmed admin.Condition `json:"programmed"`

	gateway *gatewayv1.Gateway
}

// rows returns waypoints by namespace and name: of one namespace, or of all.
func (w *waypointCommands) rows(ctx context.Context) ([]waypointRow, error) {
	site, err := w.site()
	if err != nil {
		return nil, err
	}
	namespace := site.home()
	if w.all {
		namespace = ""
	}
	list, err := site.gateways(ctx, namespace)
	if err != nil {
		return nil, err
	}
	said, _, err := live.Status(ctx, &w.AdminClient)
	if err != nil {
		return nil, err
	}
	out := []waypointRow{}
	for _, g := range list {
		if g.Spec.GatewayClassName != wellknown.ClassWaypoint {
			continue
		}
		out = append(out, waypointRow{
			Namespace: g.Namespace, Name: g.Name, Revision: g.Labels[wellknown.LabelRevision],
			Traffic: cmp.Or(g.Labels[wellknown.LabelWaypointFor], "service"), Programmed: programmed(said, g), gateway: g,
		})
	}
	slices.SortFunc(out, func(a, b waypointRow) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out, nil
}

// programmed returns the condition of that type of a Gateway.
func programmed(said []admin.Object, g *gatewayv1.Gateway) admin.Condition {
	for _, o := range said {
		if o.Kind != "Gateway" || o.Namespace != g.Namespace || o.Name != g.Name {
			continue
		}
		for _, c := range o.Conditions {
			if c.Type == status.Programmed {
				return c
			}
		}
	}
	return admin.Condition{Type: status.Programmed, Status: status.Unknown, Reason: "NotSeen", Message: "ambitd has not written a status (see `ambit proxy-status`)"}
}

func (w *waypointCommands) listFlags(cmd *cobra.Command) {
	w.Flags(cmd)
	cmd.Flags().BoolVarP(&w.all, "all-namespaces", "A", false, "waypoints of all namespaces")
	session.OutputFlag(cmd, &w.output, session.FormatTable)
}

// print prints rows as a table, with the namespace where there can be several.
func (w *waypointCommands) print(rows []waypointRow, header []string, cells func(waypointRow) []string) error {
	if w.output != session.FormatTable {
		return w.Encode(w.output, rows)
	}
	if len(rows) == 0 {
		return w.Printf("There is no waypoint here (`ambit waypoint apply` runs one; -A shows those of all namespaces).\n")
	}
	if w.all {
		header = append([]string{"NAMESPACE"}, header...)
	}
	var table [][]string
	for _, r := range rows {
		c := cells(r)
		if w.all {
			c = append([]string{r.Namespace}, c...)
		}
		table = append(table, c)
	}
	return w.Table(session.Wide, header, table)
}

func waypointList(a *session.Session) *cobra.Command {
	w := newWaypoint(a)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List waypoints",
		Example: "  ambit waypoint list -A",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := w.rows(cmd.Context())
			if err != nil {
				return err
			}
			return w.print(rows, []string{"NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"}, func(r waypointRow) []string {
				return []string{r.Name, cmp.Or(r.Revision, wellknown.DefaultRevision), r.Traffic, r.Programmed.Status}
			})
		},
	}
	w.listFlags(cmd)
	return cmd
}

func waypointStatus(a *session.Session) *cobra.Command {
	w := newWaypoint(a)
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show whether waypoints are ready, and why not",
		Example: `  ambit waypoint status -n shop
  ambit waypoint status payments -n shop --wait`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen := func(g *gatewayv1.Gateway) bool { return len(args) == 0 || g.Name == args[0] }
			var waited error
			if w.wait {
				waited = w.await(cmd.Context(), chosen)
			}
			rows, err := w.rows(cmd.Context())
			if err != nil {
				return err
			}
			rows = slices.DeleteFunc(rows, func(r waypointRow) bool { return !chosen(r.gateway) })
			if len(rows) == 0 && len(args) > 0 {
				return fmt.Errorf("there is no waypoint %q here (`ambit waypoint list -A` shows all)", args[0])
			}
			return errors.Join(w.print(rows, []string{"NAME", "STATUS", "TYPE", "REASON", "MESSAGE"}, func(r waypointRow) []string {
				return []string{r.Name, r.Programmed.Status, r.Programmed.Type, r.Programmed.Reason, r.Programmed.Message}
			}), waited)
		},
	}
	w.listFlags(cmd)
	w.waitFlags(cmd, "wait until they are ready")
	return cmd
}

// waypointLook is how often a wait looks.
const waypointLook = 250 * time.Millisecond

// await waits until the chosen waypoints are ready, and there is one.
func (w *waypointCommands) await(ctx context.Context, chosen func(*gatewayv1.Gateway) bool) error {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	for {
		rows, err := w.rows(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(r waypointRow) bool { return !chosen(r.gateway) })
		missing := slices.IndexFunc(rows, func(r waypointRow) bool { return r.Programmed.Status != status.True })
		if err == nil && len(rows) > 0 && missing < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			if missing >= 0 {
				r := rows[missing]
				return fmt.Errorf("waypoint %s/%s is not ready after %s: %s", r.Namespace, r.Name, w.timeout, r.Programmed.Message)
			}
			return fmt.Errorf("no waypoint is ready after %s", w.timeout)
		case <-time.After(waypointLook):
		}
	}
}

func waypointDelete(a *session.Session) *cobra.Command {
	w := newWaypoint(a)
	cmd := &cobra.Command{
		Use:   "delete [NAME…]",
		Short: "Delete waypoints, or all of a namespace",
		Long: `Deletes waypoints, with their pods. Connections to what uses one are refused from then
on: remove the label istio.io/use-waypoint first.`,
		Example: `  ambit waypoint delete payments -n shop
  ambit waypoint delete --all -n shop`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if w.all == (len(args) > 0) {
				return errors.New("say which waypoints: NAME…, or --all for those of the namespace")
			}
			return w.remove(cmd.Context(), args)
		},
	}
	w.Flags(cmd)
	cmd.Flags().BoolVar(&w.all, "all", false, "all waypoints of the namespace")
	cmd.Flags().StringVarP(&w.revision, "revision", "r", "", "only those that this control plane runs")
	return cmd
}

func (w *waypointCommands) remove(ctx context.Context, names []string) error {
	site, err := w.site()
	if err != nil {
		return err
	}
	list, err := site.gateways(ctx, site.home())
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, g := range list {
		if g.Spec.GatewayClassName == wellknown.ClassWaypoint && (w.revision == "" || g.Labels[wellknown.LabelRevision] == w.revision) {
			has[g.Name] = true
			if w.all {
				names = append(names, g.Name)
			}
		}
	}
	var failures []error
	for _, name := range names {
		if !has[name] {
			failures = append(failures, fmt.Errorf("there is no waypoint %s/%s (`ambit waypoint list -A` shows all)", site.home(), name))
			continue
		}
		if err := site.remove(ctx, site.home(), name); err != nil {
			failures = append(failures, err)
			continue
		}
		failures = append(failures, w.Printf("waypoint %s/%s deleted\n", site.home(), name))
	}
	return errors.Join(failures...)
}
