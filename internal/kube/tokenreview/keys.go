package tokenreview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/client"
)

const (
	// keysPath is where an API server publishes the keys of its tokens.
	keysPath = "/openid/v1/jwks"
	// keysTimeout bounds one attempt to read them.
	keysTimeout = 5 * time.Second
	// keysPause is the time between attempts: what made-up tokens with names of
	// keys that are not published cost the API server at most.
	keysPause = 5 * time.Second
	// keysAge is when keys are read again without such a token.
	keysAge = 5 * time.Minute
	// maxKeysBytes bounds what is read as a key set.
	maxKeysBytes = 1 << 20
)

// Keys are the public keys with which the API server signs tokens. They are an
// auth.Signatures.
type Keys struct {
	kube   *client.Typed
	log    *slog.Logger
	flight singleflight.Group

	mu      sync.Mutex
	set     *auth.KeySet // nil until it was read once
	begun   time.Time    // of the last attempt
	pending bool         // an attempt is under way
	failure string       // of the last attempt; empty when it succeeded
}

// NewKeys returns the keys of an API server, which are read when a token comes.
func NewKeys(kube *client.Typed, log *slog.Logger) *Keys {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Keys{kube: kube, log: log}
}

// Screen implements auth.Signatures. It starts reading keys when that may help.
func (k *Keys) Screen(token, audience string) error {
	due, err := k.judge(token, audience, time.Now())
	if due {
		go func() { <-k.read() }()
	}
	return err
}

// Check implements auth.Signatures.
func (k *Keys) Check(ctx context.Context, token, audience string) error {
	due, err := k.judge(token, audience, time.Now())
	if due || errors.Is(err, auth.ErrUndecided) && k.reading() {
		select {
		case <-k.read():
			_, err = k.judge(token, audience, time.Now())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (k *Keys) reading() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pending
}

// judge judges a token by the keys that are there; due says that they are worth
// reading again.
func (k *Keys) judge(token, audience string, now time.Time) (due bool, err error) {
	k.mu.Lock()
	set, failed, pending := k.set, k.failure != "", k.pending
	rested := now.Sub(k.begun) >= keysPause && !pending
	old := now.Sub(k.begun) >= keysAge && !pending
	k.mu.Unlock()
	if set == nil {
		return rested, auth.ErrUndecided
	}
	err = set.Check(token, audience, now)
	if !errors.Is(err, auth.ErrUnknownKey) {
		return old, err
	}
	if rested || pending || failed {
		// The key may be new: the answer of the API server counts.
		return rested, fmt.Errorf("%w: %w", auth.ErrUndecided, err)
	}
	return false, err
}

// read reads the keys, unless that is under way; the channel has a value when
// it is done.
func (k *Keys) read() <-chan singleflight.Result {
	return k.flight.DoChan("", func() (any, error) {
		k.mu.Lock()
		if !k.pending && time.Since(k.begun) < keysPause { // somebody was faster
			k.mu.Unlock()
			return nil, nil
		}
		k.pending, k.begun = true, time.Now()
		k.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), keysTimeout)
		defer cancel()
		set, err := k.fetch(ctx)
		k.done(set, err)
		return nil, err
	})
}

func (k *Keys) fetch(ctx context.Context) (*auth.KeySet, error) {
	// The API server offers the keys in a format of their own only.
	text, err := k.kube.CoreV1().RESTClient().Get().AbsPath(keysPath).SetHeader("Accept", "application/jwk-set+json, application/json").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeysBytes {
		return nil, fmt.Errorf("%d bytes", len(text))
	}
	return auth.ParseKeySet(text)
}

// done takes the result of an attempt over. Keys that were read once are kept.
func (k *Keys) done(set *auth.KeySet, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending = false
	if err == nil {
		if k.set == nil || k.failure != "" {
			k.log.Info("tokens are checked against the keys of the API server", "path", keysPath)
		}
		k.set, k.failure = set, ""
		return
	}
	if k.failure != err.Error() {
		k.log.Warn("the keys of the API server cannot be read: tokens whose key is not known are all shown to it (the ClusterRole of ambitd must allow to get "+keysPath+")", "error", err)
	}
	k.failure = err.Error()
}
