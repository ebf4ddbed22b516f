// Package tokenreview asks the Kubernetes API whose a service account token
// is. It asks about few tokens at a time, not for long, and network addresses
// take turns, so that one that shows made-up tokens holds up no other. It
// remembers answers for a short while; a failure is never an admission and is
// never remembered. Keys refuse made-up tokens without asking.
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
	"github.com/ambit-mesh/ambit/internal/mesh/fair"
)

// Bounds.
const (
	// timeout bounds a review, with the wait for its turn.
	timeout = 10 * time.Second
	// concurrency bounds the reviews under way, concurrencyEach those for one
	// network address: the rest stays free for others.
	concurrency, concurrencyEach = 32, 16
	// waiting and waitingEach bound the reviews that wait for their turn. Behind
	// one address may be all nodes of a mesh, which connect at once.
	waiting, waitingEach = 8192, 1024
	// remember is how long a token that was revoked may still be accepted:
	// as long as the API server itself remembers one, and long enough for what a
	// proxy asks at once when it starts.
	remember = 10 * time.Second
	// rememberRefusal is the same for a token that was refused. It is short: the
	// API server refuses a token whose pod it has not seen yet.
	rememberRefusal = 3 * time.Second
	// maxRemembered bounds the tokens that are remembered; a mesh has one a
	// node, and some more.
	maxRemembered = 16384
)

// Reviewer is an auth.TokenReviewer.
type Reviewer struct {
	kube  *client.Typed
	turns *fair.Queue
	// under way, by key: proxies ask for many certificates at once with one
	// token.
	flights singleflight.Group

	mu sync.Mutex
	// known are tokens that were accepted, refused those that were not. They are
	// apart, so that made-up tokens crowd out no good ones.
	known, refused map[key]remembered
}

// key is a hash: a dump of the memory holds no token.
type key [sha256.Size]byte

type remembered struct {
	review auth.Review
	until  time.Time
}

// New returns a Reviewer.
func New(kube *client.Typed) *Reviewer {
	return &Reviewer{
		kube: kube, known: map[key]remembered{}, refused: map[key]remembered{},
		turns: fair.New(fair.Limits{Places: concurrency, PlacesEach: concurrencyEach, Waiting: waiting, WaitingEach: waitingEach}),
	}
}

// Review implements auth.TokenReviewer.
func (r *Reviewer) Review(ctx context.Context, token string, audiences []string) (auth.Review, error) {
	k := key(sha256.Sum256([]byte(strings.Join(audiences, " ") + "\x00" + token)))
	if review, ok := r.recall(k, time.Now()); ok {
		return review, nil
	}
	source := auth.SourceFromContext(ctx)
	// Others may wait for the answer, so it does not end with this call.
	flight := r.flights.DoChan(string(k[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		review, err := r.ask(ctx, source, token, audiences)
		if err == nil {
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

func (r *Reviewer) ask(ctx context.Context, source, token string, audiences []string) (auth.Review, error) {
	release, err := r.turns.Take(ctx, source)
	if err != nil {
		return auth.Review{}, fmt.Errorf("wait for a turn among other callers of %q: %w", source, err)
	}
	defer release()
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
	for _, m := range [...]map[key]remembered{r.known, r.refused} {
		if was, ok := m[k]; ok && now.Before(was.until) {
			return was.review, true
		}
		delete(m, k)
	}
	return auth.Review{}, false
}

// keep remembers an answer, not beyond the token's own end. A token without one
// is asked about every time, unless it was refused.
func (r *Reviewer) keep(k key, review auth.Review, expires, now time.Time) {
	into, until := r.refused, now.Add(rememberRefusal)
	if review.Authenticated {
		into, until = r.known, now.Add(remember)
		if expires.Before(until) {
			until = expires
		}
	}
	if !now.Before(until) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(into) >= maxRemembered {
		for old, was := range into {
			if !now.Before(was.until) {
				delete(into, old)
			}
		}
	}
	if len(into) < maxRemembered {
		into[k] = remembered{review, until}
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
