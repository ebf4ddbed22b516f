package feed

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// TestPolicyThatCannotBeReadDenies: a policy resource of which not even the
// kind is known may be a DENY.
func TestPolicyThatCannotBeReadDenies(t *testing.T) {
	store := rbac.NewStore()
	bad := xds.Resource{Name: "shop/unreadable", Version: "1", Body: []byte{0xff, 0xff, 0xff}}
	rejected := applyPolicies(store, xds.Delta{Updated: []xds.Resource{bad}, First: true})
	if len(rejected) != 1 || rejected[0].Name != bad.Name {
		t.Fatalf("rejected %v", rejected)
	}
	conn := &rbac.Conn{Src: netip.MustParseAddrPort("10.0.0.1:1"), Dst: netip.MustParseAddrPort("10.0.0.2:2")}
	if d := store.Set().Evaluate(rbac.Target{Namespace: "shop"}, conn); d.Allowed {
		t.Error("a connection to the policy's namespace is allowed")
	}
	if d := store.Set().Evaluate(rbac.Target{Namespace: "elsewhere"}, conn); !d.Allowed {
		t.Error("a connection to another namespace is denied")
	}
	applyPolicies(store, xds.Delta{Removed: []string{bad.Name}})
	if d := store.Set().Evaluate(rbac.Target{Namespace: "shop"}, conn); !d.Allowed {
		t.Error("the policy is gone and still denies")
	}
}

// TestAddresses: an address that cannot be read is rejected by its name, and those
// beside it count.
func TestAddresses(t *testing.T) {
	dir := workload.NewDirectory(workload.Options{TrustDomain: "cluster.local"})
	good := &workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{Uid: "uid", Name: "web", Namespace: "shop", Addresses: [][]byte{{10, 0, 0, 1}}}}}
	body, err := proto.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	rejected := Addresses(dir, true).Apply(xds.Delta{Updated: []xds.Resource{{Name: "bad", Body: []byte{0xff}}, {Name: "uid", Body: body}}})
	if len(rejected) != 1 || rejected[0].Name != "bad" || dir.Snapshot().WorkloadByUID("uid") == nil {
		t.Errorf("rejected %v, workload %v", rejected, dir.Snapshot().WorkloadByUID("uid"))
	}
}

// TestNode: the control plane finds who calls where Istio's proxies put it.
func TestNode(t *testing.T) {
	s := &bootstrap.Settings{ClusterDomain: "cluster.local", ClusterID: "east", InstanceIP: "10.0.0.7", NodeName: "node1", ProxyMetadata: map[string]string{"NETWORK": "n"}}
	n := Node("waypoint", s, &bootstrap.Workload{Name: "w-1", Namespace: "shop", ServiceAccount: "w"}, []string{`ISTIO_METAJSON_LABELS={"a":"b"}`, "ISTIO_METAJSON_BAD={"})
	if n.GetId() != "waypoint~10.0.0.7~w-1.shop~shop.svc.cluster.local" {
		t.Error(n.GetId())
	}
	got := n.GetMetadata().AsMap()
	for k, want := range map[string]string{"NAMESPACE": "shop", "SERVICE_ACCOUNT": "w", "CLUSTER_ID": "east", "NODE_NAME": "node1", "NETWORK": "n"} {
		if got[k] != want {
			t.Errorf("%s is %v, want %s", k, got[k], want)
		}
	}
	if l, ok := got["LABELS"].(map[string]any); !ok || l["a"] != "b" || got["BAD"] != nil {
		t.Errorf("%v", got)
	}
	if id := Node("ztunnel", &bootstrap.Settings{ClusterDomain: "d"}, nil, nil).GetId(); id != "ztunnel~1.1.1.1~.~.svc.d" {
		t.Error(id)
	}
}
