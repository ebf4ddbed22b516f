package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/live"
	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source"
)

// bugReport is `ambit bug-report`.
type bugReport struct {
	*session.Session
	session.Kube
	output       string
	since        time.Duration
	maxMebibytes int64
	dryRun       bool
}

// Bounds of one entry of the archive.
const (
	maxLog   = 8 << 20  // bytes
	maxEntry = 32 << 20 // bytes
	tailLog  = 50_000   // lines
)

func bugReportCommand(a *session.Session) *cobra.Command {
	b := &bugReport{Session: a}
	cmd := &cobra.Command{
		Use:   "bug-report",
		Short: "Collect into an archive what somebody needs to find a fault",
		Long: `Collects into one archive (tar.gz) what somebody needs who looks for a fault: versions,
the logs of ambitd, ambit-cni, ztunnel and the waypoints, the state of each, the
mesh's objects with their status, nodes, namespaces and events.

Secrets are never read. Tokens, private keys and the values of variables that look
like secrets are taken out of everything else; ConfigMaps are not included. Names,
addresses, policies and public certificates of the cluster are in it: look through
it before you give it away. --dry-run shows what it would hold.`,
		Example: `  ambit bug-report
  ambit bug-report --dry-run
  ambit bug-report --since 30m --output /tmp/mesh.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.run(cmd.Context()) },
	}
	f := cmd.Flags()
	b.AddFlags(f)
	b.CompleteFlags(cmd)
	f.Lookup("namespace").Usage = "only waypoints, objects and events of a namespace, beside the mesh's own (default: all)"
	f.StringVar(&b.output, "output", "", "file to write (default: ambit-bug-report-TIME.tar.gz)")
	f.DurationVar(&b.since, "since", 24*time.Hour, "how far back logs go")
	f.Int64Var(&b.maxMebibytes, "max-size", 200, "bound for the whole archive before compression, in MiB; what is beyond is left out and named")
	f.BoolVar(&b.dryRun, "dry-run", false, "only list what would be collected")
	return cmd
}

// entry is one file of the archive.
type entry struct {
	path string
	// get reads it; more than limit bytes are an error, or left out and named.
	get func(ctx context.Context, limit int64) ([]byte, error)
}

func (b *bugReport) run(ctx context.Context) error {
	c, err := b.Client()
	if err != nil {
		return err
	}
	entries, err := b.entries(ctx, c)
	if err != nil {
		return err
	}
	if b.dryRun {
		for _, e := range entries {
			if err := b.Printf("%s\n", e.path); err != nil {
				return err
			}
		}
		return nil
	}
	if b.output == "" {
		b.output = "ambit-bug-report-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	f, err := os.OpenFile(b.output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%w (another file is named with --output)", err)
	}
	missing, err := archive(ctx, f, entries, b.maxMebibytes<<20, func(i int, e entry) {
		_ = b.Err.Printf("[%d/%d] %s\n", i+1, len(entries), e.path)
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(b.output))
	}
	st, err := os.Stat(b.output)
	if err != nil {
		return err
	}
	err = b.Printf("%s: %d files, %s. Look through it before you give it away: `tar tzf %s` lists it.\n", b.output, len(entries)-missing, session.Mebibytes(st.Size()), b.output)
	if missing > 0 {
		err = errors.Join(err, b.Printf("%d could not be collected; errors.txt in it says why.\n", missing))
	}
	return err
}

// archive writes entries, without secrets and up to a bound, and last what is
// missing and why. It returns how many are.
func archive(ctx context.Context, to io.Writer, entries []entry, bound int64, progress func(int, entry)) (missing int, err error) {
	z := gzip.NewWriter(to)
	t := tar.NewWriter(z)
	var problems bytes.Buffer
	var total int64
	add := func(name string, text []byte) error {
		h := &tar.Header{Name: path.Join("ambit-bug-report", name), Mode: 0o600, Size: int64(len(text)), ModTime: time.Now().Truncate(time.Second)}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err := t.Write(text)
		return err
	}
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return missing, err
		}
		progress(i, e)
		text, err := e.collect(ctx, bound-total)
		if errors.Is(err, session.ErrTooMuch) && bound-total < maxEntry {
			err = fmt.Errorf("left out: the archive would be larger than %d MiB (--max-size)", bound>>20)
		}
		if err != nil {
			missing++
			_, _ = fmt.Fprintf(&problems, "%s: %v\n", e.path, err)
			continue
		}
		total += int64(len(text))
		if err := add(e.path, text); err != nil {
			return missing, err
		}
	}
	if problems.Len() > 0 {
		err = add("errors.txt", redact(problems.Bytes()))
	}
	return missing, errors.Join(err, t.Close(), z.Close())
}

// collect reads an entry, without secrets, of at most as many bytes as are left.
func (e entry) collect(ctx context.Context, left int64) ([]byte, error) {
	limit := min(left, maxEntry)
	if limit <= 0 {
		return nil, session.ErrTooMuch
	}
	text, err := e.get(ctx, limit)
	if text = redact(text); err == nil && int64(len(text)) > limit {
		err = session.TooMuch(limit)
	}
	return text, err
}

// entries lists what there is to collect, without collecting it.
func (b *bugReport) entries(ctx context.Context, c *client.Client) ([]entry, error) {
	out := []entry{
		{"version.yaml", func(ctx context.Context, _ int64) ([]byte, error) {
			v := versions{Client: version.Get()}
			err := remoteVersions(ctx, b.Session, &b.Kube, &v)
			y, _ := yaml.Marshal(v)
			return y, err
		}},
		{"kubernetes-version.json", func(ctx context.Context, _ int64) ([]byte, error) {
			return c.Kube.CoreV1().RESTClient().Get().AbsPath("/version").SetHeader("Accept", "application/json").Do(ctx).Raw()
		}},
	}
	for _, p := range []session.Part{session.PartAmbitd, session.PartAgent, session.PartZtunnel} {
		pods, err := b.PodsOf(ctx, c, p)
		if err != nil {
			return nil, err
		}
		for i := range pods {
			out = append(out, b.ofPod(c, p, &pods[i])...)
		}
	}
	out = append(out, b.waypoints(ctx, c)...)
	return append(out, b.objects(c)...), nil
}

// waypoints lists what there is of the waypoints' pods. A user who may not list them
// gets the rest of the archive.
func (b *bugReport) waypoints(ctx context.Context, c *client.Client) (out []entry) {
	list, err := c.Kube.CoreV1().Pods(b.Namespace).List(ctx, metav1.ListOptions{LabelSelector: wellknown.LabelGatewayName})
	if err != nil {
		err = session.Explain(fmt.Errorf("listing the pods of waypoints: %w", err))
		return []entry{{"waypoint", func(context.Context, int64) ([]byte, error) { return nil, err }}}
	}
	for i := range list.Items {
		pod := &list.Items[i]
		p := session.Part{Name: path.Join("waypoint", pod.Namespace), Admin: wellknown.PortAdmin}
		out = append(out, b.ofPod(c, p, pod)...)
	}
	return out
}

// endpointsOf are the debug endpoints of a part of the mesh, by port.
func endpointsOf(p session.Part) map[string]int {
	switch p.Name {
	case session.PartAmbitd.Name:
		return map[string]int{admin.PathFollowers: p.Admin, admin.PathStatus: p.Admin, admin.PathProblems: p.Admin, admin.PathResources: p.Admin, admin.PathAuthority: p.Admin, "/metrics": monitor(p)}
	case session.PartAgent.Name:
		return map[string]int{admin.PathPods: p.Admin, "/metrics": monitor(p)}
	}
	return map[string]int{admin.PathDump: p.Admin, "/metrics": monitor(p)}
}

func (b *bugReport) ofPod(c *client.Client, p session.Part, pod *corev1.Pod) []entry {
	dir := path.Join(p.Name, pod.Name)
	out := []entry{}
	for _, container := range pod.Spec.Containers {
		out = append(out, entry{path.Join(dir, container.Name+".log"), b.log(c, pod, container.Name, false)})
		for _, s := range pod.Status.ContainerStatuses {
			if s.Name == container.Name && s.RestartCount > 0 {
				out = append(out, entry{path.Join(dir, container.Name+".previous.log"), b.log(c, pod, container.Name, true)})
			}
		}
	}
	if pod.Status.Phase != corev1.PodRunning {
		return out
	}
	endpoints := endpointsOf(p)
	for _, url := range slices.Sorted(maps.Keys(endpoints)) {
		name := strings.ReplaceAll(strings.Trim(url, "/"), "/", "_")
		out = append(out, entry{path.Join(dir, name), func(ctx context.Context, limit int64) ([]byte, error) {
			return session.AskPodUpTo(ctx, c, pod, endpoints[url], http.MethodGet, url, limit)
		}})
	}
	return out
}

func (b *bugReport) log(c *client.Client, pod *corev1.Pod, container string, previous bool) func(context.Context, int64) ([]byte, error) {
	seconds, lines := int64(b.since.Seconds()), int64(tailLog)
	return func(ctx context.Context, limit int64) ([]byte, error) {
		limit = min(limit, maxLog)
		opts := &corev1.PodLogOptions{Container: container, Previous: previous, SinceSeconds: &seconds, TailLines: &lines, LimitBytes: &limit, Timestamps: true}
		ctx, cancel := context.WithTimeout(ctx, session.AskTimeout)
		defer cancel()
		r, err := c.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, opts).Stream(ctx)
		if err != nil {
			return nil, session.Explain(err)
		}
		defer r.Close() //nolint:errcheck // read to the end
		return io.ReadAll(io.LimitReader(r, limit))
	}
}

// collected are the kinds whose objects go into the archive. Secrets are not
// among them, and must never be.
var collected = []struct {
	gvr        schema.GroupVersionResource
	systemOnly bool // only of the mesh's own namespace
}{
	{schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, false},
	{schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, false},
	{schema.GroupVersionResource{Version: "v1", Resource: "events"}, false},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, false},
	{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, true},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, true},
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}, true},
	{schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, true},
	{schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}, false},
	{schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}, false},
}

var clusterScoped = map[string]bool{"nodes": true, "namespaces": true, "validatingwebhookconfigurations": true}

func (b *bugReport) objects(c *client.Client) []entry {
	var out []entry
	for _, k := range collected {
		ns := b.Namespace
		switch {
		case clusterScoped[k.gvr.Resource]:
			ns = ""
		case k.systemOnly:
			ns = b.IstioNamespace
		}
		out = append(out, entry{path.Join("objects", k.gvr.Resource+".yaml"), func(ctx context.Context, limit int64) ([]byte, error) {
			return listYAML(limit, func(f func(*unstructured.Unstructured)) error { return live.EachOf(ctx, c, k.gvr, ns, f) })
		}})
	}
	for _, d := range live.Described() {
		if d == source.Service.Kind {
			continue
		}
		out = append(out, entry{path.Join("objects", d.Plural+".yaml"), func(ctx context.Context, limit int64) ([]byte, error) {
			return listYAML(limit, func(f func(*unstructured.Unstructured)) error { return live.EachOfKind(ctx, c, d, b.Namespace, f) })
		}})
	}
	return out
}

// listYAML writes objects one after the other, as many as fit.
func listYAML(limit int64, each func(func(*unstructured.Unstructured)) error) ([]byte, error) {
	var out bytes.Buffer
	left := 0
	err := each(func(u *unstructured.Unstructured) {
		redactObject(u)
		y, err := yaml.Marshal(u.Object)
		if err != nil || int64(out.Len()+len(y)) > limit-(1<<10) {
			left++
			return
		}
		out.WriteString("---\n")
		out.Write(y)
	})
	if left > 0 {
		_, _ = fmt.Fprintf(&out, "# %d more objects are left out\n", left)
	}
	return out.Bytes(), err
}
