package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// pipe is a stream in memory, of a caller.
type pipe struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	ctx    context.Context
	caller Caller
	heard  chan struct{}
	in     chan *discovery.DeltaDiscoveryRequest
	out    chan *reply
	ended  chan error
}

type pipeKey struct{}

func (p *pipe) Context() context.Context { return p.ctx }

func (p *pipe) RecvMsg(m any) error {
	select {
	case req, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		into, ok := m.(*request)
		if !ok {
			return fmt.Errorf("receive into %T", m)
		}
		into.TypeUrl, into.Node = req.TypeUrl, req.Node
		into.ResourceNamesSubscribe, into.ResponseNonce = req.ResourceNamesSubscribe, req.ResponseNonce
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pipe) SendMsg(m any) error {
	r, ok := m.(*reply)
	if !ok {
		return fmt.Errorf("send %T", m)
	}
	select {
	case p.out <- r:
	case <-p.ctx.Done():
	}
	return nil
}

// says sends a request; the first one is heard.
func (p *pipe) says(req *discovery.DeltaDiscoveryRequest) {
	select {
	case <-p.heard:
	default:
		close(p.heard)
	}
	p.in <- req
}

// over returns how the stream ended, and nil while it has not.
func (p *pipe) over() error {
	synctest.Wait()
	select {
	case err := <-p.ended:
		p.ended <- err
		return err
	default:
		return nil
	}
}

// answered reports whether the server has sent something.
func (p *pipe) answered() bool {
	synctest.Wait()
	return len(p.out) > 0
}

// stage is a Server whose streams come from pipes.
type stage struct {
	t      *testing.T
	server *Server
	ctx    context.Context
}

func newStage(t *testing.T) *stage {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); synctest.Wait() })
	c := NewCache()
	c.Update(typeA, numbered(3, "v1"), nil)
	c.MarkSynced(typeA)
	of := func(ctx context.Context) *pipe { p, _ := ctx.Value(pipeKey{}).(*pipe); return p }
	return &stage{t, NewServer(c, ServerOptions{
		Caller: func(ctx context.Context) Caller { return of(ctx).caller },
		Heard:  func(ctx context.Context) <-chan struct{} { return of(ctx).heard },
	}), ctx}
}

func (s *stage) open(c Caller) *pipe {
	p := &pipe{caller: c, heard: make(chan struct{}), in: make(chan *discovery.DeltaDiscoveryRequest, 8), out: make(chan *reply, 8), ended: make(chan error, 1)}
	p.ctx = context.WithValue(s.ctx, pipeKey{}, p)
	go func() { p.ended <- errors.Join(s.server.DeltaAggregatedResources(p), errOver) }()
	synctest.Wait()
	return p
}

var errOver = errors.New("over")

func pod(account, name string) Caller {
	return Caller{Owner: account + "/" + name, Account: account, Single: true}
}

func nodeProxy(n int) Caller {
	return Caller{Owner: fmt.Sprintf("istio-system/ztunnel/%d", n), Account: "istio-system/ztunnel", Single: true, NodeProxy: true}
}

var everything = &discovery.DeltaDiscoveryRequest{TypeUrl: typeA}

// TestSilenceTakesNoSeat: thousands of streams that say nothing, of many pods
// of a tenant, hold up neither node proxies nor another tenant, and end.
func TestSilenceTakesNoSeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var silent []*pipe
		for i := range 2000 {
			silent = append(silent, s.open(pod("evil/token", fmt.Sprint(i))))
		}
		for i, c := range []Caller{nodeProxy(1), nodeProxy(2), pod("shop/vm", "a")} {
			p := s.open(c)
			p.says(everything)
			if !p.answered() {
				t.Errorf("caller %d is not answered at once", i)
			}
		}
		time.Sleep(silence + time.Second)
		for _, p := range silent {
			if err := p.over(); !errors.Is(err, errSilent) {
				t.Fatalf("a silent stream: %v", err)
			}
		}
		if n := len(s.server.Clients()); n != 3 {
			t.Errorf("%d streams are open", n)
		}
	})
}

