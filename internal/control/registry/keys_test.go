package registry

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/l7/authn"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
	"github.com/ambit-mesh/ambit/internal/source"
)

// fetches records what is to be fetched.
type fetches map[jwks.Source]bool

func (f fetches) Want(s jwks.Source)   { f[s] = true }
func (f fetches) Forget(s jwks.Source) { delete(f, s) }

func (f fetches) String() string {
	var out []string
	for s := range f {
		out = append(out, s.Namespace+" "+s.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestKeys: the keys are fetched of policies that waypoints may get, once a namespace, and
// what is fetched reaches waypoints and status.
func TestKeys(t *testing.T) {
	f, rec := fetches{}, newRecorder()
	r := New(tables.Options{Keys: f}, rec)
	policy := func(namespace, name, target, rules string) string {
		return fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: {%sjwtRules: [%s]}\n---\n", name, namespace, target, rules)
	}
	const api = "targetRefs: [{kind: Service, name: api}], "
	r.Apply(events(t, fmt.Sprintf(gateway, ", labels: {istio.io/waypoint-for: all}", "", "")+
		"apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: wp}}\nspec: {ports: [{port: 80}]}\n---\n"+
		policy("shop", "a", api, `{issuer: "https://x", jwksUri: "https://x/keys"}, {issuer: "https://y"}`)+
		policy("shop", "b", api, `{issuer: z, jwksUri: "https://x/keys"}, {issuer: own, jwks: "{}"}, {issuer: nowhere}`)+
		policy("bank", "c", api, `{issuer: z, jwksUri: "https://x/keys"}`)+
		policy("shop", "d", "selector: {matchLabels: {app: web}}, ", `{issuer: z, jwksUri: "https://d/keys"}`)))
	if got := f.String(); got != "bank https://x/keys, shop https://x/keys, shop https://y" {
		t.Error(got)
	}
	keys := func() (got []string) {
		for name, body := range rec.tokens {
			s := authn.NewStore()
			if err := s.Put(name, body); err != nil {
				t.Fatal(err)
			}
			sum := s.Summaries()[0]
			got = append(got, fmt.Sprint(sum.Policy, sum.Providers[0].Keys))
		}
		slices.Sort(got)
		return got
	}
	if got := keys(); !slices.Equal(got, []string{"shop/a0", "shop/b0"}) {
		t.Errorf("%q", got)
	}
	set := jwttest.Keys(t, jwttest.New(t, "x", "k", jose.ES256))
	src := jwks.Source{Namespace: "shop", URI: "https://x/keys"}
	r.SetKeys(src, &jwks.State{Keys: string(set.Text()), Count: 1})
	if got := keys(); !slices.Equal(got, []string{"shop/a1", "shop/b1"}) {
		t.Errorf("%q", got)
	}
	expect(t, r, source.RequestAuthentication.Name, "a", status.KeysFetched, "Unknown "+status.ReasonPending)
	expect(t, r, source.RequestAuthentication.Name, "b", status.WaypointAccepted, "False "+status.ReasonAncestorNotBound)
	expect(t, r, source.RequestAuthentication.Name, "d", status.WaypointAccepted, "False "+status.ReasonUnsupportedValue)
	updates := rec.updates
	r.SetKeys(src, &jwks.State{Keys: string(set.Text()), Count: 1})
	if rec.updates != updates {
		t.Error("the same keys are sent again")
	}
	r.SetKeys(src, nil)
	if got := keys(); !slices.Equal(got, []string{"shop/a0", "shop/b0"}) {
		t.Errorf("%q", got)
	}
	for _, name := range []string{"a", "b"} {
		r.Apply([]source.Event{{Key: source.RequestAuthentication.Key("shop", name)}})
	}
	if got := f.String(); got != "bank https://x/keys" || len(rec.tokens) != 0 {
		t.Errorf("%s, %d are sent", got, len(rec.tokens))
	}
}
