package ztunnel

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
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
