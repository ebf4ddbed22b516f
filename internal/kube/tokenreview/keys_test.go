package tokenreview_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/tokenreview"
)

// signer is an API server's key.
type signer struct {
	t   testing.TB
	kid string
	key *ecdsa.PrivateKey
}

func newSigner(t testing.TB, kid string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, kid, key}
}

func (s *signer) token(id string) string {
	s.t.Helper()
	js, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: s.kid}}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := jwt.Signed(js).Claims(jwt.Claims{ID: id, Audience: jwt.Audience{"istio-ca"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}).Serialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// api is an API server that publishes keys and counts who asks for them.
type api struct {
	*kubetest.Server
	mu      sync.Mutex
	signers []*signer
	code    int
	asked   int
}

func newAPI(t testing.TB, signers ...*signer) *api {
	t.Helper()
	a := &api{Server: kubetest.Start(t), signers: signers, code: http.StatusOK}
	a.OnTokenReview(good)
	a.Handle("/openid/v1/jwks", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.asked++
		// As the real server, which has one format.
		if !strings.Contains(r.Header.Get("Accept"), "application/jwk-set+json") {
			http.Error(w, "format", http.StatusNotAcceptable)
			return
		}
		var set jose.JSONWebKeySet
		for _, s := range a.signers {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: s.key.Public(), KeyID: s.kid, Use: "sig"})
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.WriteHeader(a.code)
		_ = json.NewEncoder(w).Encode(set)
	}))
	return a
}

func (a *api) set(code int, signers ...*signer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.code, a.signers = code, signers
}

// caller authenticates like ambitd: by headers first, then in full.
type caller struct{ auth.KubernetesTokens }

func (a *api) caller() caller {
	kube := a.Client().Kube
	return caller{auth.KubernetesTokens{Reviewer: tokenreview.New(kube), Signatures: tokenreview.NewKeys(kube, nil)}}
}

func (c caller) call(ctx context.Context, source, token string) error {
	cr := auth.Credentials{Source: source, Token: token}
	if _, err := c.Screen(cr); !errors.Is(err, auth.ErrUndecided) {
		return err
	}
	_, err := c.Authenticate(ctx, cr)
	return err
}

func TestMadeUpTokensCostNothing(t *testing.T) {
	key := newSigner(t, "k1")
	a := newAPI(t, key)
	c := a.caller()
	if err := c.call(t.Context(), "", key.token("real")); err != nil {
		t.Fatal(err)
	}
	stranger, liar := newSigner(t, "k2"), newSigner(t, "k1")
	for i := range 1000 {
		for _, token := range []string{stranger.token(fmt.Sprint(i)), liar.token(fmt.Sprint(i)), token(fmt.Sprint(i), time.Now().Add(time.Hour))} {
			if err := c.call(t.Context(), "", token); err == nil {
				t.Fatalf("accepted %s", token)
			}
		}
	}
	if n := a.Requests()[reviews]; n != 1 {
		t.Errorf("%d reviews", n)
	}
	// A real token is still shown to the API server, which alone can say that
	// its pod is gone.
	a.OnTokenReview(func(r *authenticationv1.TokenReview) { r.Status.Error = "pod is gone" })
	if err := c.call(t.Context(), "", key.token("of a pod that is gone")); err == nil || !strings.Contains(err.Error(), "pod is gone") {
		t.Error(err)
	}
}

func TestKeysRotate(t *testing.T) {
	first, second := newSigner(t, "k1"), newSigner(t, "k2")
	a := newAPI(t, first)
	c := a.caller()
	if err := c.call(t.Context(), "", first.token("1")); err != nil {
		t.Fatal(err)
	}
	a.set(http.StatusOK, first, second)
	// Its first tokens may be refused until the keys are read again, which is
	// not more often than every few seconds.
	deadline := time.Now().Add(time.Minute)
	for n := 0; ; n++ {
		err := c.call(t.Context(), "", second.token(fmt.Sprint(n)))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a new key: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := c.call(t.Context(), "", first.token("2")); err != nil {
		t.Errorf("the key before: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != 2 {
		t.Errorf("keys were asked for %d times", a.asked)
	}
}

func TestWithoutKeysEveryTokenIsReviewed(t *testing.T) {
	key := newSigner(t, "k1")
	a := newAPI(t)
	a.set(http.StatusForbidden)
	c := a.caller()
	for i := range 10 {
		if err := c.call(t.Context(), "", key.token(fmt.Sprint(i))); err != nil {
			t.Error(err)
		}
	}
	if n := a.Requests()[reviews]; n != 10 {
		t.Errorf("%d reviews", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked > 2 {
		t.Errorf("keys were asked for %d times", a.asked)
	}
}

// TestARealCallerAmongMadeUpOnes: where keys cannot be read, 8,000 callers of
// one address show made-up tokens, again and again. A real caller behind
// another address is answered, and not behind them: while it waits, the API
// server begins hardly more reviews than it has places.
func TestARealCallerAmongMadeUpOnes(t *testing.T) {
	a := newAPI(t)
	a.set(http.StatusForbidden)
	var begun atomic.Int64
	a.OnTokenReview(func(r *authenticationv1.TokenReview) {
		begun.Add(1)
		time.Sleep(2 * time.Millisecond)
		if strings.HasSuffix(r.Spec.Token, ".real") {
			good(r)
		}
	})
	limited, err := client.ForConfig(&rest.Config{Host: a.Client().Config.Host, QPS: 200, Burst: 1000, UserAgent: "test"}, "")
	if err != nil {
		t.Fatal(err)
	}
	c := caller{auth.KubernetesTokens{Reviewer: tokenreview.New(limited.Kube), Signatures: tokenreview.NewKeys(limited.Kube, nil)}}
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	for i := range 8000 {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := c.call(ctx, "2001:db8::/64", token(fmt.Sprintf("bogus-%d-%d", i, n), time.Now().Add(time.Hour))); err == nil {
					t.Error("a made-up token was accepted")
				}
				time.Sleep(time.Second)
			}
		})
	}
	for begun.Load() < 1200 { // the burst is used up
		time.Sleep(10 * time.Millisecond)
	}
	for n := range 5 {
		before := begun.Load()
		if err := c.call(t.Context(), "192.0.2.7", token(fmt.Sprintf("%d.real", n), time.Now().Add(time.Hour))); err != nil {
			t.Errorf("a real caller: %v", err)
		}
		if n := begun.Load() - before; n > 200 {
			t.Errorf("%d reviews were begun before the real caller's ended", n)
		}
	}
	stop()
	flood.Wait()
}
