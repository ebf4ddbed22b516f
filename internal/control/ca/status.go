package ca

import "github.com/ambit-mesh/ambit/api/admin"

// Status returns the present state.
func (a *Authority) Status() admin.Authority {
	a.mu.Lock()
	defer a.mu.Unlock()
	line, now := &a.line, a.line.book.state
	st := admin.Authority{
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
