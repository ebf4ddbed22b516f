package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/portforward"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// AskTimeout bounds one question to one program of the mesh.
const AskTimeout = 30 * time.Second

// maxParallel bounds how many programs are asked at once.
const maxParallel = 8

// InCluster decides whether a command is about a cluster or a lab. What the
// command line names wins; then a lab named by $AMBIT_LAB; then a lab that runs
// on this machine, unless this is a plugin of kubectl; then a cluster.
func (a *Session) InCluster(cmd *cobra.Command, k *Kube) bool {
	changed := func(name string) bool { f := cmd.Flag(name); return f != nil && f.Changed }
	switch {
	case k.Named(cmd):
		return true
	case changed("lab"), cmd.Flag("lab") == nil && changed("name"), changed("state-dir"), os.Getenv("AMBIT_LAB") != "" && !a.Plugin:
		return false
	case a.Plugin:
		return true
	case !k.Configured():
		return false
	}
	_, err := a.Attach()
	if err == nil {
		_ = a.Err.Printf("(asking lab %q, which runs on this machine; --context NAME asks a cluster)\n", a.LabName)
	}
	return err != nil
}

// AdminClient reads ambitd's admin port: of a lab, in a cluster, or at an
// address.
type AdminClient struct {
	*Session
	Kube
	address string
	cmd     *cobra.Command
}

// Flags adds the flags that choose a lab, a cluster or an ambitd.
func (c *AdminClient) Flags(cmd *cobra.Command) {
	c.cmd = cmd
	c.LabFlags(cmd, "lab")
	c.AddFlags(cmd.Flags())
	c.CompleteFlags(cmd)
	cmd.Flags().StringVar(&c.address, "address", "", "admin address of ambitd, as HOST:PORT, instead of a lab or a cluster")
}

// Cluster reports whether a cluster is asked, and neither a lab nor an address.
func (c *AdminClient) Cluster() bool { return c.address == "" && c.InCluster(c.cmd, &c.Kube) }

// Get asks ambitd for a path, and returns the answer.
func (c *AdminClient) Get(ctx context.Context, path string) ([]byte, error) {
	return c.ask(ctx, http.MethodGet, path)
}

// Post sends an order to ambitd's admin port and returns its answer. What
// ambitd says when it refuses is for people.
func (c *AdminClient) Post(ctx context.Context, path string) ([]byte, error) {
	b, err := c.ask(ctx, http.MethodPost, path)
	var refused *HTTPError
	if errors.As(err, &refused) {
		err = fmt.Errorf("ambitd: %s", refused.Said)
	}
	return b, err
}

// ask asks one ambitd: in a cluster the one that leads, if it is about that.
func (c *AdminClient) ask(ctx context.Context, method, path string) ([]byte, error) {
	if c.address != "" {
		b, err := fetch(ctx, http.DefaultClient, method, c.address, path)
		if err != nil {
			return nil, fmt.Errorf("%w (--address is that of ambitd's --admin, %s unless it was given another)", err, "127.0.0.1:8080")
		}
		return b, nil
	}
	if c.Cluster() {
		cl, pods, err := c.Ambitds(ctx)
		if err != nil {
			return nil, err
		}
		pod := pods[0]
		for _, p := range pods {
			if p.Name == c.leader(ctx, cl) {
				pod = p
			}
		}
		return AskPod(ctx, cl, &pod, PartAmbitd.Admin, method, path)
	}
	l, err := c.Attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster, or with --address where ambitd's admin port is)", err)
	}
	b, err := FetchIn(ctx, l, lab.LAN, wellknown.PortControlDebug, method, path)
	if err != nil {
		return nil, fmt.Errorf("asking ambitd: %w", err)
	}
	return b, nil
}

