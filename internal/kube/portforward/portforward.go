// Package portforward reaches a port of a pod through the Kubernetes API, as
// `kubectl port-forward` does, but without a port on this machine: what comes
// out is a connection.
package portforward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	forward "k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// dialTimeout bounds Dial when its context does not.
const dialTimeout = 30 * time.Second

// maxError bounds what is read of an explanation, in bytes.
const maxError = 4 << 10

// Dial connects to a port of a pod. The port may listen on the pod's loopback
// only. The connection is one of its own to the API server, over a websocket or,
// where the server or a proxy before it knows none, SPDY; Close ends all of it.
// ctx bounds the attempt, not the connection.
//
// Whether something listens there is known only later: then Read fails with
// what the kubelet says.
func Dial(ctx context.Context, c *client.Client, namespace, pod string, port int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer, err := newDialer(c, namespace, pod)
	if err != nil {
		return nil, err
	}
	stream, err := open(ctx, dialer, port)
	if err != nil {
		return nil, fmt.Errorf("port %d of pod %s/%s: %w", port, namespace, pod, err)
	}
	return newConn(stream, fmt.Sprintf("%s.%s:%d", pod, namespace, port)), nil
}

// HTTPClient speaks HTTP to a port of a pod, whatever host a URL names. Idle
// connections are not kept, so there is nothing to close.
func HTTPClient(c *client.Client, namespace, pod string, port int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return Dial(ctx, c, namespace, pod, port)
		},
		DisableKeepAlives: true,
	}}
}

func newDialer(c *client.Client, namespace, pod string) (httpstream.Dialer, error) {
	u := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := forward.NewSPDYOverWebsocketDialerForStreaming(u, c.Config)
	if err != nil {
		return nil, err
	}
	return forward.NewFallbackDialerForStreaming(tunnel, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// streams are the two streams of one forwarded connection.
type streams struct {
	conn         httpstream.Connection
	data, errors httpstream.Stream
}

// open makes the streams. The dialer knows no context: what it achieves after
// ctx ended is closed.
func open(ctx context.Context, dialer httpstream.Dialer, port int) (*streams, error) {
	type result struct {
		s   *streams
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := dial(dialer, port)
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		return r.s, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.s != nil {
				_ = r.s.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func dial(dialer httpstream.Dialer, port int) (*streams, error) {
	conn, protocol, err := dialer.Dial(forward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	s := &streams{conn: conn}
	if protocol != forward.PortForwardProtocolV1Name {
		err = fmt.Errorf("the API server speaks %q for port-forwarding, not %s", protocol, forward.PortForwardProtocolV1Name)
	}
	header := http.Header{}
	header.Set(corev1.PortHeader, strconv.Itoa(port))
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	if err == nil {
		header.Set(corev1.StreamType, corev1.StreamTypeError)
		s.errors, err = conn.CreateStream(header)
	}
	if err == nil {
		err = s.errors.Close() // nothing is written to it
	}
	if err == nil {
		header.Set(corev1.StreamType, corev1.StreamTypeData)
		s.data, err = conn.CreateStream(header)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// conn is one end of a pipe; goroutines carry bytes between the other and the
// streams, so that deadlines work, which streams do not have.
type conn struct {
	net.Conn
	to   addr
	fail atomic.Pointer[string] // what the far end says went wrong
	end  func()
}

type addr string

func (addr) Network() string  { return "pod" }
func (a addr) String() string { return string(a) }

func newConn(s *streams, to string) net.Conn {
	near, far := net.Pipe()
	c := &conn{Conn: near, to: addr(to)}
	ended := make(chan struct{})
	c.end = sync.OnceFunc(func() {
		close(ended)
		_ = far.Close()
		_ = s.data.Reset()
		_ = s.conn.Close()
	})
	explained := make(chan struct{})
	go func() {
		defer close(explained)
		if text, err := io.ReadAll(io.LimitReader(s.errors, maxError)); err == nil && len(text) > 0 {
			said := strings.TrimSpace(string(text))
			c.fail.Store(&said)
			c.end()
		}
	}()
	go func() {
		_, _ = io.Copy(far, s.data)
		// The explanation comes on another stream, perhaps a moment later.
		select {
		case <-explained:
		case <-ended:
		case <-time.After(time.Second):
		}
		c.end()
	}()
	go func() {
		_, _ = io.Copy(s.data, far)
		_ = s.data.Close()
	}()
	return c
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		return n, err
	}
	return n, c.explain(err)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	return n, c.explain(err)
}

// explain puts what the far end has said in place of what follows from it.
func (c *conn) explain(err error) error {
	if said := c.fail.Load(); said != nil && err != nil {
		return errors.New(*said)
	}
	return err
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}

func (c *conn) RemoteAddr() net.Addr { return c.to }
