package portforward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/portforward"
	"github.com/ambit-mesh/ambit/internal/kube/portforward/portforwardtest"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

// start runs an API server that forwards to what dial connects with.
func start(t *testing.T, h *portforwardtest.Handler) *client.Client {
	t.Helper()
	h.Next = http.NotFoundHandler()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := client.ForConfig(&rest.Config{Host: s.URL}, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHTTPOverBothTransports(t *testing.T) {
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
	}))
	defer far.Close()
	for name, noWebsockets := range map[string]bool{"websocket": false, "spdy": true} {
		t.Run(name, func(t *testing.T) {
			var asked string
			c := start(t, &portforwardtest.Handler{NoWebsockets: noWebsockets, Dial: func(ctx context.Context, ns, pod string, port int) (net.Conn, error) {
				asked = ns + "/" + pod
				if port != 15000 {
					t.Errorf("port %d", port)
				}
				return (&net.Dialer{}).DialContext(ctx, "tcp", far.Listener.Addr().String())
			}})
			for range 3 {
				resp, err := portforward.HTTPClient(c, "istio-system", "ztunnel-a", 15000).Post("http://localhost:15000/x", "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || len(b) != 1<<20+5 || !strings.HasPrefix(string(b), "hello") {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
			}
			if asked != "istio-system/ztunnel-a" {
				t.Error(asked)
			}
		})
	}
}

// TestNothingListens shows the kubelet's words rather than an end of file.
func TestNothingListens(t *testing.T) {
	c := start(t, &portforwardtest.Handler{Dial: func(context.Context, string, string, int) (net.Conn, error) {
		return nil, errors.New("connect: connection refused")
	}})
	resp, err := portforward.HTTPClient(c, "a", "b", 80).Get("http://b/")
	if err == nil {
		_ = resp.Body.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
}

func TestNoSuchPod(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	c, err := client.ForConfig(&rest.Config{Host: s.URL}, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := portforward.Dial(t.Context(), c, "a", "b", 80); err == nil || !strings.Contains(err.Error(), "port 80 of pod a/b") {
		t.Errorf("%v", err)
	}
}

// TestBounds: an API server that never answers, and a far end that never does.
func TestBounds(t *testing.T) {
	hold := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	defer silent.Close()
	defer close(hold)
	c, err := client.ForConfig(&rest.Config{Host: silent.URL}, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := portforward.Dial(ctx, c, "a", "b", 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}

	near, far := net.Pipe()
	defer far.Close() //nolint:errcheck // the test is over
	c = start(t, &portforwardtest.Handler{Dial: func(context.Context, string, string, int) (net.Conn, error) { return near, nil }})
	conn, err := portforward.Dial(t.Context(), c, "a", "b", 80)
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.RemoteAddr().String(); got != "b.a:80" {
		t.Error(got)
	}
	_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v", err)
	}
	// The far end learns that we are gone.
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

// TestMain finds what Close leaves behind. The SPDY library waits for up to a
// second for somebody to ask how its end went.
func TestMain(m *testing.M) {
	leak.Main(m, "github.com/moby/spdystream.(*Connection).shutdown")
}
