package attack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/test/rig"
)

// frontDoor is where ambitd serves xDS and certificates.
func frontDoor(v6 bool) string {
	if v6 {
		return "[fd88::1]:15012"
	}
	return "10.88.0.1:15012"
}

// patience bounds what an attacker of this file waits for.
const patience = time.Minute

// dialer connects from a namespace, without the lab's help: an attacker opens
// thousands of connections.
func dialer(ns *netns.NS) func(context.Context, string) (net.Conn, error) {
	return func(_ context.Context, address string) (c net.Conn, err error) {
		err = ns.Do(func() error {
			c, err = net.DialTimeout("tcp", address, patience)
			return err
		})
		return c, err
	}
}

// rss returns the resident memory of ambitd, in bytes.
func rss(w *rig.World) int64 {
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	for _, c := range s.Components {
		if c.Name == lab.Ambitd {
			return c.RSS
		}
	}
	w.T().Fatal("ambitd does not run")
	return 0
}

// doorMetric returns the sum of a metric of ambitd whose line begins so.
func doorMetric(w *rig.World, prefix string) float64 {
	b, err := w.Lab.Get(context.WithoutCancel(w.T().Context()), lab.LAN, "http://127.0.0.1:15014/metrics")
	if err != nil {
		w.T().Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		f := strings.Fields(line)
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if err != nil {
			w.T().Fatal(err)
		}
		sum, found = sum+v, true
	}
	if !found {
		w.T().Fatalf("ambitd has no metric %s", prefix)
	}
	return sum
}

// tokenOf returns a token of the mesh's issuer.
func tokenOf(w *rig.World, c auth.Caller) string {
	issuer, err := auth.OpenIssuer(filepath.Join(w.StateDir(), "ambitd"))
	if err != nil {
		w.T().Fatal(err)
	}
	token, err := issuer.Issue(c, time.Hour)
	if err != nil {
		w.T().Fatal(err)
	}
	return token
}

// forged returns a token of the mesh's form, with the name of the mesh's key,
// whose signature is made up.
func forged(w *rig.World, n int) string {
	good := strings.Split(tokenOf(w, auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "node1"}), ".")
	signature := make([]byte, 64)
	binary.BigEndian.PutUint64(signature, uint64(n))
	signature[32] = 1
	return good[0] + "." + good[1] + "." + base64.RawURLEncoding.EncodeToString(signature)
}

const (
	createCertificate = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
	deltaResources    = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
)

// TestNothingIsHeldForStrangers announces large messages without credentials
// that count, and stops one byte before their end.
func TestNothingIsHeldForStrangers(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	// held is what all of them may make ambitd hold; before, it was 716 MiB.
	const held = 64 << 20
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		dial := dialer(w.Netns(rig.Stranger))
		before := rss(w)
		var hogs sync.WaitGroup
		var sent atomic.Int64
		hold, release := context.WithCancel(t.Context())
		defer release()
		for i, token := range []string{"", "made-up", forged(w, 1), tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "thief1"})} {
			for _, h := range []*hog{
				{method: createCertificate, size: 190 << 20}, {method: deltaResources, size: 190 << 20},
				{method: createCertificate, size: 30 << 20}, {method: deltaResources, size: 30 << 20}, // as a node proxy may send
				{method: createCertificate, size: 100 << 10}, {method: "/a.Service/Unknown", size: 30 << 20},
			} {
				h.token = token
				hogs.Go(func() {
					n, err := h.run(hold, dial, frontDoor(v6))
					sent.Add(n)
					t.Logf("hog %d at %s: %d bytes of %d sent: %v", i, h.method, n, h.size, err)
					if err == nil || errors.Is(err, errHeld) {
						t.Errorf("hog %d at %s was let in: %v", i, h.method, err)
					}
				})
			}
		}
		hogs.Wait()
		if grown := rss(w) - before; grown > held {
			t.Errorf("ambitd has grown by %d MiB for %d bytes", grown>>20, sent.Load())
		}
	})
}

// TestSilentConnectionsDoNotStay opens connections that say nothing, say half
// of something, or finish TLS and say no more.
func TestSilentConnectionsDoNotStay(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	const (
		connections = 3000
		mostPeer    = 256 // unauthenticated, of one address
	)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		dial := dialer(w.Netns(rig.Stranger))
		var open atomic.Int64
		var readers sync.WaitGroup
		for i := range connections {
			c, err := dial(t.Context(), frontDoor(v6))
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			t.Cleanup(func() { _ = c.Close() })
			if i%3 == 1 {
				_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the beginning of a ClientHello
			}
			open.Add(1)
			readers.Go(func() {
				if i%10 == 9 {
					c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // an attacker
				}
				_, _ = io.Copy(io.Discard, c)
				open.Add(-1)
			})
		}
		if n := doorMetric(w, "ambit_control_waiting_connections"); n > mostPeer+16 { // and the mesh's own
			t.Errorf("ambitd holds %v unauthenticated connections of one peer", n)
		}
		// A node proxy joins meanwhile.
		if err := w.Restart(t.Context(), "ztunnel/node2", lab.RestartGraceful); err != nil {
			t.Errorf("a node proxy cannot join: %v", err)
		}
		ended := make(chan struct{})
		go func() { readers.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(2 * patience):
			t.Fatalf("%d of %d silent connections are open", open.Load(), connections)
		}
		if n := doorMetric(w, `ambit_control_refused_total{cause="crowd"}`); n == 0 {
			t.Error("no shed connection was counted")
		}
		if n := doorMetric(w, `ambit_control_refused_total{cause="silent"}`); n == 0 {
			t.Error("no silent connection was counted")
		}
	})
}

