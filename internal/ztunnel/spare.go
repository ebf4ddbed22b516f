package ztunnel

// spare reports whether another endpoint can take the connection, should the
// one that is being tried not answer.
func (o *outgoing) spare() bool {
	if !o.route.Balanced || o.attempts >= maxAttempts {
		return false
	}
	tried := o.failed
	o.failed = append(tried[:len(tried):len(tried)], o.conn.Name) //nolint:gocritic // for the question alone
	_, ok := o.elsewhere()
	o.failed = tried
	return ok
}
