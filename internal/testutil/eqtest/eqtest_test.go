package eqtest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

type inner struct {
	n    int
	List []string
}

type outer struct {
	*inner
	Name  string
	Addr  netip.Addr
	Parts []inner
	Cache int
}

// recorder collects what a test would report.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(_ string, args ...any) {
	r.said = append(r.said, args[len(args)-1].(string))
}

func sameInner(a, b inner) bool { return a.n == b.n && slices.Equal(a.List, b.List) }

func TestFields(t *testing.T) {
	at := func(o *outer) inner {
		if o.inner == nil {
			return inner{}
		}
		return *o.inner
	}
	whole := func(a, b *outer) bool {
		return sameInner(at(a), at(b)) && a.Name == b.Name && a.Addr == b.Addr && slices.EqualFunc(a.Parts, b.Parts, sameInner)
	}
	Fields(t, whole, "Cache")
	for _, tc := range []struct {
		name  string
		equal func(a, b *outer) bool
		want  []string
	}{
		{"a field", func(a, b *outer) bool {
			return sameInner(at(a), at(b)) && a.Addr == b.Addr && slices.EqualFunc(a.Parts, b.Parts, sameInner)
		}, []string{"Name"}},
		{"a field of an embedded struct", func(a, b *outer) bool {
			return whole(a, b) || a.Name == b.Name && a.Addr == b.Addr && len(a.Parts)+len(b.Parts) == 0 && at(a).n == at(b).n
		}, []string{"inner.List[]", "inner.List"}},
		{"a field of a list's element", func(a, b *outer) bool {
			return sameInner(at(a), at(b)) && a.Name == b.Name && a.Addr == b.Addr &&
				slices.EqualFunc(a.Parts, b.Parts, func(x, y inner) bool { return slices.Equal(x.List, y.List) })
		}, []string{"Parts[].n"}},
	} {
		r := &recorder{TB: t}
		Fields(r, tc.equal, "Cache")
		if !slices.Equal(r.said, tc.want) {
			t.Errorf("%s: reported %s, want %s", tc.name, strings.Join(r.said, ", "), strings.Join(tc.want, ", "))
		}
	}
}
