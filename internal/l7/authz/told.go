package authz

import (
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

// Told gives the decision that was begun what external authorizers have told of the
// request.
func (a *Access) Told(m *extauthz.Metadata) { a.told = m }

// toldHolds decides about what external authorizers have told.
func (m *match) toldHolds(told *extauthz.Metadata) bool {
	for i := range m.told {
		x := &m.told[i]
		if len(x.some.list) > 0 && !x.told(told, x.some) || len(x.none.list) > 0 && x.told(told, x.none) {
			return false
		}
	}
	return true
}

// told compares the value at the path. Of a list, one of its values is enough.
func (x *claim) told(m *extauthz.Metadata, t texts) bool {
	return m.Match(x.path, func(value string) bool { return anyText(t.list, value) })
}
