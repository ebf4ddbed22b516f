package dashboard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/portforward/portforwardtest"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) {
	// It waits on a timer after the end of a connection.
	leak.Main(m, "github.com/moby/spdystream.(*Connection).shutdown")
}

// output collects what a command prints, and shows its first line.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first chan string
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.text.Len() > 0
	o.text.Write(b)
	if !before {
		o.first <- string(b)
	}
	return len(b), nil
}

func pod(namespace, name string, phase corev1.PodPhase, isReady bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app.kubernetes.io/name": "grafana"}}}
	p.Status.Phase = phase
	if isReady {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// cluster serves pods of Grafana, of which one answers at port 3000, and returns a kubeconfig.
func cluster(t *testing.T) string {
	api := kubetest.Start(t, pod("istio-system", "ended", corev1.PodSucceeded, false), pod("monitoring", "grafana-a", corev1.PodRunning, false), pod("monitoring", "grafana-b", corev1.PodRunning, true))
	to, err := url.Parse(api.Client().Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	transport := &http.Transport{}
	proxy.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	grafana := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "board of "+r.URL.Path) }))
	t.Cleanup(grafana.Close)
	front := httptest.NewServer(&portforwardtest.Handler{Next: proxy, Dial: func(ctx context.Context, namespace, name string, port int) (net.Conn, error) {
		if namespace != "monitoring" || name != "grafana-b" || port != 3000 {
			return nil, errors.New("connection refused")
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", grafana.Listener.Addr().String())
	}})
	t.Cleanup(front.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: test, clusters: [{name: test, cluster: {server: "` + front.URL +
		`"}}], users: [{name: test, user: {}}], contexts: [{name: test, context: {cluster: test, user: test, namespace: shop}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func run(ctx context.Context, out, errOut io.Writer, args ...string) error {
	a := session.New(strings.NewReader(""), out, errOut)
	cmd := Command(a)
	cmd.SetArgs(args)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	err := cmd.ExecuteContext(ctx)
	return errors.Join(err, a.Out.Flush(), a.Err.Flush())
}

// TestGrafana: the command finds the pod that is ready, in whatever namespace, forwards
// several connections to it, and ends with its context.
func TestGrafana(t *testing.T) {
	config := cluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := &output{first: make(chan string, 1)}
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, out, io.Discard, "grafana", "--kubeconfig", config, "--browser=false", "--address", "127.0.0.1")
	}()
	var line string
	select {
	case line = <-out.first:
	case err := <-ended:
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^Grafana is at (http://127\.0\.0\.1:\d+) \(pod monitoring/grafana-b\)`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("%q", line)
	}
	for _, path := range []string{"/a", "/b", "/c"} {
		hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := hc.Get(m[1] + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "board of "+path {
			t.Errorf("%q, %v", body, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestNoPage: without a pod that runs, the error names label and namespace.
func TestNoPage(t *testing.T) {
	config := cluster(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"grafana", "-n", "istio-system"}, "no running pod of Grafana (app.kubernetes.io/name=grafana) in namespace istio-system"},
		{[]string{"kiali"}, "no running pod of Kiali (app=kiali) in any namespace"},
		{[]string{"grafana", "-l", "app=other"}, "no running pod of Grafana (app=other)"},
	} {
		err := run(t.Context(), io.Discard, io.Discard, append(c.args, "--kubeconfig", config, "--browser=false")...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}

// TestPortIsTaken: a port that was chosen and is taken is an error.
func TestPortIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	_, port, _ := net.SplitHostPort(l.Addr().String())
	err = run(t.Context(), io.Discard, io.Discard, "grafana", "--kubeconfig", cluster(t), "--browser=false", "--address", "127.0.0.1", "-p", port)
	if err == nil || !strings.Contains(err.Error(), "--port") {
		t.Error(err)
	}
}

// TestBoardsAndRules: the boards are listed, printed and written, and the rules printed.
func TestBoardsAndRules(t *testing.T) {
	ask := func(args ...string) string {
		var out bytes.Buffer
		if err := run(t.Context(), &out, io.Discard, args...); err != nil {
			t.Fatal(args, err)
		}
		return out.String()
	}
	if got := ask("boards"); !strings.Contains(got, "Ambit / Mesh") || strings.Count(got, "\n") != 6 {
		t.Error(got)
	}
	dir := filepath.Join(t.TempDir(), "new")
	files := strings.Fields(ask("boards", "--dir", dir))
	if len(files) != 5 {
		t.Fatal(files)
	}
	b, err := os.ReadFile(filepath.Join(dir, "ambit-mesh.json"))
	if err != nil || ask("boards", "mesh") != string(b) {
		t.Error("a board in a file is another than the one that is printed", err)
	}
	if got := ask("rules"); !strings.Contains(got, "\ngroups:\n") || !strings.Contains(got, "alert: AmbitControlPlaneMissing") {
		t.Error(got)
	}
	if got := ask("rules", "--operator", "-n", "watch"); !strings.Contains(got, "kind: PrometheusRule") || !strings.Contains(got, "namespace: watch") {
		t.Error(got)
	}
	if err := run(t.Context(), io.Discard, io.Discard, "boards", "nothing"); err == nil || !strings.Contains(err.Error(), "there are ambitd, cni, mesh, waypoint, ztunnel") {
		t.Error(err)
	}
}
