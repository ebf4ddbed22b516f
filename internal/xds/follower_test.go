package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

func response(nonce string, resources ...string) *discovery.DeltaDiscoveryResponse {
	resp := &discovery.DeltaDiscoveryResponse{TypeUrl: typeA, Nonce: nonce}
	for _, r := range resources {
		if strings.HasPrefix(r, "-") {
			resp.RemovedResources = append(resp.RemovedResources, r[1:])
			continue
		}
		name, version, _ := strings.Cut(r, "=")
		resp.Resources = append(resp.Resources, &discovery.Resource{Name: name, Version: version, Resource: anyOf(typeA, version)})
	}
	return resp
}

// picky applies into a map and rejects bodies that say so.
func picky(held map[string]string) func(Delta) []Rejection {
	return func(d Delta) []Rejection {
		var out []Rejection
		for _, r := range d.Updated {
			if string(r.Body) == "bad" {
				out = append(out, Rejection{r.Name, errors.New("bad body")})
				continue
			}
			held[r.Name] = r.Version
		}
		for _, n := range d.Removed {
			delete(held, n)
		}
		return out
	}
}

func TestFollower(t *testing.T) {
	held := map[string]string{}
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, Apply: picky(held)}, {TypeURL: typeB, Apply: picky(map[string]string{})}})
	hello := f.hello()
	if len(hello) != 2 || hello[0].GetTypeUrl() != typeA || len(hello[0].GetResourceNamesSubscribe()) != 0 || len(hello[0].GetInitialResourceVersions()) != 0 {
		t.Fatalf("hello: %v", hello)
	}
	synced := func() bool {
		select {
		case <-f.synced:
			return true
		default:
			return false
		}
	}
	for _, step := range []struct {
		name   string
		resp   *discovery.DeltaDiscoveryResponse
		reject string
		held   map[string]string
		synced bool
	}{
		{"first", response("1", "x=1", "y=1"), "", map[string]string{"x": "1", "y": "1"}, false},
		{"part of a rejection applies", response("2", "x=bad", "y=2", "z=1"), "x: bad body", map[string]string{"x": "1", "y": "2", "z": "1"}, false},
		{"removal", response("3", "-y", "-nobody"), "", map[string]string{"x": "1", "z": "1"}, false},
		{"type never asked for", &discovery.DeltaDiscoveryResponse{TypeUrl: "C", Nonce: "4"}, "C: type was not asked for", map[string]string{"x": "1", "z": "1"}, false},
		{"not a resource", &discovery.DeltaDiscoveryResponse{TypeUrl: typeA, Nonce: "5", Resources: []*discovery.Resource{
			{Name: "n"}, {Resource: anyOf(typeA, "b")}, {Name: "o", Resource: anyOf(typeB, "b")}, {Name: "w", Version: "1", Resource: anyOf(typeA, "1")}}},
			"n: resource without a body; : resource without a name; o: body is a " + typeB, map[string]string{"x": "1", "z": "1", "w": "1"}, false},
		{"a partial response does not complete", &discovery.DeltaDiscoveryResponse{TypeUrl: typeB, Nonce: "6", SystemVersionInfo: partialVersion}, "", map[string]string{"x": "1", "z": "1", "w": "1"}, false},
		{"the last type", &discovery.DeltaDiscoveryResponse{TypeUrl: typeB, Nonce: "7"}, "", map[string]string{"x": "1", "z": "1", "w": "1"}, true},
	} {
		answer := f.respond(step.resp)
		if answer.GetResponseNonce() != step.resp.GetNonce() || answer.GetTypeUrl() != step.resp.GetTypeUrl() {
			t.Errorf("%s: answers %v", step.name, answer)
		}
		if answer.GetErrorDetail().GetMessage() != step.reject {
			t.Errorf("%s: rejects with %q, want %q", step.name, answer.GetErrorDetail().GetMessage(), step.reject)
		}
		if !maps.Equal(held, step.held) {
			t.Errorf("%s: holds %v, want %v", step.name, held, step.held)
		}
		if synced() != step.synced {
			t.Errorf("%s: synced %v", step.name, synced())
		}
	}
	// The next connection tells what is held; the rejected one with what it was.
	if got := f.hello()[0].GetInitialResourceVersions(); !maps.Equal(got, map[string]string{"x": "1", "z": "1", "w": "1"}) {
		t.Errorf("back with %v", got)
	}
}

