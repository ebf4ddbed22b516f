package exchange_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// raw passes messages as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}
func (raw) Name() string { return "raw" }

// grpcWorld has a gRPC server behind the proxy, and a client in front of it.
func grpcWorld(t *testing.T, rules []route.Rule, cut func() func(int) int, serve grpc.StreamHandler) (*memory, *grpc.ClientConn) {
	t.Helper()
	m := newMemory(t, rules, cut, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = true, true })
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(serve))
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(m.backends) })
	t.Cleanup(func() {
		s.Stop()
		_ = m.backends.Close()
		wg.Wait()
	})
	c, err := grpc.NewClient("passthrough:///proxy", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return m.connect(), nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return m, c
}

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// TestGRPC: messages both ways at once, trailers, and failures as a status.
func TestGRPC(t *testing.T) {
	m, c := grpcWorld(t, toB(), func() func(int) int { return streamtest.Cuts(1, 7, 4000, 3) }, func(_ any, s grpc.ServerStream) error {
		s.SetTrailer(metadata.Pairs("x-end", "yes"))
		method, _ := grpc.MethodFromServerStream(s)
		if method == "/a.B/Fail" {
			return status.Error(codes.FailedPrecondition, "not like this: 100 %")
		}
		for {
			var b []byte
			if err := s.RecvMsg(&b); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			b = append([]byte("re: "), b...)
			if err := s.SendMsg(&b); err != nil {
				return err
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var trailer metadata.MD
	s, err := c.NewStream(ctx, bidi, "/a.B/Echo", grpc.Trailer(&trailer))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		b := []byte(fmt.Sprint(i, strings.Repeat("m", i*1000)))
		if err := s.SendMsg(&b); err != nil {
			t.Fatal(err)
		}
		var got []byte
		if err := s.RecvMsg(&got); err != nil || string(got) != "re: "+string(b) {
			t.Fatalf("message %d: %.20q %v", i, got, err)
		}
	}
	_ = s.CloseSend()
	var got []byte
	if err := s.RecvMsg(&got); !errors.Is(err, io.EOF) || strings.Join(trailer["x-end"], ",") != "yes" {
		t.Errorf("%v %v", err, trailer)
	}
	if r := m.record(0); r.GRPCStatus != 0 || r.Status != 200 || r.Reason != reason.OK {
		t.Errorf("%+v", r)
	}
	in := []byte("x")
	err = c.Invoke(ctx, "/a.B/Fail", &in, &got)
	if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "not like this: 100 %" {
		t.Errorf("%v", err)
	}
	if r := m.record(1); r.GRPCStatus != int(codes.FailedPrecondition) {
		t.Errorf("%+v", r)
	}
}

// TestGRPCFailures: what the proxy answers itself is a status of gRPC.
func TestGRPCFailures(t *testing.T) {
	path := func(p string) []route.Match {
		return []route.Match{{Path: route.Path{Kind: route.Segments, Value: p}}}
	}
	var calls atomic.Int64
	m, c := grpcWorld(t, []route.Rule{
		{Origin: "none", Matches: path("/none.S")},
		{Origin: "gone", Matches: path("/gone.S"), Backends: []route.Backend{{Name: "gone", Weight: 1}}},
		{Origin: "again", Matches: path("/again.S"), Backends: []route.Backend{{Name: "b", Weight: 1}}},
		{Origin: "slow", Matches: path("/slow.S"), Backends: []route.Backend{{Name: "b", Weight: 1}}, Timeouts: route.Timeouts{Request: 20 * time.Millisecond}},
	}, whole, func(_ any, s grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(s); method == "/slow.S/M" {
			<-s.Context().Done()
			return nil
		}
		if calls.Add(1) < 3 {
			return status.Error(codes.Unavailable, "not yet")
		}
		var b []byte
		if err := s.RecvMsg(&b); err != nil {
			return err
		}
		return s.SendMsg(&b)
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for method, want := range map[string]codes.Code{
		"/none.S/M": codes.Unavailable, "/gone.S/M": codes.Unavailable, "/nowhere.S/M": codes.Unimplemented, "/again.S/M": codes.OK, "/slow.S/M": codes.Unavailable,
	} {
		in, out := []byte("x"), []byte(nil)
		if err := c.Invoke(ctx, method, &in, &out); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", method, err, want)
		}
	}
	if calls.Load() != 3 {
		t.Errorf("%d calls", calls.Load())
	}
	_ = m
}

// TestGRPCTimeout: the time that a client gives its call ends it at the proxy too.
func TestGRPCTimeout(t *testing.T) {
	for _, test := range []struct {
		route time.Duration
		call  string
	}{{0, "20m"}, {time.Hour, "20000u"}, {20 * time.Millisecond, "1H"}, {20 * time.Millisecond, "1000000000H"}} {
		rules := toB()
		rules[0].Timeouts.Request = test.route
		m := newMemory(t, rules, whole, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = true, true })
		m.backend2(func(int, codec.Server, codec.Response, *peer) {})
		client := &peer{}
		done := make(chan struct{})
		client.onEnd = func() { close(done) }
		m.on(func() {
			a, b := streamtest.Pair(m.loop, streamtest.Options{})
			m.serve(b)
			r := codec.NewHTTP2Client(a, &room{}).Open()
			client.s = r
			h := &message.Head{Method: []byte("POST"), Authority: []byte("h"), Path: []byte("/a.B/C")}
			h.Add(message.NewKey("content-type"), []byte("application/grpc+x"))
			h.Add(message.NewKey("grpc-timeout"), []byte(test.call))
			if err := r.Send(h, codec.Chunked, client); err != nil {
				t.Error(err)
			}
		})
		<-done
		if r := m.record(0); r.Reason != reason.RequestTimeout || r.GRPCStatus != int(codes.Unavailable) || r.Status != 200 {
			t.Errorf("%+v: %+v", test, r)
		}
	}
}

// TestGRPCCancel: a client that gives up ends the call at the backend.
func TestGRPCCancel(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	m, c := grpcWorld(t, toB(), whole, func(_ any, s grpc.ServerStream) error {
		close(begun)
		<-s.Context().Done()
		ended <- s.Context().Err()
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.NewStream(ctx, bidi, "/a.B/Wait")
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var b []byte
	if err := s.RecvMsg(&b); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	if r := m.record(0); r.Reason != reason.DownstreamReset || r.Status != 0 {
		t.Errorf("%+v", r)
	}
}
