package auth

import (
	"context"
	"errors"
	"testing"
)

// judge accepts one token, and counts the tokens that it is shown.
type judge struct {
	token string
	shown int
}

func (j *judge) Authenticate(_ context.Context, cr Credentials) (Caller, error) {
	if j.shown++; cr.Token != j.token {
		return Caller{}, errors.New("not this token")
	}
	// What an authenticator says of the cluster does not count.
	return Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "node1", Cluster: "forged"}, nil
}

// decided is a judge that needs to ask no other.
type decided struct{ judge }

func (d *decided) Screen(cr Credentials) (Caller, error) {
	return d.Authenticate(context.Background(), cr)
}

// TestClusterIsTheOneThatAccepts: the cluster of a caller is that of whichever
// authenticator accepted the token, whatever the caller claims, and a token is
// shown to one cluster only.
func TestClusterIsTheOneThatAccepts(t *testing.T) {
	for _, tt := range []struct{ name, token, claim, want string }{
		{"a caller of the local cluster", "of-east", "east", "east"},
		{"one without a claim", "of-east", "", "east"},
		{"one with a claim that is not known", "of-east", "nowhere", "east"},
		{"a caller of the other cluster", "of-west", "west", "west"},
		{"a claim of the other cluster", "of-east", "west", ""},
		{"a claim of the local cluster", "of-west", "east", ""},
		{"no claim, of the other cluster", "of-west", "", ""},
		{"a token of neither", "made-up", "west", ""},
		{"one of a cluster that was removed", "of-north", "north", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			east, west := &judge{token: "of-east"}, &decided{judge{token: "of-west"}}
			c := NewClusters("east", east)
			c.Set("west", west)
			c.Set("north", &judge{token: "of-north"})
			c.Set("north", nil)
			c.Set("east", nil) // stays
			cr := Credentials{Token: tt.token, Cluster: tt.claim}
			got, err := c.Authenticate(t.Context(), cr)
			if (err == nil) != (tt.want != "") || err == nil && got.Cluster != tt.want {
				t.Errorf("%+v, %v; want cluster %q", got, err, tt.want)
			}
			if east.shown+west.shown != 1 {
				t.Errorf("the token was shown to %d clusters", east.shown+west.shown)
			}
			// The local authenticator of this test cannot screen.
			got, err = c.Screen(cr)
			switch {
			case tt.claim != "west" && !errors.Is(err, ErrUndecided):
				t.Errorf("screened: %+v, %v", got, err)
			case tt.want == "west" && (err != nil || got.Cluster != "west"):
				t.Errorf("screened: %+v, %v", got, err)
			case tt.claim == "west" && tt.want == "" && err == nil:
				t.Errorf("screened: %+v", got)
			}
		})
	}
}