// TestATenantWithBytesHoldsUpNoOther: streams that have begun to say something
// and do not end it take the seats of their own account only.
func TestATenantWithBytesHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var slow []*pipe
		for i := range 100 {
			p := s.open(pod("evil/token", fmt.Sprint(i)))
			close(p.heard)
			slow = append(slow, p)
		}
		for i, c := range []Caller{nodeProxy(1), pod("shop/vm", "a"), pod("front/vm", "b")} {
			p := s.open(c)
			p.says(everything)
			if !p.answered() {
				t.Errorf("caller %d is not answered at once", i)
			}
		}
		own := s.open(pod("evil/token", "own"))
		own.says(everything)
		if own.answered() {
			t.Error("the account has more seats than its share")
		}
		time.Sleep(otherTime + time.Second)
		ended := 0
		for _, p := range slow {
			if p.over() != nil {
				ended++
			}
		}
		if ended != otherAccount {
			t.Errorf("%d slow streams have ended, of %d with a seat", ended, otherAccount)
		}
	})
}

func TestStreamsOfAPodAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var all []*pipe
		for i := range 6 {
			p := s.open(nodeProxy(1))
			if all = append(all, p); i != 2 {
				p.says(everything)
				synctest.Wait()
			}
		}
		for i, p := range all {
			// The third said nothing, then it is the turn of the oldest.
			if want := i == 2 || i == 0; (p.over() != nil) != want {
				t.Errorf("stream %d: %v", i, p.over())
			}
		}
		if err := all[0].over(); !errors.Is(err, errReplaced) {
			t.Errorf("%v", err)
		}
		if p := s.open(nodeProxy(2)); p.over() != nil {
			t.Error("another node's proxy")
		}
	})
}

func TestNamesOfACallerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		names := func(n int) []string {
			out := make([]string, n)
			for i := range out {
				out[i] = fmt.Sprint("name-", i)
			}
			return out
		}
		for _, tt := range []struct {
			caller Caller
			types  int
			ends   bool
		}{{pod("shop/vm", "a"), 1, false}, {pod("shop/vm", "b"), 3, true}, {nodeProxy(1), 3, false}, {nodeProxy(2), 30, true}} {
			p := s.open(tt.caller)
			for i := range tt.types {
				if p.over() == nil {
					p.says(&discovery.DeltaDiscoveryRequest{TypeUrl: fmt.Sprint("type", i), ResourceNamesSubscribe: names(8000)})
				}
			}
			if (p.over() != nil) != tt.ends {
				t.Errorf("%+v with %d types of 8000 names: %v", tt.caller, tt.types, p.over())
			}
		}
	})
}

// TestStreamsEndWhenTheirCallerChanges: of one owner or account, and of no other.
func TestStreamsEndWhenTheirCallerChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		gone, beside, other := s.open(pod("shop/vm", "a")), s.open(pod("shop/vm", "b")), s.open(pod("front/vm", "a"))
		for _, p := range []*pipe{gone, beside, other} {
			p.says(everything)
		}
		s.server.EndOwner("nobody")
		s.server.EndAccount("nobody")
		s.server.EndOwner("shop/vm/a")
		synctest.Wait()
		if err := gone.over(); !errors.Is(err, errChanged) {
			t.Errorf("the stream of the owner: %v", err)
		}
		if beside.over() != nil || other.over() != nil {
			t.Errorf("streams of others: %v, %v", beside.over(), other.over())
		}
		s.server.EndAccount("shop/vm")
		synctest.Wait()
		if err := beside.over(); !errors.Is(err, errChanged) || other.over() != nil {
			t.Errorf("of the account: %v, of another: %v", err, other.over())
		}
	})
}

var _ grpc.ServerStream = (*pipe)(nil)
