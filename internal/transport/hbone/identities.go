package hbone

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Identities returns the canonical form of a set of identities, for a Key.
func Identities(ids []identity.Identity) string {
	if len(ids) == 1 {
		return ids[0].String()
	}
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	slices.Sort(s)
	return strings.Join(slices.Compact(s), ",")
}

// Expected returns the identities of DstIdentities.
func (k *Key) Expected() ([]identity.Identity, error) {
	var ids []identity.Identity
	for part := range strings.SplitSeq(k.DstIdentities, ",") {
		id, err := identity.Parse(part)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}
