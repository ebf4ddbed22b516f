// Package portforwardtest is the far end of port-forwarding for tests: what an
// API server and a kubelet do together, without either.
package portforwardtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	constants "k8s.io/apimachinery/pkg/util/portforward"
	forward "k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Handler forwards what asks for /api/v1/namespaces/NS/pods/POD/portforward to
// what dial connects it with, and passes everything else on to next.
type Handler struct {
	Dial func(ctx context.Context, namespace, pod string, port int) (net.Conn, error)
	Next http.Handler
	// NoWebsockets makes it an API server that knows SPDY only.
	NoWebsockets bool
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(parts) != 7 || parts[6] != "portforward" {
		h.Next.ServeHTTP(w, r)
		return
	}
	s := &session{dial: h.Dial, namespace: parts[3], pod: parts[5], byID: map[string]*pair{}}
	defer s.close()
	var conn httpstream.Connection
	switch {
	case !websocket.IsWebSocketUpgrade(r):
		if _, err := httpstream.Handshake(r, w, []string{forward.PortForwardProtocolV1Name}); err != nil {
			return
		}
		conn = spdy.NewResponseUpgrader().UpgradeResponse(w, r, s.accept)
	case h.NoWebsockets:
		http.Error(w, "no websockets here", http.StatusBadRequest)
		return
	default:
		up := websocket.Upgrader{Subprotocols: []string{constants.WebsocketsSPDYTunnelingPortForwardV1}, HandshakeTimeout: 10 * time.Second}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		if conn, err = spdy.NewServerConnection(forward.NewTunnelingConnection("server", ws), s.accept); err != nil {
			_ = ws.Close()
			return
		}
	}
	if conn == nil {
		return
	}
	<-conn.CloseChan()
	_ = conn.Close()
}

type pair struct{ data, errors httpstream.Stream }

// session is one connection of a client; its streams come in pairs.
type session struct {
	dial           func(context.Context, string, string, int) (net.Conn, error)
	namespace, pod string

	mu    sync.Mutex
	byID  map[string]*pair
	conns []net.Conn
	wg    sync.WaitGroup
}

func (s *session) accept(stream httpstream.Stream, replied <-chan struct{}) error {
	id := stream.Headers().Get(corev1.PortForwardRequestIDHeader)
	port, err := strconv.Atoi(stream.Headers().Get(corev1.PortHeader))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.byID[id]
	if p == nil {
		p = &pair{}
		s.byID[id] = p
	}
	if stream.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
		p.errors = stream
	} else {
		p.data = stream
	}
	if p.data != nil && p.errors != nil {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			<-replied
			s.serve(p, port)
		}()
	}
	return nil
}

func (s *session) serve(p *pair, port int) {
	defer p.errors.Close() //nolint:errcheck // the client may be gone
	defer p.data.Close()   //nolint:errcheck // the client may be gone
	to, err := s.dial(context.Background(), s.namespace, s.pod, port)
	if err != nil {
		_, _ = fmt.Fprintf(p.errors, "error forwarding port %d to pod %s: %v", port, s.pod, err)
		return
	}
	s.mu.Lock()
	s.conns = append(s.conns, to)
	s.mu.Unlock()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_, _ = io.Copy(to, p.data)
		_ = to.Close()
	}()
	_, _ = io.Copy(p.data, to)
	_ = to.Close()
}

func (s *session) close() {
	s.mu.Lock()
	for _, c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}