func TestFollowerNamesAFewOfMany(t *testing.T) {
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, Apply: picky(map[string]string{})}})
	f.hello()
	var list []string
	for i := range 1000 {
		list = append(list, fmt.Sprintf("r%d=bad", i))
	}
	if got := f.respond(response("1", list...)).GetErrorDetail().GetMessage(); !strings.HasSuffix(got, "and 980 more") || len(got) > 1000 {
		t.Errorf("detail of %d bytes: %s", len(got), got)
	}
}

func TestFollowerFirstPerConnection(t *testing.T) {
	var firsts []bool
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, Apply: func(d Delta) []Rejection { firsts = append(firsts, d.First); return nil }}})
	for range 2 {
		f.hello()
		f.respond(response("1", "x=1"))
		f.respond(response("2", "x=2"))
	}
	if !slices.Equal(firsts, []bool{true, false, true, false}) {
		t.Errorf("first: %v", firsts)
	}
}

// TestFollowerOptional: a type that other servers do not have is asked for, on each
// connection, once the server has shown that it is Ambit's.
func TestFollowerOptional(t *testing.T) {
	held := map[string]string{}
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, Optional: true, Apply: picky(held)}, {TypeURL: typeB, Apply: picky(map[string]string{})}})
	for _, ours := range []bool{false, true, true, false} {
		if h := f.hello(); len(h) != 1 || h[0].GetTypeUrl() != typeB {
			t.Fatalf("%v", h)
		}
		for range 2 {
			r := &discovery.DeltaDiscoveryResponse{TypeUrl: typeB, Nonce: "1"}
			if ours {
				r.ControlPlane = &core.ControlPlane{Identifier: ControlPlane}
			}
			f.respond(r)
		}
		got := f.demands()
		if (len(got) == 1) != ours || ours && (got[0].GetTypeUrl() != typeA || len(got[0].GetResourceNamesSubscribe()) > 0 || got[0].GetInitialResourceVersions()["x"] != held["x"]) {
			t.Errorf("ours %v: %v", ours, got)
		}
		if again := f.demands(); len(again) > 0 {
			t.Errorf("%v", again)
		}
		if ours {
			f.respond(response("2", "x=1"))
		}
	}
	select {
	case <-f.synced:
	default:
		t.Error("it is not in sync without the optional type")
	}
	if held["x"] != "1" {
		t.Errorf("%v", held)
	}
}

