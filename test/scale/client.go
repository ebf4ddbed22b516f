package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// node is the control plane's client on one simulated node: a connection of
// its own with TLS and a token of its own, which follows all addresses and
// policies as a node proxy does, and keeps nothing of them but which it has.
type node struct {
	name, pod string
	token     string
	fleet     *fleet
	first     bool // of all: it keeps the versions that it was told
	served    bool // on this connection; owned by run

	seen *expectation // acknowledged; owned by run
}

// fleet is what all nodes have in common.
type fleet struct {
	address    string
	serverName string
	whole      bool // everything in one message, as Istio's node proxies take it
	roots      *x509.CertPool
	wanted     map[string]int // numbers the addresses that every node must have
	awaited    atomic.Pointer[expectation]
	// known is what nodes say that they have when they connect, has the bits of
	// that; versions is what the first node was told.
	known, versions map[string]string
	has             []uint64

	bytes   atomic.Int64 // received
	refused atomic.Int64 // connections
	synced  chan synced  // one of each node
}

// synced is what a node knew when it knew everything.
type synced struct {
	node string
	has  int // of the addresses that are wanted
	told int // of them, some perhaps twice
	at   time.Time
}

// expectation is a change that every node is to acknowledge.
type expectation struct {
	resource string
	healthy  bool
	acks     chan time.Time // room for all
}

// codec leaves responses as they are.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("a %T is no message", v)
	}
	return proto.Marshal(m)
}

func (codec) Unmarshal(data []byte, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("a response is no %T", v)
	}
	*b = append((*b)[:0], data...)
	return nil
}

const (
	// partialResponses lets the control plane divide its first response.
	partialResponses = "ambit.xds.partial-responses"

	deltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	// maxMessage is what node proxies take.
	maxMessage = 200 << 20
	// frameBytes are what gRPC adds to a message.
	frameBytes = 5
)

// Waits between attempts of a node that the control plane has no time for.
const (
	firstWait = 100 * time.Millisecond
	lastWait  = 5 * time.Second
)

// run follows the control plane until ctx ends or something is wrong. Who is
// sent away at the door comes again, as a node proxy does.
func (n *node) run(ctx context.Context) error {
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := n.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // nobody wants to know any more
		}
		if code := status.Code(err); n.served || code != codes.ResourceExhausted && code != codes.Unavailable {
			return fmt.Errorf("%s: %w", n.name, err)
		}
		n.fleet.refused.Add(1)
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
			return nil
		}
	}
}

// stream opens a stream of deltas with a connection of its own, which done closes.
func (f *fleet) stream(ctx context.Context, token string) (s grpc.ClientStream, done func(), err error) {
	conn, err := grpc.NewClient("passthrough:///"+f.address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName, RootCAs: f.roots})),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithNoProxy())
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = conn.Close() } // the stream tells
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token, "clusterid", wellknown.DefaultCluster)
	s, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, deltaMethod)
	if err != nil {
		done()
		return nil, nil, err
	}
	return s, done, nil
}

func (n *node) follow(ctx context.Context) error {
	n.served = false
	s, done, err := n.fleet.stream(ctx, n.token)
	if err != nil {
		return err
	}
	defer done()
	for _, url := range []string{wellknown.TypeAuthorization, wellknown.TypeAddress} {
		if err := s.SendMsg(n.hello(url)); err != nil {
			return errors.Join(err, s.RecvMsg(new([]byte)))
		}
	}
	return n.answer(s)
}

// hello subscribes to everything of a type.
func (n *node) hello(url string) *discovery.DeltaDiscoveryRequest {
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: url, Node: &core.Node{
		Id:       "ztunnel~127.0.0.1~" + n.pod + "." + systemNamespace + "~" + systemNamespace + ".svc.cluster.local",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"NODE_NAME": structpb.NewStringValue(n.name)}},
	}}
	if !n.fleet.whole {
		req.Node.ClientFeatures = []string{partialResponses}
	}
	if url == wellknown.TypeAddress {
		req.InitialResourceVersions = n.fleet.known
	}
	return req
}

// answer acknowledges what comes, for ever.
func (n *node) answer(s grpc.ClientStream) error {
	var msg []byte
	start := n.start()
	for {
		if err := s.RecvMsg(&msg); err != nil {
			return err
		}
		n.fleet.bytes.Add(int64(len(msg)) + frameBytes)
		n.served = true
		awaited, met := n.fleet.awaited.Load(), false
		r, err := readResponse(msg, func(r resource) (err error) {
			if start != nil {
				start.note(r)
			} else if awaited != nil && string(r.name) == awaited.resource {
				met, err = healthIs(r.body, awaited.healthy)
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := s.SendMsg(&discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}); err != nil {
			return errors.Join(err, s.RecvMsg(&msg))
		}
		if met && n.seen != awaited {
			n.seen = awaited
			awaited.acks <- time.Now()
		}
		if r.typeURL == wellknown.TypeAddress && start != nil && !r.partial {
			n.fleet.synced <- synced{n.name, start.has, start.told, time.Now()}
			start, msg = nil, nil // the buffer was as large as the mesh
		}
	}
}

// start is what a node learns until it has the whole mesh.
type start struct {
	*node
	got       []uint64 // a bit for each that is wanted
	has, told int
}

func (n *node) start() *start {
	s := &start{node: n, got: slices.Clone(n.fleet.has), has: len(n.fleet.known)}
	if n.first {
		n.fleet.versions = map[string]string{}
	}
	return s
}

func (s *start) note(r resource) {
	i, ok := s.fleet.wanted[string(r.name)]
	if !ok {
		return
	}
	s.told++
	if bit := uint64(1) << (i % 64); s.got[i/64]&bit == 0 {
		s.got[i/64] |= bit
		s.has++
	}
	if s.first {
		s.fleet.versions[string(r.name)] = string(r.version)
	}
}

// want says what every node must have.
func (f *fleet) want(names []string) {
	f.wanted = make(map[string]int, len(names))
	for i, name := range names {
		f.wanted[name] = i
	}
	f.has = make([]uint64, (len(names)+63)/64)
}

// remember makes what the first node was told what all nodes know when they
// connect the next time.
func (f *fleet) remember() {
	f.known = f.versions
	clear(f.has)
	for name := range f.known {
		i := f.wanted[name]
		f.has[i/64] |= 1 << (i % 64)
	}
}
