package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/cluster/local"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// control is a pod of the control plane, as its node sees it: without the API
// server.
type control struct {
	own *local.Cluster
	pod corev1.Pod
}

// dial connects to a port of the pod.
func (c control) dial(port uint16) (net.Conn, error) {
	return c.own.Dial(c.pod.Spec.NodeName, netip.AddrPortFrom(netip.MustParseAddr(c.pod.Status.PodIP), port), 2*time.Second)
}

// readiness is what the program answers when it is asked whether it is ready.
func (c control) readiness() (code int, text string, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return c.dial(wellknown.PortControlMonitor)
	}}}
	resp, err := client.Get("http://ambitd/readyz")
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// serves reports whether xDS is served to anybody.
func (c control) serves() bool {
	conn, err := c.dial(wellknown.PortXDS)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake() == nil //nolint:gosec // whoever it is
}

// log is what all containers of the pod have logged.
func (c control) log(ctx context.Context) (string, error) {
	return c.own.Output(ctx, c.pod.Spec.NodeName, "sh", "-c",
		fmt.Sprintf("cat /var/log/pods/%s_%s_%s/*/*.log", c.pod.Namespace, c.pod.Name, c.pod.UID))
}

// The control plane crashes while the API server is away. It starts, says what
// it waits for, serves nothing and makes no root of its own; when the API server
// is back it goes on as what it was, in the same container. Traffic does not
// notice.
func TestControlPlaneStartsWithoutAPIServer(t *testing.T) {
	own := mesh.Machines(t)
	s := newStage(t, "noapistart", 200)
	s.delivers()
	pods, err := mesh.Ambitds(t.Context())
	if err != nil || len(pods) != 1 {
		t.Fatalf("want one ambitd, there are %d: %v", len(pods), err)
	}
	c, roots := control{own, pods[0]}, mesh.RootCertificates(t)
	if !c.serves() {
		t.Fatal("nothing is served to begin with")
	}
	before := c.pod.Status.ContainerStatuses[0]
	const waits = "waiting for the keys of the certificate authority"
	earlier, err := c.log(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := strings.Count(earlier, waits) // it may have been started without one before

	back := withoutAPIServer(t, own)
	id := strings.TrimPrefix(before.ContainerID, "containerd://")
	if out, err := own.Output(t.Context(), c.pod.Spec.NodeName, "ctr", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", id); err != nil {
		t.Fatal(out, err)
	}
	kit.Eventually(t, "the log says what is waited for", func(ctx context.Context) error {
		log, err := c.log(ctx)
		if err == nil && strings.Count(log, waits) <= said {
			err = errors.New("it does not")
		}
		return err
	})
	time.Sleep(15 * time.Second) // several probes of the kubelet
	kit.Eventually(t, "it says that it is not ready, and why", func(context.Context) error {
		code, text, err := c.readiness()
		if err == nil && (code == http.StatusOK || !strings.Contains(text, "Secret "+kit.SystemNamespace+"/istio-ca-secret")) {
			err = fmt.Errorf("it says %d %s", code, text)
		}
		return err
	})
	if c.serves() {
		t.Error("xDS is served although nothing is known")
	}
	back()

	var restarts int32
	kit.Eventually(t, "the API server knows that it was started again", func(ctx context.Context) error {
		if pods, err = mesh.Ambitds(ctx); err != nil {
			return err
		}
		if len(pods) != 1 || pods[0].UID != c.pod.UID {
			return fmt.Errorf("there are %d, or another one", len(pods))
		}
		if restarts = pods[0].Status.ContainerStatuses[0].RestartCount - before.RestartCount; restarts == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	mesh.ControlPlane(t, 1)
	s.delivers()
	if now := mesh.RootCertificates(t); !bytes.Equal(now, roots) {
		t.Error("there is another root")
	}
	if restarts != 1 {
		t.Errorf("the container was started %d times after its crash, where once is enough", restarts)
	}
	s.starts("late")
	s.load.Clean()
}
