// Package dashboard has the commands of `ambit dashboard`: they open the pages of programs
// that observe the mesh, and write the boards and alert rules that come with it.
package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/portforward"
)

// page is a program with a user interface that others install.
type page struct {
	name, title string
	selector    string // of its pods
	port        int
}

var pages = []page{
	{"grafana", "Grafana", "app.kubernetes.io/name=grafana", 3000},
	{"prometheus", "Prometheus", "app.kubernetes.io/name=prometheus", 9090},
	{"kiali", "Kiali", "app=kiali", 20001},
	{"jaeger", "Jaeger", "app=jaeger", 16686},
}

// Command returns `ambit dashboard`.
func Command(a *session.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "dashboard",
		Aliases: []string{"dash", "d"},
		Short:   "Open Grafana and other pages of the cluster; write boards and alert rules of the mesh",
		Long: `Opens pages of programs that run in the cluster, through the API server: no Service of
them has to be reachable. And writes what comes with the mesh for them: boards for
Grafana, and alert rules for Prometheus.

To have boards and rules in the cluster:

  ambit install --set components.observability.enabled=true \
    --set values.observability.rules.enabled=true`,
		Example: `  ambit dashboard grafana
  ambit dashboard prometheus -n monitoring --browser=false
  ambit dashboard boards --dir boards
  ambit dashboard rules > ambit-rules.yaml`,
	}
	for _, p := range pages {
		cmd.AddCommand(openCommand(a, p))
	}
	cmd.AddCommand(boardsCommand(a), rulesCommand(a))
	return cmd
}

// opener forwards a port of this machine to a page.
type opener struct {
	*session.Session
	session.Kube
	page

	address  string
	local    int
	selector string
	browser  bool
}

func openCommand(a *session.Session, p page) *cobra.Command {
	o := &opener{Session: a, page: p}
	cmd := &cobra.Command{
		Use:   p.name,
		Short: "Open " + p.title,
		Long: fmt.Sprintf(`Forwards a port of this machine to %s (port %d of a pod with the label
%s), and opens it in a browser. It is looked for in the mesh's
namespace, then in all. Ctrl-C ends it.`, p.title, p.port, p.selector),
		Example: fmt.Sprintf("  ambit dashboard %[1]s\n  ambit dashboard %[1]s -n monitoring --port 8000 --browser=false", p.name),
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	o.AddFlags(f)
	o.CompleteFlags(cmd)
	f.Lookup("namespace").Usage = "namespace of " + p.title + " (default: the mesh's own, then all)"
	f.StringVar(&o.address, "address", "localhost", "address of this machine to listen on")
	f.IntVarP(&o.local, "port", "p", 0, fmt.Sprintf("port of this machine (default: %d, or any when that is taken)", p.port))
	f.StringVarP(&o.selector, "selector", "l", p.selector, "label of the pods of "+p.title)
	f.BoolVar(&o.browser, "browser", true, "open the page in a browser")
	return cmd
}

func (o *opener) run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := o.Client()
	if err != nil {
		return err
	}
	pod, err := o.find(ctx, c)
	if err != nil {
		return err
	}
	l, err := o.listen(ctx)
	if err != nil {
		return err
	}
	url := "http://" + net.JoinHostPort(o.address, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	if err := o.Printf("%s is at %s (pod %s/%s). Ctrl-C ends it.\n", o.title, url, pod.Namespace, pod.Name); err != nil {
		return errors.Join(err, l.Close())
	}
	if o.browser {
		if err := browse(ctx, url); err != nil {
			_ = o.Err.Printf("no browser was opened: %v (--browser=false leaves it out)\n", err)
		}
	}
	return forward(ctx, l, func(ctx context.Context) (net.Conn, error) {
		conn, err := portforward.Dial(ctx, c, pod.Namespace, pod.Name, o.port)
		if err == nil {
			return conn, nil
		}
		// The pod may have been replaced.
		next, again := o.find(ctx, c)
		if again != nil || next.Name == pod.Name {
			return nil, session.Explain(err)
		}
		return portforward.Dial(ctx, c, next.Namespace, next.Name, o.port)
	}, func(err error) { _ = o.Err.Printf("a connection failed: %v\n", err) })
}

// find returns a pod of the page that runs, a ready one first.
func (o *opener) find(ctx context.Context, c *client.Client) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, session.AskTimeout)
	defer cancel()
	in := []string{o.IstioNamespace, metav1.NamespaceAll}
	if o.Namespace != "" {
		in = []string{o.Namespace}
	}
	for _, ns := range in {
		list, err := c.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: o.selector})
		if err != nil {
			return nil, session.Explain(fmt.Errorf("listing the pods of %s: %w", o.title, err))
		}
		up := session.Running(list.Items)
		slices.SortFunc(up, func(a, b corev1.Pod) int {
			return cmp.Or(ready(&b)-ready(&a), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
		})
		if len(up) > 0 {
			return &up[0], nil
		}
	}
	where := "in any namespace"
	if o.Namespace != "" {
		where = "in namespace " + o.Namespace
	}
	return nil, fmt.Errorf("no running pod of %s (%s) %s: install it, or name its namespace with -n and its label with -l", o.title, o.selector, where)
}

func ready(p *corev1.Pod) int {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return 1
		}
	}
	return 0
}

// listen listens on the port of the page, or any other when no port was chosen.
func (o *opener) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(o.address, strconv.Itoa(cmp.Or(o.local, o.port))))
	if err != nil && o.local == 0 {
		l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(o.address, "0"))
	}
	if err != nil {
		return nil, fmt.Errorf("listening: %w (choose another with --port and --address)", err)
	}
	return l, nil
}
