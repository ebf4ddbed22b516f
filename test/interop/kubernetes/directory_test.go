package kubernetes

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corepb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// canary is the revision of the ambitd that is put beside istiod.
const canary = "canary"

//go:embed zoo.yaml
var zoo string

// Both control planes send a node proxy the same resources for the same objects, when
// clients may go around waypoints as with Istio.
func sameDirectory(t *testing.T, m *mesh) {
	n := m.town(t, "same", kit.Ambient())
	n.MustApply(strings.NewReplacer("$NODE", m.nodes[0], "$IMAGE", kit.TestImage).Replace(zoo))
	if err := m.Install(t.Context(), "--revision", canary, "--set", "profile=minimal",
		"--set", "values.pilot.extraContainerArgs={--waypoint-bypass="+wellknown.WaypointBypassAllow+"}"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := m.Ambit(t.Context(), "uninstall", "--revision", canary, "-y"); err != nil {
			t.Error(err)
		}
		m.ControlPlane(t, 1)
	}()
	pods, err := m.Ambitds(t.Context())
	if err != nil || len(pods) != 2 {
		t.Fatalf("want two control planes, there are %d: %v", len(pods), err)
	}
	var ours, theirs *grpc.ClientConn
	for _, p := range pods {
		if strings.HasPrefix(p.Name, "ambitd-") {
			ours = m.ConnTo(t, p.Name, "istiod-"+canary)
		} else {
			theirs = m.ConnTo(t, p.Name, "istiod")
		}
	}
	proxy, things := m.ProxyOn(t, m.nodes[0]), 0
	kit.Eventually(t, "both control planes say the same", func(context.Context) error {
		a, err := n.told(ours, proxy)
		if err != nil {
			return fmt.Errorf("ambitd: %w", err)
		}
		b, err := n.told(theirs, proxy)
		if err != nil {
			return fmt.Errorf("istiod: %w", err)
		}
		if len(b) < 40 {
			return fmt.Errorf("istiod speaks of %d things only", len(b))
		}
		things = len(b)
		return differ(a, b)
	})
	t.Logf("of %d things", things)
}

// differ says in what two control planes differ.
func differ(ours, theirs map[string]string) error {
	names := maps.Clone(ours)
	maps.Copy(names, theirs)
	var diffs []string
	for _, k := range slices.Sorted(maps.Keys(names)) {
		if a, b := ours[k], theirs[k]; a != b {
			diffs = append(diffs, fmt.Sprintf("%s\n  ambitd: %s\n  istiod: %s", k, cmp.Or(a, "nothing"), cmp.Or(b, "nothing")))
		}
	}
	if len(diffs) > 0 {
		return fmt.Errorf("%d of %d differ:\n%s", len(diffs), len(names), strings.Join(diffs, "\n"))
	}
	return nil
}

// told is what a control plane tells a proxy of this namespace and of the API
// server, by type and name.
func (n *town) told(conn *grpc.ClientConn, proxy *corev1.Pod) (map[string]string, error) {
	all := map[string]string{}
	err := n.each(conn, proxy, wellknown.TypeAddress, func(r *discovery.Resource) error {
		a := &workloadpb.Address{}
		if err := r.Resource.UnmarshalTo(a); err != nil {
			return err
		}
		if a.GetWorkload() != nil && strings.Contains(r.Name, "*") {
			return nil // what a wildcard leads to is the waypoint's to find
		}
		if strings.Contains(r.Name, n.Name) || strings.Contains(r.Name, "default/kubernetes") {
			all["address "+r.Name] = text(normalAddress(a))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, n.each(conn, proxy, wellknown.TypeAuthorization, func(r *discovery.Resource) error {
		a := &securitypb.Authorization{}
		if err := r.Resource.UnmarshalTo(a); err != nil {
			return err
		}
		all["authorization "+r.Name] = text(normalAuthorization(a))
		return nil
	})
}

// each asks for all resources of a type.
func (n *town) each(conn *grpc.ClientConn, proxy *corev1.Pod, url string, f func(*discovery.Resource) error) error {
	token := n.m.Token(n.t, proxy.Namespace, proxy.Spec.ServiceAccountName, proxy, kit.Audience)
	ctx, cancel := context.WithTimeout(kit.Bearing(n.t.Context(), token), 20*time.Second)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	md, err := structpb.NewStruct(map[string]any{"NAME": proxy.Name, "NAMESPACE": proxy.Namespace, "CLUSTER_ID": "Kubernetes", "NODE_NAME": proxy.Spec.NodeName, "SERVICE_ACCOUNT": proxy.Spec.ServiceAccountName, "INSTANCE_IPS": proxy.Status.PodIP})
	if err != nil {
		return err
	}
	node := &corepb.Node{Id: fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", proxy.Status.PodIP, proxy.Name, proxy.Namespace, proxy.Namespace), Metadata: md}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: url, Node: node, ResourceNamesSubscribe: []string{"*"}}); err != nil {
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return err
	}
	for _, r := range resp.Resources {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// text is the same for equal messages; protojson's own is not, on purpose.
func text(m proto.Message) string {
	return strings.ReplaceAll(protojson.MarshalOptions{}.Format(m), " ", "")
}

// withoutSelector are the Services whose endpoint slices are made by hand.
var withoutSelector = []string{"manual", "kubernetes"}

// normalAddress leaves out what the two are known to say differently, and what
// no proxy heeds: docs/interop.md has the list.
func normalAddress(a *workloadpb.Address) *workloadpb.Address {
	if s := a.GetService(); s != nil && slices.Contains(withoutSelector, s.Name) {
		for _, p := range s.Ports {
			p.TargetPort = 0
		}
	}
	w := a.GetWorkload()
	if w == nil {
		return a
	}
	w.WorkloadType = 0
	for _, ports := range w.Services {
		for _, p := range ports.Ports {
			p.AppProtocol = 0
		}
	}
	slices.Sort(w.AuthorizationPolicies)
	if w.TunnelProtocol == workloadpb.TunnelProtocol_NONE {
		w.AuthorizationPolicies = nil // there is no proxy that would enforce them
	}
	switch {
	case strings.Contains(w.Uid, "/EndpointSlice/"):
		w.CanonicalName, w.CanonicalRevision, w.WorkloadName = "", "", ""
	case strings.Contains(w.Uid, "/ServiceEntry/"):
		w.ServiceAccount, w.CanonicalName, w.CanonicalRevision = "", "", ""
	}
	return a
}

// normalAuthorization brings what means the same into one form: the order of
// rules, all of which have to hold, does not matter, one without matches always
// holds, and one with a single match is a rule for each of its fields.
func normalAuthorization(a *securitypb.Authorization) *securitypb.Authorization {
	for _, g := range a.Groups {
		byText := map[string]*securitypb.Rules{}
		for _, r := range g.Rules {
			for _, part := range split(r) {
				byText[text(part)] = part
			}
		}
		g.Rules = nil
		for _, k := range slices.Sorted(maps.Keys(byText)) {
			g.Rules = append(g.Rules, byText[k])
		}
	}
	return a
}

func split(r *securitypb.Rules) []*securitypb.Rules {
	switch len(r.Matches) {
	case 0:
		return nil
	case 1:
	default:
		return []*securitypb.Rules{r}
	}
	var parts []*securitypb.Rules
	r.Matches[0].ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		one := &securitypb.Match{}
		one.ProtoReflect().Set(f, v)
		parts = append(parts, &securitypb.Rules{Matches: []*securitypb.Match{one}})
		return true
	})
	if len(parts) == 0 {
		return []*securitypb.Rules{r} // a match of nothing never holds
	}
	return parts
}
