// Package tokenreview asks the Kubernetes API whose a service account token
// is. It asks about few tokens at a time, not for long, and remembers for a
// short while who it was; a failure is never an admission and is never
// remembered.
package tokenreview

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Bounds.
const (
	// timeout bounds a review, with the wait for its turn.
	timeout = 10 * time.Second
	// concurrency bounds the reviews under way.
	concurrency = 32
	// remember is how long a token that was revoked may still be taken for good:
	// as long as the API server itself remembers one, and long enough for what a
	// proxy asks at once when it starts.
	remember = 10 * time.Second
	// maxRemembered bounds the tokens that are remembered; a mesh has one a
	// node, and some more.
	maxRemembered = 16384
)

// Reviewer is an auth.TokenReviewer.
type Reviewer struct {
	kube  *client.Typed
	turns chan struct{}
	// under way, by key: proxies ask for many certificates at once with one
	// token.
	flights singleflight.Group

	mu    sync.Mutex
	known map[key]remembered
}

// key is a hash: a dump of the memory holds no token.
type key [sha256.Size]byte

type remembered struct {
	review auth.Review
	until  time.Time
}

// New returns a Reviewer.
func New(kube *client.Typed) *Reviewer {
	return &Reviewer{kube: kube, turns: make(chan struct{}, concurrency), known: map[key]remembered{}}
}

// Review implements auth.TokenReviewer.
func (r *Reviewer) Review(ctx context.Context, token string, audiences []string) (auth.Review, error) {
	k := key(sha256.Sum256([]byte(strings.Join(audiences, " ") + "\x00" + token)))
	if review, ok := r.recall(k, time.Now()); ok {
		return review, nil
	}
	// Others may wait for the answer, so it does not end with this call.
	flight := r.flights.DoChan(string(k[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		review, err := r.ask(ctx, token, audiences)
		if err == nil && review.Authenticated {
			r.keep(k, review, expiry(token), time.Now())
		}
		return review, err
	})
	select {
	case <-ctx.Done():
		return auth.Review{}, ctx.Err()
	case res := <-flight:
		review, _ := res.Val.(auth.Review)
		return review, res.Err
	}
}

func (r *Reviewer) ask(ctx context.Context, token string, audiences []string) (auth.Review, error) {
	select {
	case r.turns <- struct{}{}:
		defer func() { <-r.turns }()
	case <-ctx.Done():
		return auth.Review{}, fmt.Errorf("%d reviews are under way and none ended within %s", concurrency, timeout)
	}
	answer, err := r.kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return auth.Review{}, fmt.Errorf("ask the Kubernetes API: %w", err)
	}
	s := answer.Status
	review := auth.Review{
		Authenticated: s.Authenticated && s.Error == "", Error: s.Error,
		Username: s.User.Username, Audiences: s.Audiences, Extra: make(map[string][]string, len(s.User.Extra)),
	}
	for name, values := range s.User.Extra {
		review.Extra[name] = values
	}
	return review, nil
}

func (r *Reviewer) recall(k key, now time.Time) (auth.Review, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.known[k]
	if !ok || !now.Before(known.until) {
		delete(r.known, k)
		return auth.Review{}, false
	}
	return known.review, true
}

// keep remembers, not beyond the token's own end. A token without one is
// asked about every time.
func (r *Reviewer) keep(k key, review auth.Review, expires, now time.Time) {
	until := now.Add(remember)
	if expires.Before(until) {
		until = expires
	}
	if !now.Before(until) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxRemembered {
		for old, known := range r.known {
			if !now.Before(known.until) {
				delete(r.known, old)
			}
		}
	}
	if len(r.known) < maxRemembered {
		r.known[k] = remembered{review, until}
	}
}

// expiry reads when a token ends, from claims whose signature the API has
// verified; zero when it cannot be read.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Expires float64 `json:"exp"` // seconds
	}
	if json.Unmarshal(text, &claims) != nil || claims.Expires <= 0 || claims.Expires > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expires), 0)
}
