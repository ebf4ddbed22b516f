package ca

import "time"

// Status describes the authority for people.
type Status struct {
	Stage Stage `json:"stage"`
	// Until is when the stage ends by itself.
	Until         time.Time `json:"until,omitzero"`
	Signer        string    `json:"signer"`
	SignerExpires time.Time `json:"signerExpires"`
	// NextSigner will sign when the stage new-root-distributed ends.
	NextSigner string `json:"nextSigner,omitempty"`
	PluggedIn  bool   `json:"pluggedIn"`
	// Roots counts those that the mesh is told to trust.
	Roots int `json:"roots"`
	// PluginProblem is why the files of the plugged-in CA are not in use.
	PluginProblem string `json:"pluginProblem,omitempty"`
	// Leads reports whether this replica starts and advances rotations.
	Leads bool `json:"leads"`
}

// Status returns the present state.
func (a *Authority) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, now := &a.line, a.line.book.state
	st := Status{
		Stage: now.Stage(), Until: now.Until(), Leads: line.leads(),
		PluggedIn: !now.Current.SelfSigned(), Roots: len(now.Roots),
	}
	if s := line.current(); s != nil {
		st.Signer, st.SignerExpires = s.cert.Subject.String(), s.notAfter
	}
	if next := line.keys.of(now.Next); next != nil {
		st.NextSigner = next.cert.Subject.String()
	}
	if why := line.plugged.reason; a.conf.Plugin != nil && why != nil && (st.PluggedIn || line.plugged.broken()) {
		st.PluginProblem = why.Error()
	}
	return st
}
