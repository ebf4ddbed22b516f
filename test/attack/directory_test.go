package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/test/rig"
)

// shopWaypoint is a Gateway whose account is shop/waypoint.
const shopWaypoint = `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

var resourceTypes = []string{wellknown.TypeAddress, wellknown.TypeAuthorization}

// visitor is one stream of a client of xDS, which keeps what it is sent.
type visitor struct {
	t       *testing.T
	err     error // why the stream ended
	stream  discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	barrier int
	// got has the resources by type and name.
	got map[string]map[string]*discovery.Resource
}

// visit opens a stream; without a token, the connection has a certificate. The
// stream ends with ctx.
func visit(ctx context.Context, t *testing.T, cc *grpc.ClientConn, token string) *visitor {
	t.Helper()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t: t, stream: stream, got: map[string]map[string]*discovery.Resource{}}
}

// ask sends a request, and returns when it is answered, as well as all that was
// due before.
func (v *visitor) ask(req *discovery.DeltaDiscoveryRequest) {
	v.t.Helper()
	v.send(req)
	v.settle(req.TypeUrl)
}

// settle asks for a name that does not exist, and reads until that is answered.
func (v *visitor) settle(typ string) {
	v.t.Helper()
	v.barrier++
	name := fmt.Sprint("no such name ", v.barrier)
	v.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: []string{name}})
	for v.err == nil {
		resp, err := v.stream.Recv()
		if err != nil {
			v.err = err
			return
		}
		if v.got[resp.TypeUrl] == nil {
			v.got[resp.TypeUrl] = map[string]*discovery.Resource{}
		}
		for _, r := range resp.Resources {
			v.got[resp.TypeUrl][r.Name] = r
		}
		v.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce})
		if resp.TypeUrl == typ && slices.Contains(resp.RemovedResources, name) {
			return
		}
	}
}

// send sends a request. That a stream has ended, Recv says, and why.
func (v *visitor) send(req *discovery.DeltaDiscoveryRequest) {
	v.t.Helper()
	if err := v.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		v.t.Fatal(err)
	}
}

// names lists what the visitor was sent.
func (v *visitor) names() []string {
	var out []string
	for _, resources := range v.got {
		out = slices.AppendSeq(out, maps.Keys(resources))
	}
	slices.Sort(out)
	return out
}

// known is all that a node proxy is sent: what an attacker may know of.
type known map[string]map[string]*discovery.Resource

// asks returns the ways to ask for all of a type.
func (k known) asks(typ string) map[string]*discovery.DeltaDiscoveryRequest {
	var names, aliases []string
	versions := map[string]string{}
	for name, r := range k[typ] {
		names, aliases = append(names, name), append(aliases, r.Aliases...)
		versions[name] = r.Version
	}
	old := map[string]string{}
	for name := range versions {
		old[name] = "another version"
	}
	groups := []string{
		"node/Kubernetes/node1", "node/Kubernetes/node2", "//node/node1", "gateway/Kubernetes/shop/waypoint", "node1", "shop", "shop/*", "",
	}
	out := map[string]*discovery.DeltaDiscoveryRequest{
		"wildcard":          {},
		"explicit wildcard": {ResourceNamesSubscribe: []string{"*"}},
		"on demand":         {ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}},
		"name":              {ResourceNamesSubscribe: names},
		"alias":             {ResourceNamesSubscribe: aliases},
		"group":             {ResourceNamesSubscribe: groups},
		"wildcard and name": {ResourceNamesSubscribe: append([]string{"*"}, names...)},
		"versions":          {InitialResourceVersions: old},
		"versions and name": {InitialResourceVersions: old, ResourceNamesSubscribe: names},
		"true versions":     {InitialResourceVersions: versions},
	}
	for _, req := range out {
		req.TypeUrl = typ
		meta, _ := structpb.NewStruct(map[string]any{"NODE_NAME": "node1", "NAMESPACE": "istio-system", "SERVICE_ACCOUNT": "ztunnel"})
		req.Node = &core.Node{Id: "ztunnel~10.0.0.1~ztunnel-node1.istio-system~istio-system.svc.cluster.local", Metadata: meta}
	}
	return out
}

// withCertificate connects with a certificate of the mesh, and no token.
func withCertificate(w *rig.World, in lab.Where, address, spiffe string) *grpc.ClientConn {
	t := w.T()
	roots, err := os.ReadFile(filepath.Join(w.StateDir(), "ambitd", "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	own := mtls.Client(w.Bundle(spiffe), nil)
	cc, err := grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(dialer(w.Netns(in))),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: pool, MinVersion: tls.VersionTLS13, Certificates: own.Certificates, GetClientCertificate: own.GetClientCertificate,
		})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// TestDirectoryIsForProxies: callers with credentials of the mesh ask for the
// directory and the policies in every way that the protocol has. A pod, the
// account of a waypoint's name in another namespace, and certificates of any
// account are refused. A waypoint finds addresses by name. It is sent nothing
// else, neither at once nor when something changes.
func TestDirectoryIsForProxies(t *testing.T) {
	t.Parallel()
	w := start(t, shopWaypoint+rig.PolicyObject("shop", "only-here", "DENY", `rules: [{from: [{source: {namespaces: ["nowhere"]}}]}]`))
	proxy := auth.Caller{Namespace: wellknown.SystemNamespace, ServiceAccount: "ztunnel", Node: "node2"}
	gateway := auth.Caller{Namespace: "shop", ServiceAccount: "waypoint", Node: "node1"}
	thief := auth.Caller{Namespace: "market", ServiceAccount: "thief1", PodName: "thief1", PodUID: "1", Node: "node1"}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		cc := connect(t, w, dialer(w.Netns(thief1)), frontDoor(v6))
		t.Cleanup(func() { _ = cc.Close() })
		all := directory(t, cc, tokenOf(w, proxy))
		for name, caller := range map[string]struct {
			cc    *grpc.ClientConn
			token string
		}{
			"a pod":                                    {cc, tokenOf(w, thief)},
			"a pod's account":                          {cc, tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "thief1"})},
			"a waypoint's name in another namespace":   {cc, tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "waypoint"})},
			"a node proxy's name in another namespace": {cc, tokenOf(w, auth.Caller{Namespace: "market", ServiceAccount: "ztunnel", Node: "node1"})},
			"a pod of the namespace":                   {cc, tokenOf(w, auth.Caller{Namespace: "shop", ServiceAccount: "web", PodName: "web", Node: "node1"})},
			"a pod's certificate":                      {withCertificate(w, thief1, frontDoor(v6), "spiffe://cluster.local/ns/market/sa/thief1"), ""},
			"a waypoint's certificate":                 {withCertificate(w, thief1, frontDoor(v6), "spiffe://cluster.local/ns/shop/sa/waypoint"), ""},
			"a node proxy's certificate":               {withCertificate(w, thief1, frontDoor(v6), "spiffe://cluster.local/ns/istio-system/sa/ztunnel"), ""},
		} {
			t.Run(name, func(t *testing.T) {
				for _, typ := range resourceTypes {
					for way, req := range all.asks(typ) {
						if got, err := once(t, caller.cc, caller.token, req); status.Code(err) != codes.PermissionDenied || len(got) > 0 {
							t.Errorf("%s, by %s: was sent %v, and ends with %v", typ, way, got, err)
						}
					}
				}
			})
		}
		t.Run("the waypoint", func(t *testing.T) {
			token := tokenOf(w, gateway)
			for _, typ := range resourceTypes {
				for way, req := range all.asks(typ) {
					byName := slices.Contains([]string{"name", "alias", "wildcard and name", "versions and name"}, way)
					got, err := once(t, cc, token, req)
					if err != nil {
						t.Errorf("%s, by %s: %v", typ, way, err)
					}
					if sent := len(got) == len(all[typ]); typ == wellknown.TypeAddress && byName && !sent || (typ != wellknown.TypeAddress || !byName) && len(got) > 0 {
						t.Errorf("%s, by %s: was sent %d of %d: %v", typ, way, len(got), len(all[typ]), got)
					}
				}
			}
		})
	})
	t.Run("changes", func(t *testing.T) { changesAreForProxies(t, w.For(t), tokenOf(w, proxy), tokenOf(w, gateway)) })
}

// directory returns all that a node proxy is sent, and checks that there is
// something to steal.
func directory(t *testing.T, cc *grpc.ClientConn, token string) known {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	v := visit(ctx, t, cc, token)
	for _, typ := range resourceTypes {
		v.ask(&discovery.DeltaDiscoveryRequest{TypeUrl: typ})
		if len(v.got[typ]) == 0 {
			t.Fatalf("a node proxy is sent %v: %v", v.names(), v.err)
		}
	}
	return v.got
}

// once asks on a stream of its own, and returns the names of what came, and why
// the stream ended if it did.
func once(t *testing.T, cc *grpc.ClientConn, token string, req *discovery.DeltaDiscoveryRequest) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v := visit(ctx, t, cc, token)
	v.ask(req)
	return v.names(), v.err
}

// changesAreForProxies has a waypoint ask on one stream for what is not its own,
// and changes the mesh: a node proxy is sent the change, and the waypoint nothing.
func changesAreForProxies(t *testing.T, w *rig.World, proxy, gateway string) {
	cc := connect(t, w, dialer(w.Netns(thief1)), frontDoor(false))
	t.Cleanup(func() { _ = cc.Close() })
	all := directory(t, cc, proxy)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	honest, spy := visit(ctx, t, cc, proxy), visit(ctx, t, cc, gateway)
	for _, typ := range resourceTypes {
		honest.ask(all.asks(typ)["wildcard"])
		for way, req := range all.asks(typ) {
			// Addresses by name are its own to ask for.
			if typ == wellknown.TypeAuthorization || slices.Contains([]string{"wildcard", "explicit wildcard", "group", "on demand"}, way) {
				spy.ask(req)
			}
		}
	}
	w.MustApply(rig.PolicyObject("shop", "only-here", "DENY", `rules: [{from: [{source: {namespaces: ["elsewhere"]}}]}]`) +
		rig.ServiceObject("shop", "brand-new", "web", "{name: http, port: 80, targetPort: 8080}"))
	before := all[wellknown.TypeAuthorization]["shop/only-here"].GetVersion()
	w.Eventually("a node proxy is sent the changes", func() error {
		for _, typ := range resourceTypes {
			if honest.settle(typ); honest.err != nil {
				t.Fatal(honest.err)
			}
		}
		policy := honest.got[wellknown.TypeAuthorization]["shop/only-here"]
		service := honest.got[wellknown.TypeAddress]["shop/brand-new.shop.svc.cluster.local"]
		if policy.GetVersion() == before || service == nil {
			return fmt.Errorf("policy %q, service %v", policy.GetVersion(), service)
		}
		return nil
	})
	for _, typ := range resourceTypes {
		spy.settle(typ)
	}
	if got := spy.names(); len(got) > 0 || spy.err != nil {
		t.Errorf("a waypoint was sent %v, %v", got, spy.err)
	}
}

// TestNodeProxyOfAnotherNode: a node proxy that asks for single names is sent
// what runs on its own node besides, whichever node it claims, and gets no
// certificate for a pod of another node.
func TestNodeProxyOfAnotherNode(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		cc := connect(t, w, dialer(w.Netns(thief1)), frontDoor(v6))
		t.Cleanup(func() { _ = cc.Close() })
		token := tokenOf(w, auth.Caller{Namespace: wellknown.SystemNamespace, ServiceAccount: "ztunnel", Node: "node2"})
		all := directory(t, cc, token)
		want := map[string][]string{}
		for name, r := range all[wellknown.TypeAddress] {
			var a workloadpb.Address
			if err := r.Resource.UnmarshalTo(&a); err != nil {
				t.Fatal(err)
			}
			if node := a.GetWorkload().GetNode(); node != "" {
				want[node] = append(want[node], name)
			}
		}
		slices.Sort(want["node2"])
		if len(want["node1"]) == 0 || len(want["node2"]) == 0 {
			t.Fatalf("workloads by node: %v", want)
		}
		req := all.asks(wellknown.TypeAddress)["on demand"] // says that it is of node1
		if got, err := once(t, cc, token, req); err != nil || !slices.Equal(got, want["node2"]) {
			t.Errorf("the proxy of node2 is sent %v, and its node has %v: %v", got, want["node2"], err)
		}
		for account, ok := range map[string]bool{"thief1": false, "thief2": true} { // on node1 and node2
			err := certificate(t, cc, token, "spiffe://cluster.local/ns/market/sa/"+account)
			if (err == nil) != ok || !ok && status.Code(err) != codes.Unauthenticated {
				t.Errorf("the proxy of node2 asks for a certificate of %s: %v", account, err)
			}
		}
	})
}

// certificate asks for a certificate of another identity.
func certificate(t *testing.T, cc *grpc.ClientConn, token, spiffe string) error {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": spiffe})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), patience)
	defer cancel()
	_, err = securityapi.NewIstioCertificateServiceClient(cc).CreateCertificate(ctx, &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), Metadata: meta, ValidityDuration: 3600,
	})
	return err
}
