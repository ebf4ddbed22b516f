package authz

import (
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

// Metadata gives the decision that was begun the metadata of the external authorizers'
// answers.
func (a *Access) Metadata(m *extauthz.Metadata) { a.metadata = m }

// metadataHolds decides about the metadata of answers.
func (m *match) metadataHolds(of *extauthz.Metadata) bool {
	for i := range m.metadata {
		x := &m.metadata[i]
		if len(x.some.list) > 0 && !x.answered(of, x.some) || len(x.none.list) > 0 && x.answered(of, x.none) {
			return false
		}
	}
	return true
}

// answered compares the value at the path. Of a list, one of its values is enough.
func (x *claim) answered(m *extauthz.Metadata, t texts) bool {
	return m.Match(x.path, func(value string) bool { return anyText(t.list, value) })
}
