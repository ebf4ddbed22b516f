package limitservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool/pooltest"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

type (
	answer  = ratelimitv3.RateLimitResponse
	request = ratelimitv3.RateLimitRequest
)

// service is a rate limit service, and the proxy that reaches it. It implements Proxy.
type service struct {
	ratelimitv3.UnimplementedRateLimitServiceServer
	t     *testing.T
	group *poll.Group
	asker *Asker
	pools []*pool.Pool

	mu     sync.Mutex // guards what follows
	at     netip.AddrPort
	known  bool
	asked  int // by Demand
	answer func(context.Context, *request) (*answer, error)
}

func start(t *testing.T) *service {
	t.Helper()
	group, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
	if err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, group: group, at: l.Addr().(*net.TCPAddr).AddrPort(), known: true}
	s.set(func(context.Context, *request) (*answer, error) {
		return &answer{OverallCode: ratelimitv3.RateLimitResponse_OK}, nil
	})
	g := grpc.NewServer()
	ratelimitv3.RegisterRateLimitServiceServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	s.asker = New(s, group)
	t.Cleanup(func() {
		s.on(func() {
			for _, p := range s.pools {
				p.Drain()
			}
		})
		g.Stop()
		<-done
		group.Close()
	})
	return s
}

func (s *service) set(f func(context.Context, *request) (*answer, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// ShouldRateLimit implements the service.
func (s *service) ShouldRateLimit(ctx context.Context, q *request) (*answer, error) {
	s.mu.Lock()
	f := s.answer
	s.mu.Unlock()
	return f(ctx, q)
}

// NewPool implements Proxy, with plain connections.
func (s *service) NewPool(l *poll.Loop) *pool.Pool {
	p := pooltest.Plain(s.t, l)
	s.pools = append(s.pools, p)
	return p
}

// Known implements Proxy.
func (s *service) Known(namespace, hostname string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// Demand implements Proxy: it makes the service known.
func (s *service) Demand(context.Context, string, string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	s.known = true
	return true, nil
}

// Reach implements Proxy.
func (s *service) Reach(namespace, hostname string, port uint16) (pool.Target, *reason.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if namespace != "limits" || hostname != "limiter.test" || port != 8081 {
		return pool.Target{}, reason.Errorf(reason.NoHealthyUpstream, "service %s/%s is not known", namespace, hostname)
	}
	return pool.Target{App: s.at}, nil
}

func (s *service) on(f func()) {
	s.t.Helper()
	done := make(chan struct{})
	s.group.Loop(0).Post(func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(time.Minute):
		s.t.Fatal("the loop hangs")
	}
}

// result is what Ask ended with.
type result struct {
	body []byte
	err  error
}

// room returns whether the answer gives room, as a limit reads it.
func (r result) room() (bool, error) {
	if r.err != nil {
		return false, r.err
	}
	return ratelimit.Answer(r.body)
}

// limits returns the service as limits name it.
func limits(timeout time.Duration) *ratelimit.Service {
	return &ratelimit.Service{Namespace: "limits", Hostname: "limiter.test", Port: 8081, Domain: "shop", Timeout: timeout, Descriptors: [][]ratelimit.Entry{{ratelimit.EntrySourceIdentity}}}
}

// ask begins questions, and returns where their results come.
func (s *service) ask(to *ratelimit.Service, party string, n int) <-chan result {
	out := make(chan result, n)
	s.on(func() {
		for range n {
			var v ratelimit.Values
			v[ratelimit.EntrySourceIdentity] = "spiffe://cluster.local/ns/shop/sa/client"
			s.asker.Ask(s.group.Loop(0), to, party, to.Question(nil, &v), func(b []byte, err error) { out <- result{bytes.Clone(b), err} })
		}
	})
	return out
}

func (s *service) next(from <-chan result) result {
	s.t.Helper()
	select {
	case r := <-from:
		return r
	case <-time.After(time.Minute):
		s.t.Fatal("a question has no end")
		return result{}
	}
}

// TestAnswers: a service of gRPC's own implementation reads the question, and its answer is
// what the caller gets.
func TestAnswers(t *testing.T) {
	s := start(t)
	for code, want := range map[ratelimitv3.RateLimitResponse_Code]bool{ratelimitv3.RateLimitResponse_OK: true, ratelimitv3.RateLimitResponse_OVER_LIMIT: false} {
		s.set(func(ctx context.Context, q *request) (*answer, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if e := q.Descriptors[0].Entries[0]; q.Domain != "shop" || !strings.Contains(e.Value, "client") || md[":authority"][0] != "limiter.test:8081" {
				t.Errorf("%+v, %v", q, md)
			}
			if at, ok := ctx.Deadline(); !ok || time.Until(at) > time.Minute {
				t.Errorf("the service has no deadline: %v", at)
			}
			return &answer{OverallCode: code}, nil
		})
		if room, err := s.next(s.ask(limits(time.Minute), "shop", 1)).room(); err != nil || room != want {
			t.Errorf("%v: %v, %v", code, room, err)
		}
	}
}

// TestErrors: what is no answer is an error that names the cause.
func TestErrors(t *testing.T) {
	refuse := func(c codes.Code) func(context.Context, *request) (*answer, error) {
		return func(context.Context, *request) (*answer, error) { return nil, status.Error(c, "no") }
	}
	for _, c := range []struct {
		name   string
		answer func(context.Context, *request) (*answer, error)
		to     *ratelimit.Service
		want   string
	}{
		{name: "unavailable", answer: refuse(codes.Unavailable), want: "of gRPC 14"},
		{name: "not implemented", answer: refuse(codes.Unimplemented), want: "of gRPC 12"},
		{name: "an error of the service", answer: func(context.Context, *request) (*answer, error) { return nil, errors.New("broken") }, want: "of gRPC 2"},
		{name: "too large", answer: func(context.Context, *request) (*answer, error) {
			return &answer{RawBody: bytes.Repeat([]byte("x"), maxAnswer)}, nil
		}, want: "more than 65536 bytes"},
		{name: "another service", to: &ratelimit.Service{Namespace: "limits", Hostname: "other.test", Port: 8081, Timeout: time.Minute}, want: "service limits/other.test is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t)
			if c.answer != nil {
				s.set(c.answer)
			}
			to := c.to
			if to == nil {
				to = limits(time.Minute)
			}
			r := s.next(s.ask(to, "shop", 1))
			if r.err == nil || !strings.Contains(r.err.Error(), c.want) || r.body != nil {
				t.Errorf("%q, %v; want %q", r.body, r.err, c.want)
			}
			s.on(func() {
				if n := len(s.asker.loops[0].under); n != 0 {
					t.Errorf("questions of %d parties are under way after their end", n)
				}
			})
			// The next question is answered.
			s.set(func(context.Context, *request) (*answer, error) {
				return &answer{OverallCode: ratelimitv3.RateLimitResponse_OK}, nil
			})
			if room, err := s.next(s.ask(limits(time.Minute), "shop", 1)).room(); err != nil || !room {
				t.Errorf("after it: %v, %v", room, err)
			}
		})
	}
}

// TestWrongAnswers: what is no service of gRPC, or sends something else, is an error: of the
// question, or of what reads the answer.
func TestWrongAnswers(t *testing.T) {
	frame := func(kind, flags byte, id byte, payload string) string {
		return string([]byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags, 0, 0, 0, id}) + payload
	}
	const settings, headers, data = 4, 1, 0
	hello := frame(settings, 0, 0, "") + frame(settings, 1, 0, "")
	for name, c := range map[string]struct{ text, want string }{
		"closes at once":     {"", "destination reset the connection"},
		"HTTP/1":             {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "destination reset the connection"},
		"noise":              {strings.Repeat("\xff\x00", 400), "destination reset the connection"},
		"status 404":         {hello + frame(headers, 5, 1, "\x8d"), "status 404"},
		"no status of gRPC":  {hello + frame(headers, 5, 1, "\x88"), "status 200, of gRPC -1"},
		"a cut message":      {hello + frame(headers, 4, 1, "\x88\x40\x0bgrpc-status\x010") + frame(data, 1, 1, "\x00\x00\x00\x00\x09\x08"), "no message of gRPC, or is compressed"},
		"no message":         {hello + frame(headers, 5, 1, "\x88\x40\x0bgrpc-status\x010"), "no message of gRPC, or is compressed"},
		"no code":            {hello + frame(headers, 4, 1, "\x88\x40\x0bgrpc-status\x010") + frame(data, 1, 1, "\x00\x00\x00\x00\x00"), "code 0"},
		"ends the stream":    {hello + frame(3, 0, 1, "\x00\x00\x00\x02"), "destination reset the connection"},
		"ends the tunnel":    {hello + frame(7, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x01"), "destination reset the connection"},
		"compressed message": {hello + frame(headers, 4, 1, "\x88\x40\x0bgrpc-status\x010") + frame(data, 1, 1, "\x01\x00\x00\x00\x02\x08\x01"), "no message of gRPC, or is compressed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			s.replace(c.text)
			room, err := s.next(s.ask(limits(5*time.Second), "shop", 1)).room()
			if err == nil || room || !strings.Contains(err.Error(), c.want) {
				t.Errorf("room %v, error %v; want %q", room, err, c.want)
			}
		})
	}
}

// replace puts a program in the place of the service that answers the first bytes of each
// connection with a text, and closes connections when there is none.
func (s *service) replace(text string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed below
	if err != nil {
		s.t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close() //nolint:errcheck // of this test alone
				buf := make([]byte, 4096)
				for first := true; ; first = false {
					if _, err := c.Read(buf); err != nil {
						return
					}
					if first {
						_, _ = c.Write([]byte(text))
					}
					if text == "" {
						return
					}
				}
			})
		}
	})
	s.t.Cleanup(func() {
		s.on(func() {
			for _, p := range s.pools {
				p.Drain()
			}
		})
		_ = l.Close()
		served.Wait()
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = l.Addr().(*net.TCPAddr).AddrPort()
}

// TestSilence: a service that answers nothing is an error when the time is over.
func TestSilence(t *testing.T) {
	s := start(t)
	s.replace("\x00\x00\x00\x04\x00\x00\x00\x00\x00") // the settings of HTTP/2
	if r := s.next(s.ask(limits(50*time.Millisecond), "shop", 1)); r.err == nil || r.err.Error() != "no answer within 50ms" {
		t.Error(r.err)
	}
}

// TestNothingListens: a service without a listener is an error, at once.
func TestNothingListens(t *testing.T) {
	s := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // closed at once
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.at = l.Addr().(*net.TCPAddr).AddrPort()
	s.mu.Unlock()
	_ = l.Close()
	if r := s.next(s.ask(limits(time.Minute), "shop", 1)); r.err == nil || !strings.Contains(r.err.Error(), "refused") {
		t.Error(r.err)
	}
}

// TestBound: the questions of one party are bounded, and those of another go on.
func TestBound(t *testing.T) {
	s := start(t)
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	s.set(func(ctx context.Context, _ *request) (*answer, error) {
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return &answer{OverallCode: ratelimitv3.RateLimitResponse_OK}, nil
	})
	flood := s.ask(limits(time.Minute), "flood", maxEach+10)
	for range 10 {
		if r := s.next(flood); r.err == nil || !strings.Contains(r.err.Error(), fmt.Sprintf(`%d questions about connections from namespace "flood"`, maxEach)) {
			t.Fatal(r.err)
		}
	}
	quiet := s.ask(limits(time.Minute), "quiet", 1)
	release()
	if room, err := s.next(quiet).room(); err != nil || !room {
		t.Errorf("the other party: %v, %v", room, err)
	}
	for range maxEach {
		if room, err := s.next(flood).room(); err != nil || !room {
			t.Fatalf("%v, %v", room, err)
		}
	}
}

// TestDemand: a service that is not known is requested once.
func TestDemand(t *testing.T) {
	s := start(t)
	s.mu.Lock()
	s.known = false
	s.mu.Unlock()
	if room, err := s.next(s.ask(limits(time.Minute), "shop", 1)).room(); err != nil || !room {
		t.Errorf("%v, %v", room, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != 1 {
		t.Errorf("requested %d times", s.asked)
	}
}
