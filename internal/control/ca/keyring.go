package ca

import "github.com/ambit-mesh/ambit/internal/control/ca/rotation"

// keyring holds the signers that are available here, by their ids.
type keyring map[string]*signer

func (k keyring) add(s *signer) { k[s.id] = s }

func (k keyring) has(id string) bool { return k[id] != nil }

// of returns the signer of a generation; nil when it is not available.
func (k keyring) of(g *rotation.Generation) *signer {
	if g == nil {
		return nil
	}
	return k[g.SignerID]
}

// open adds the self-signed roots whose keys are in a state.
func (k keyring) open(st rotation.State) error {
	for _, g := range []*rotation.Generation{st.Current, st.Next} {
		if g == nil || !g.SelfSigned() || k.has(g.SignerID) {
			continue
		}
		s, err := loadSelfSigned(g.Cert, g.Key)
		if err != nil {
			return err
		}
		k.add(s)
	}
	return nil
}

// prune drops who neither signs nor will, but for spare.
func (k keyring) prune(st rotation.State, spare *signer) {
	current, next := k.of(st.Current), k.of(st.Next)
	for id, s := range k {
		if s != current && s != next && s != spare {
			delete(k, id)
		}
	}
}