func TestFollowerDemands(t *testing.T) {
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: picky(map[string]string{})}, {TypeURL: typeB, Apply: picky(map[string]string{})}})
	h := f.hello()[0]
	if !slices.Equal(h.GetResourceNamesSubscribe(), []string{"*"}) || !slices.Equal(h.GetResourceNamesUnsubscribe(), []string{"*"}) {
		t.Errorf("hello without demands: %v", h)
	}
	if _, err := f.demand(typeB, "x", false); err == nil {
		t.Error("demand of a type that is followed whole")
	}
	if _, err := f.demand(typeA, Wildcard, true); err == nil {
		t.Error("demand of everything")
	}
	answered := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	ask := func(name string) <-chan struct{} {
		c, err := f.demand(typeA, name, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	x, ip, gone := ask("x"), ask("ip"), ask("gone")
	if reqs := f.demands(); len(reqs) != 1 || !slices.Equal(reqs[0].GetResourceNamesSubscribe(), []string{"x", "ip", "gone"}) {
		t.Errorf("asks for %v", reqs)
	}
	if reqs := f.demands(); len(reqs) != 0 {
		t.Errorf("asks again for %v", reqs)
	}
	resp := response("1", "x=1", "-gone")
	resp.Resources = append(resp.Resources, &discovery.Resource{Name: "pod", Aliases: []string{"ip"}, Resource: anyOf(typeA, "1")})
	if answered(x) {
		t.Error("answered before the answer")
	}
	f.respond(resp)
	if !answered(x) || !answered(ip) || !answered(gone) || !answered(ask("x")) {
		t.Error("not answered")
	}
	h = f.hello()[0]
	if !slices.Equal(h.GetResourceNamesSubscribe(), []string{"gone", "ip", "x"}) || len(h.GetResourceNamesUnsubscribe()) != 0 {
		t.Errorf("hello with demands: %v", h)
	}
}

// fakeStream is a connection to a scripted server.
type fakeStream struct {
	ctx    context.Context
	script []*discovery.DeltaDiscoveryResponse
	end    error // after the script; nil hangs
}

func (s *fakeStream) Send(*discovery.DeltaDiscoveryRequest) error { return nil }

func (s *fakeStream) Recv() (*discovery.DeltaDiscoveryResponse, error) {
	if len(s.script) > 0 {
		r := s.script[0]
		s.script = s.script[1:]
		return r, nil
	}
	if s.end != nil {
		return nil, s.end
	}
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}

// TestBackoff holds the times between connections to the schedule.
func TestBackoff(t *testing.T) {
	refused := status.Error(codes.Unavailable, "connection refused")
	type attempt struct {
		dial   error
		serves bool
		end    error
		how    Termination
		// The delay that must follow, between half and all of it.
		delay time.Duration
	}
	var attempts []attempt
	for d := minBackoff; d < maxBackoff; d *= 2 {
		attempts = append(attempts, attempt{dial: refused, how: ConnectionError, delay: d})
	}
	attempts = append(attempts,
		attempt{dial: refused, how: ConnectionError, delay: maxBackoff},
		attempt{dial: refused, how: ConnectionError, delay: maxBackoff},
		attempt{serves: true, end: io.EOF, how: Complete},
		attempt{serves: true, end: status.Error(codes.Unavailable, "received prior goaway"), how: Reconnect},
		attempt{serves: true, end: status.Error(codes.Unavailable, "connection reset by peer"), how: Reconnect},
		attempt{end: io.EOF, how: Complete, delay: minBackoff},
		attempt{end: status.Error(codes.Unavailable, "x"), how: ConnectionError, delay: 2 * minBackoff},
		attempt{end: status.Error(codes.Unauthenticated, "token expired"), how: StreamError, delay: 4 * minBackoff},
		attempt{serves: true, end: status.Error(codes.PermissionDenied, "no"), how: StreamError, delay: 8 * minBackoff},
		attempt{serves: true, end: io.EOF, how: Complete},
		attempt{dial: refused, how: ConnectionError, delay: minBackoff},
	)
	synctest.Test(t, func(t *testing.T) {
		var ends []Termination
		c, err := NewClient(ClientConfig{
			Server: controlplane.Server{Address: "http://nowhere:1"}, Types: []TypeConfig{{TypeURL: typeA, Apply: func(Delta) []Rejection { return nil }}},
			Metrics: ClientMetrics{Terminated: func(how Termination) { ends = append(ends, how) }},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var at []time.Time
		c.connect = func(ctx context.Context) (stream, func(), error) {
			at = append(at, time.Now())
			n := len(at) - 1
			if n == len(attempts) {
				cancel()
				return nil, nil, ctx.Err()
			}
			a := attempts[n]
			s := &fakeStream{ctx: ctx, end: a.end}
			if a.serves {
				s.script = append(s.script, response("1"))
			}
			return s, func() {}, a.dial
		}
		_ = c.Run(ctx)
		if len(at) != len(attempts)+1 {
			t.Fatalf("%d connections, want %d", len(at), len(attempts)+1)
		}
		for i, a := range attempts {
			if got := at[i+1].Sub(at[i]); got < a.delay/2 || got > a.delay {
				t.Errorf("attempt %d (%s): waits %v, want %v to %v", i, a.how, got, a.delay/2, a.delay)
			}
			if ends[i] != a.how {
				t.Errorf("attempt %d ended as %s, want %s", i, ends[i], a.how)
			}
		}
	})
}

func FuzzFollowerRespond(f *testing.F) {
	for _, r := range []*discovery.DeltaDiscoveryResponse{response("1", "x=1", "-y"), response("2", "x=bad"), {}} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		resp := new(discovery.DeltaDiscoveryResponse)
		if proto.Unmarshal(b, resp) != nil {
			return
		}
		held := map[string]string{}
		fl := newFollower(nil, []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: picky(held)}})
		fl.hello()
		if _, err := fl.demand(typeA, "x", false); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			answer := fl.respond(resp)
			if answer.GetResponseNonce() != resp.GetNonce() {
				t.Fatal("answers another response")
			}
		}
		// A name that comes twice, good and bad, is held but not claimed.
		for name := range fl.types[typeA].versions {
			if _, ok := held[name]; !ok {
				t.Fatalf("claims to hold %q, holds %v", name, held)
			}
		}
	})
}