// TestMadeUpTokensStarveNoProxy makes calls with made-up tokens as fast as it
// can while node proxies are replaced.
func TestMadeUpTokensStarveNoProxy(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	web := netip.AddrPortFrom(w.Pod("shop", "web", false), 8080)
	load := w.StartLoad(rig.Near, web, 50)
	ctx, stop := context.WithCancel(t.Context())
	var tried atomic.Int64
	callers := makeUpTokens(ctx, w, &tried)
	w.Eventually("the attack is under way", func() error {
		if tried.Load() < 100 {
			return fmt.Errorf("%d calls", tried.Load())
		}
		return nil
	})
	for _, node := range []string{"ztunnel/node1", "ztunnel/node2"} {
		if err := w.Restart(t.Context(), node, lab.RestartGraceful); err != nil {
			t.Errorf("%s cannot join: %v", node, err)
		}
	}
	stop()
	callers.Wait()
	t.Logf("%d calls with made-up tokens", tried.Load())
	load.Clean()
	log := w.Log(lab.Ambitd)
	if n := strings.Count(log, "could not be authenticated"); n == 0 || n > int(tried.Load())/2 {
		t.Errorf("%d lines of %d refused calls in the log", n, tried.Load())
	}
}

// makeUpTokens makes calls with made-up tokens, as fast as it can, until ctx ends.
func makeUpTokens(ctx context.Context, w *rig.World, tried *atomic.Int64) *sync.WaitGroup {
	var callers sync.WaitGroup
	dial := dialer(w.Netns(rig.Stranger))
	for i := range 8 {
		token := forged(w, i)
		callers.Go(func() {
			for ctx.Err() == nil {
				cc := connect(w.T(), w, dial, frontDoor(i%2 == 1))
				for range 50 {
					if ctx.Err() == nil {
						tried.Add(1)
						_, _ = openStream(ctx, cc, token)
					}
				}
				_ = cc.Close()
			}
		})
	}
	return &callers
}

// TestSeatsToJoinAreNotTakenBySilence: a tenant with a token opens thousands of
// streams that say nothing, and node proxies join as ever.
func TestSeatsToJoinAreNotTakenBySilence(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	web := netip.AddrPortFrom(w.Pod("shop", "web", false), 8080)
	load := w.StartLoad(rig.Far, web, 50)
	ctx, stop := context.WithCancel(t.Context())
	var opened atomic.Int64
	held := holdStreams(ctx, w, &opened)
	w.Eventually("the attack is under way", func() error {
		if opened.Load() < 100 {
			return fmt.Errorf("%d streams", opened.Load())
		}
		return nil
	})
	for _, node := range []string{"ztunnel/node2", "ztunnel/node1"} {
		if err := w.Restart(t.Context(), node, lab.RestartGraceful); err != nil {
			t.Errorf("%s cannot join: %v", node, err)
		}
	}
	// A stream is what a client has to pay for; the account has 64 of them, the pod 4.
	w.Eventually("the tenant's streams are bounded", func() error {
		if n := doorMetric(w, "pilot_xds "); n > 64+4+8 {
			return fmt.Errorf("%v streams", n)
		}
		return nil
	})
	stop()
	held.Wait()
	load.Clean()
}

// holdStreams opens thousands of streams with a tenant's tokens and says nothing on
// them, until ctx ends.
func holdStreams(ctx context.Context, w *rig.World, opened *atomic.Int64) *sync.WaitGroup {
	dial := dialer(w.Netns(thief1))
	bound := tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "thief1", PodName: "thief1", PodUID: "1", Node: "node1"})
	loose := tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "thief1"})
	var held sync.WaitGroup
	for c := range 40 {
		cc := connect(w.T(), w, dial, frontDoor(false))
		for range 100 {
			held.Go(func() {
				st, err := openStream(ctx, cc, []string{bound, loose}[c%2])
				if err != nil {
					return
				}
				opened.Add(1)
				if c%4 > 1 { // says where its message begins, and no more
					_ = st.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: "x", ResourceNamesSubscribe: []string{"x"}})
				}
				for err == nil {
					err = st.RecvMsg(new(discovery.DeltaDiscoveryResponse))
				}
			})
		}
		w.T().Cleanup(func() { _ = cc.Close() })
	}
	return &held
}

// connect returns a client connection from a namespace to ambitd.
func connect(t testing.TB, w *rig.World, dial func(context.Context, string) (net.Conn, error), address string) *grpc.ClientConn {
	t.Helper()
	roots, err := os.ReadFile(filepath.Join(w.StateDir(), "ambitd", "root-cert.pem"))
	if err != nil {
		t.Error(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Error(err)
	}
	return cc
}

var errNotServed = errors.New("the stream ended at once")

// openStream opens an xDS stream with a token. It returns when the server has
// taken the call, or refused it, or after a moment in which it did neither.
func openStream(ctx context.Context, cc *grpc.ClientConn, token string) (grpc.ClientStream, error) {
	st, err := cc.NewStream(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token),
		&grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, deltaResources)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, errNotServed
	}
	return st, nil
}
