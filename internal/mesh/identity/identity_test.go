package identity

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Identity
		ok   bool
	}{
		{"spiffe://cluster.local/ns/shop/sa/cart", Identity{"cluster.local", "shop", "cart"}, true},
		{"spiffe://td-2/ns/a/sa/system.account_B", Identity{"td-2", "a", "system.account_B"}, true},
		{"spiffe://Cluster.local/ns/a/sa/b", Identity{}, false},
		{"https://cluster.local/ns/a/sa/b", Identity{}, false},
		{"spiffe://cluster.local/ns/a/sa/b/extra", Identity{}, false},
		{"spiffe://cluster.local/sa/a/ns/b", Identity{}, false},
		{"spiffe:///ns/a/sa/b", Identity{}, false},
		{"spiffe://td/ns//sa/b", Identity{}, false},
		{"spiffe://td/ns/../sa/b", Identity{}, false},
		{"spiffe://td/ns/a/sa/b?x=1", Identity{}, false},
		{"spiffe://td/ns/a%2f/sa/b", Identity{}, false},
		{"spiffe://td/ns/a/sa/" + strings.Repeat("x", 3000), Identity{}, false},
		{"", Identity{}, false},
	} {
		got, err := Parse(tc.in)
		if (err == nil) != tc.ok || got != tc.want {
			t.Errorf("Parse(%.60q) = %v, %v", tc.in, got, err)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("Parse(%.60q): %v does not match ErrInvalid", tc.in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/cart")
	f.Add("spiffe://a/ns/b/sa/")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := Parse(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("Parse(%q).String() = %q", s, id.String())
		}
	})
}

func TestZero(t *testing.T) {
	var id Identity
	if !id.IsZero() || id.String() != "" || id.Principal() != "" {
		t.Fatalf("the zero identity renders as %q", id)
	}
}