// Ambitds finds the running control plane.
func (c *AdminClient) Ambitds(ctx context.Context) (*client.Client, []corev1.Pod, error) {
	cl, err := c.Client()
	if err != nil {
		return nil, nil, err
	}
	pods, err := c.PodsOf(ctx, cl, PartAmbitd)
	if err != nil {
		return nil, nil, err
	}
	if pods = Running(pods); len(pods) == 0 {
		return nil, nil, c.Missing(PartAmbitd)
	}
	return cl, pods, nil
}

// caLease is held by the ambitd that may change the mesh's root.
const caLease = "ambit-ca-leader"

// leader is the pod that leads the certificate authority, empty if none does.
func (c *AdminClient) leader(ctx context.Context, cl *client.Client) string {
	lease, err := cl.Kube.CoordinationV1().Leases(c.IstioNamespace).Get(ctx, caLease, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// AskPod asks a port of a pod through the API server.
func AskPod(ctx context.Context, c *client.Client, pod *corev1.Pod, port int, method, path string) ([]byte, error) {
	return AskPodUpTo(ctx, c, pod, port, method, path, maxRead)
}

// AskPodUpTo is askPod for an answer of at most limit bytes.
func AskPodUpTo(ctx context.Context, c *client.Client, pod *corev1.Pod, port int, method, path string, limit int64) ([]byte, error) {
	b, err := fetchUpTo(ctx, portforward.HTTPClient(c, pod.Namespace, pod.Name, port), method, "localhost:"+strconv.Itoa(port), path, limit)
	if err != nil {
		return nil, Explain(fmt.Errorf("asking pod %s/%s: %w", pod.Namespace, pod.Name, err))
	}
	return b, nil
}

// answer is what one pod said.
type answer struct {
	Pod  corev1.Pod
	Body []byte
	Err  error
}

// AskAll asks several pods at once, and answers in their order.
func AskAll(ctx context.Context, c *client.Client, pods []corev1.Pod, port int, path string) []answer {
	out := make([]answer, len(pods))
	Together(len(pods), func(i int) {
		b, err := AskPod(ctx, c, &pods[i], port, http.MethodGet, path)
		out[i] = answer{pods[i], b, err}
	})
	return out
}

// Together does n things at once, as far as maxParallel goes.
func Together(n int, do func(i int)) {
	limit := make(chan struct{}, maxParallel)
	var wg sync.WaitGroup
	for i := range n {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			do(i)
		})
	}
	wg.Wait()
}

// FetchIn asks a program of a lab.
func FetchIn(ctx context.Context, l *lab.Lab, where lab.Where, port int, method, path string) ([]byte, error) {
	return fetch(ctx, l.HTTP(where), method, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), path)
}

// fetch does one HTTP request; an answer that is not 200 is an error with what
// the server said.
func fetch(ctx context.Context, client *http.Client, method, address, path string) ([]byte, error) {
	return fetchUpTo(ctx, client, method, address, path, maxRead)
}

func fetchUpTo(ctx context.Context, client *http.Client, method, address, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := readUpTo(resp.Body, limit)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &HTTPError{path, resp.Status, strings.TrimSpace(string(b))}
	}
	return b, err
}

// HTTPError is an answer that is not 200.
type HTTPError struct{ path, status, Said string }

// Error implements error.
func (e *HTTPError) Error() string { return e.path + ": " + e.status + ": " + e.Said }

// maxRead bounds what is read from a file or a server, in bytes: the dump of a
// very large mesh fits.
const maxRead = 1 << 30

// ReadAll reads an answer to its end, up to a limit.
func ReadAll(r io.Reader) ([]byte, error) { return readUpTo(r, maxRead) }

// ErrTooMuch is for an answer that is larger than its limit.
var ErrTooMuch = errors.New("too much to read")

// TooMuch returns ErrTooMuch with the limit, in bytes.
func TooMuch(limit int64) error { return fmt.Errorf("%w: more than %d bytes", ErrTooMuch, limit) }

// readUpTo reads all, which must be no more than limit bytes.
func readUpTo(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, TooMuch(limit)
	}
	return b, err
}
