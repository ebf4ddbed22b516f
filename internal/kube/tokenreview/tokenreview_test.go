package tokenreview_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/tokenreview"
)

// token is shaped like a JWT that ends at some time; zero for never.
func token(id string, ends time.Time) string {
	claims := "{}"
	if !ends.IsZero() {
		claims = fmt.Sprintf(`{"exp":%d}`, ends.Unix())
	}
	return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + id
}

const reviews = "create tokenreviews"

func good(r *authenticationv1.TokenReview) {
	r.Status = authenticationv1.TokenReviewStatus{
		Authenticated: true, Audiences: r.Spec.Audiences,
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:istio-system:ztunnel",
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name": {"ztunnel-x"}, "authentication.kubernetes.io/pod-uid": {"uid-1"},
				"authentication.kubernetes.io/node-name": {"n1"},
			},
		},
	}
}

func TestCaller(t *testing.T) {
	s := kubetest.Start(t)
	s.OnTokenReview(good)
	k := auth.KubernetesTokens{Reviewer: tokenreview.New(s.Client().Kube)}
	got, err := k.Authenticate(t.Context(), auth.Credentials{Token: token("a", time.Now().Add(time.Hour))})
	want := auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-x", PodUID: "uid-1", Node: "n1", Method: "token review"}
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	// The API server is asked for the audience, and its answer is what counts.
	s.OnTokenReview(func(r *authenticationv1.TokenReview) {
		good(r)
		if len(r.Spec.Audiences) != 1 || r.Spec.Audiences[0] != "istio-ca" {
			t.Errorf("asked for %q", r.Spec.Audiences)
		}
		r.Status.Audiences = []string{"api"}
	})
	if c, err := k.Authenticate(t.Context(), auth.Credentials{Token: token("b", time.Now().Add(time.Hour))}); err == nil {
		t.Errorf("another audience: %+v", c)
	}
}

func TestRemembered(t *testing.T) {
	s := kubetest.Start(t)
	s.OnTokenReview(good)
	r := tokenreview.New(s.Client().Kube)
	review := func(token string, want bool) {
		t.Helper()
		got, err := r.Review(t.Context(), token, []string{"istio-ca"})
		if (err == nil && got.Authenticated) != want {
			t.Errorf("%+v %v", got, err)
		}
	}
	asked := func(what string, want int) {
		t.Helper()
		if n := s.Requests()[reviews]; n != want {
			t.Errorf("%s: asked %d times, not %d (%v)", what, n, want, s.Requests())
		}
	}
	long := token("long", time.Now().Add(time.Hour))
	review(long, true)
	review(long, true)
	asked("remembered", 1)
	if _, err := r.Review(t.Context(), long, []string{"other"}); err != nil {
		t.Error(err)
	}
	asked("for another audience", 2)
	review(token("eternal", time.Time{}), true)
	review(token("eternal", time.Time{}), true)
	asked("a token without an end is not remembered", 4)
	over := token("over", time.Now().Add(-time.Hour))
	review(over, true)
	review(over, true)
	asked("not beyond its end", 6)
	s.OnTokenReview(func(r *authenticationv1.TokenReview) { r.Status.Error = "revoked" })
	for n := range 2 {
		review(token(fmt.Sprint("bad", n), time.Now().Add(time.Hour)), false)
		review(token(fmt.Sprint("bad", n), time.Now().Add(time.Hour)), false)
		asked("a refusal is remembered for a moment", 7+n)
	}
	review(long, true)
	s.OnTokenReview(func(r *authenticationv1.TokenReview) { good(r); r.Status.Error = "but" })
	review(token("odd", time.Now().Add(time.Hour)), false)
	s.Stop()
	review(token("new", time.Now().Add(time.Hour)), false) // nobody to ask: refused
	review(long, true)
}

func TestManyAtOnce(t *testing.T) {
	s := kubetest.Start(t)
	release := make(chan struct{})
	s.OnTokenReview(func(r *authenticationv1.TokenReview) { <-release; good(r) })
	r := tokenreview.New(s.Client().Kube)
	one := token("one", time.Now().Add(time.Hour))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got, err := r.Review(context.Background(), one, []string{"istio-ca"}); err != nil || !got.Authenticated {
				t.Errorf("%+v %v", got, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Review(ctx, one, []string{"istio-ca"}); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("a caller that cannot wait: %v", err)
	}
	close(release)
	wg.Wait()
	if n := s.Requests()[reviews]; n != 1 {
		t.Errorf("one token was asked about %d times", n)
	}
}
