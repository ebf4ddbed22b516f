package cli

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

// askTimeout bounds one question to one program of the mesh.
const askTimeout = 30 * time.Second

// maxParallel bounds how many programs are asked at once.
const maxParallel = 8

// inCluster decides whether a command is about a cluster or a lab. What the
// command line names wins; then a lab named by $AMBIT_LAB; then a lab that runs
// on this machine, unless this is a plugin of kubectl; then a cluster.
func (a *app) inCluster(cmd *cobra.Command, k *kube) bool {
	changed := func(name string) bool { f := cmd.Flag(name); return f != nil && f.Changed }
	switch {
	case k.named(cmd):
		return true
	case changed("lab"), cmd.Flag("lab") == nil && changed("name"), changed("state-dir"), os.Getenv("AMBIT_LAB") != "" && !a.plugin:
		return false
	case a.plugin:
		return true
	case !k.configured():
		return false
	}
	_, err := a.attach()
	if err == nil {
		_ = a.err.Printf("(asking lab %q, which runs on this machine; --context NAME asks a cluster)\n", a.labName)
	}
	return err != nil
}

// adminClient reads ambitd's admin port: of a lab, in a cluster, or at an
// address.
type adminClient struct {
	*app
	kube
	address string
	cmd     *cobra.Command
}

func (c *adminClient) flags(cmd *cobra.Command) {
	c.cmd = cmd
	c.labFlags(cmd, "lab")
	c.addFlags(cmd.Flags())
	c.completeFlags(cmd)
	cmd.Flags().StringVar(&c.address, "address", "", "admin address of ambitd, as HOST:PORT, instead of a lab or a cluster")
}

func (c *adminClient) cluster() bool { return c.address == "" && c.inCluster(c.cmd, &c.kube) }

func (c *adminClient) get(ctx context.Context, path string) ([]byte, error) {
	return c.ask(ctx, http.MethodGet, path)
}

// post sends an order to ambitd's admin port and returns its answer. What
// ambitd says when it refuses is for people.
func (c *adminClient) post(ctx context.Context, path string) ([]byte, error) {
	b, err := c.ask(ctx, http.MethodPost, path)
	var refused *httpError
	if errors.As(err, &refused) {
		err = fmt.Errorf("ambitd: %s", refused.said)
	}
	return b, err
}

// ask asks one ambitd: in a cluster the one that leads, if it is about that.
func (c *adminClient) ask(ctx context.Context, method, path string) ([]byte, error) {
	if c.address != "" {
		b, err := fetch(ctx, http.DefaultClient, method, c.address, path)
		if err != nil {
			return nil, fmt.Errorf("%w (--address is that of ambitd's --admin, %s unless it was given another)", err, "127.0.0.1:8080")
		}
		return b, nil
	}
	if c.cluster() {
		cl, pods, err := c.ambitds(ctx)
		if err != nil {
			return nil, err
		}
		pod := pods[0]
		for _, p := range pods {
			if p.Name == c.leader(ctx, cl) {
				pod = p
			}
		}
		return askPod(ctx, cl, &pod, partAmbitd.admin, method, path)
	}
	l, err := c.attach()
	if err != nil {
		return nil, fmt.Errorf("%w (or say with --context which cluster, or with --address where ambitd's admin port is)", err)
	}
	b, err := fetchIn(ctx, l, lab.LAN, wellknown.PortControlDebug, method, path)
	if err != nil {
		return nil, fmt.Errorf("asking ambitd: %w", err)
	}
	return b, nil
}

// ambitds finds the running control plane.
func (c *adminClient) ambitds(ctx context.Context) (*client.Client, []corev1.Pod, error) {
	cl, err := c.client()
	if err != nil {
		return nil, nil, err
	}
	pods, err := c.podsOf(ctx, cl, partAmbitd)
	if err != nil {
		return nil, nil, err
	}
	if pods = running(pods); len(pods) == 0 {
		return nil, nil, c.missing(partAmbitd)
	}
	return cl, pods, nil
}

// caLease is held by the ambitd that may change the mesh's root.
const caLease = "ambit-ca-leader"

// leader is the pod that leads the certificate authority, empty if none does.
func (c *adminClient) leader(ctx context.Context, cl *client.Client) string {
	lease, err := cl.Kube.CoordinationV1().Leases(c.istioNamespace).Get(ctx, caLease, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// askPod asks a port of a pod through the API server.
func askPod(ctx context.Context, c *client.Client, pod *corev1.Pod, port int, method, path string) ([]byte, error) {
	return askPodUpTo(ctx, c, pod, port, method, path, maxRead)
}

// askPodUpTo is askPod for an answer of at most limit bytes.
func askPodUpTo(ctx context.Context, c *client.Client, pod *corev1.Pod, port int, method, path string, limit int64) ([]byte, error) {
	b, err := fetchUpTo(ctx, portforward.HTTPClient(c, pod.Namespace, pod.Name, port), method, "localhost:"+strconv.Itoa(port), path, limit)
	if err != nil {
		return nil, explain(fmt.Errorf("asking pod %s/%s: %w", pod.Namespace, pod.Name, err))
	}
	return b, nil
}

// answer is what one pod said.
type answer struct {
	pod  corev1.Pod
	body []byte
	err  error
}

// askAll asks several pods at once, and answers in their order.
func askAll(ctx context.Context, c *client.Client, pods []corev1.Pod, port int, path string) []answer {
	out := make([]answer, len(pods))
	together(len(pods), func(i int) {
		b, err := askPod(ctx, c, &pods[i], port, http.MethodGet, path)
		out[i] = answer{pods[i], b, err}
	})
	return out
}

// together does n things at once, as far as maxParallel goes.
func together(n int, do func(i int)) {
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

// fetchIn asks a program of a lab.
func fetchIn(ctx context.Context, l *lab.Lab, where lab.Where, port int, method, path string) ([]byte, error) {
	return fetch(ctx, l.HTTP(where), method, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), path)
}

// fetch does one HTTP request; an answer that is not 200 is an error with what
// the server said.
func fetch(ctx context.Context, client *http.Client, method, address, path string) ([]byte, error) {
	return fetchUpTo(ctx, client, method, address, path, maxRead)
}

func fetchUpTo(ctx context.Context, client *http.Client, method, address, path string, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
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
		err = &httpError{path, resp.Status, strings.TrimSpace(string(b))}
	}
	return b, err
}

// httpError is an answer that is not 200.
type httpError struct{ path, status, said string }

func (e *httpError) Error() string { return e.path + ": " + e.status + ": " + e.said }

// maxRead bounds what is read from a file or a server, in bytes: the dump of a
// very large mesh fits.
const maxRead = 1 << 30

func readAll(r io.Reader) ([]byte, error) { return readUpTo(r, maxRead) }

var errTooMuch = errors.New("too much to read")

func tooMuch(limit int64) error { return fmt.Errorf("%w: more than %d bytes", errTooMuch, limit) }

// readUpTo reads all, which must be no more than limit bytes.
func readUpTo(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, tooMuch(limit)
	}
	return b, err
}
