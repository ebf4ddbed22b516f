package auth

import (
	"context"
	"errors"
	"fmt"
)

// ErrUndecided is matched by the error of a Screener that needs to ask
// somebody else.
var ErrUndecided = errors.New("the credentials must be reviewed")

// Screener is an Authenticator that also judges without waiting, from what it
// holds in memory. It is asked while a call has sent its headers only.
type Screener interface {
	// Screen returns the caller, an error, or an error that matches
	// ErrUndecided when only Authenticate can decide.
	Screen(cr Credentials) (Caller, error)
}

// Screen implements Screener. An authenticator of the chain that is no Screener
// is undecided.
func (c Chain) Screen(cr Credentials) (Caller, error) {
	var failures []error
	for _, a := range c {
		s, ok := a.(Screener)
		if !ok {
			return Caller{}, ErrUndecided
		}
		caller, err := s.Screen(cr)
		switch {
		case errors.Is(err, ErrUndecided):
			return Caller{}, err
		case err == nil && caller.Namespace != "" && caller.ServiceAccount != "":
			return caller, nil
		case err == nil:
			err = fmt.Errorf("%s: caller without a service account", caller.Method)
		}
		failures = append(failures, err)
	}
	return Caller{}, refusal(cr, failures)
}

// refusal returns why a chain admits no caller.
func refusal(cr Credentials, failures []error) error {
	if cr.Token == "" && (cr.Peer == nil || len(cr.Peer.PeerCertificates) == 0) {
		return fmt.Errorf("%w: neither a token nor a client certificate", ErrNotMine)
	}
	if len(failures) == 0 { // joining no errors would be success
		return fmt.Errorf("%w: no authenticator is configured", ErrNotMine)
	}
	return errors.Join(failures...)
}

// Screen implements Screener.
func (i *Issuer) Screen(cr Credentials) (Caller, error) {
	return i.Authenticate(context.Background(), cr)
}

// Screen implements Screener.
func (a ClientCert) Screen(cr Credentials) (Caller, error) {
	return a.Authenticate(context.Background(), cr)
}

// Screen implements Screener. A token with a good signature is undecided: only
// the Kubernetes API can say whether its pod still runs.
func (a KubernetesTokens) Screen(cr Credentials) (Caller, error) {
	if err := a.bounded(cr); err != nil {
		return Caller{}, err
	}
	if a.Signatures != nil {
		if err := a.Signatures.Screen(cr.Token, a.audience()); err != nil && !errors.Is(err, ErrUndecided) {
			return Caller{}, fmt.Errorf("token: %w", err)
		}
	}
	return Caller{}, ErrUndecided
}
