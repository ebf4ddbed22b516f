package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// users accepts the tokens of an issuer, whose keys it has, and requires one for accounts.
const users = `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: market}
spec:
  targetRefs: [{group: "", kind: Service, name: market}]
  jwtRules: [{issuer: "https://issuer.example", jwks: '%s'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users-only, namespace: market}
spec:
  targetRefs: [{group: "", kind: Service, name: market}]
  action: DENY
  rules:
  - from: [{source: {notRequestPrincipals: ["https://issuer.example/*"]}}]
    to: [{operation: {paths: ["/account*"]}}]
`

// issuer signs tokens of users.
type issuer struct{ key jose.SigningKey }

func newIssuer() (issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return issuer{jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "demo"}}}, err
}

// keys returns the key set that waypoints verify tokens by.
func (i issuer) keys() (string, error) {
	private, _ := i.key.Key.(jose.JSONWebKey)
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private.Public()}})
	return string(b), err
}

// token returns the header with a token of a user.
func (i issuer) token(user string) (string, error) {
	s, err := jose.NewSigner(i.key, nil)
	if err != nil {
		return "", err
	}
	claims := jwt.Claims{Issuer: "https://issuer.example", Subject: user, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	return "authorization: Bearer " + text, err
}

// status returns the status of a request of carol for an account.
func (d *demo) status(ctx context.Context, headers ...string) (int, error) {
	argv := []string{d.echo(), "get", "-json", "-url", marketURL + "account"}
	for _, h := range headers {
		argv = append(argv, "-H", h)
	}
	out, err := d.l.Run(ctx, carol, argv...)
	if err != nil {
		return 0, err
	}
	var r struct{ Status int }
	return r.Status, json.Unmarshal([]byte(out), &r)
}

// tokens shows a path that takes a user's token, and how the waypoint counts what it
// answers.
func (d *demo) tokens(ctx context.Context) (seen []string, err error) {
	before, err := d.marketLoad.seconds(ctx, 0)
	if err != nil {
		return nil, err
	}
	own, err := newIssuer()
	if err != nil {
		return nil, err
	}
	forger, err := newIssuer()
	if err != nil {
		return nil, err
	}
	keys, err := own.keys()
	if err != nil {
		return nil, err
	}
	if err := d.l.Apply(ctx, fmt.Sprintf(users, keys)); err != nil {
		return nil, err
	}
	good, err := own.token("ann")
	if err != nil {
		return nil, err
	}
	forged, err := forger.token("ann")
	if err != nil {
		return nil, err
	}
	for _, r := range []struct {
		what    string
		status  int
		headers []string
	}{
		{"without a token", 403, nil}, {"with a forged token", 401, []string{forged}}, {"with ann's token", 200, []string{good}},
	} {
		err := until(ctx, "the answer "+r.what+" is another", func() (bool, error) {
			status, err := d.status(ctx, r.headers...)
			return status == r.status, err
		})
		if err != nil {
			return seen, err
		}
		seen = append(seen, fmt.Sprintf("GET /account %s: %d", r.what, r.status))
	}
	name, _, err := d.waypointPod(ctx)
	if err != nil {
		return seen, err
	}
	b, err := d.l.Get(ctx, lab.InPod("market", name), "http://127.0.0.1:15020/metrics")
	for _, code := range []string{"401", "403"} {
		found := false
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "istio_requests_total") && strings.Contains(line, `response_code="`+code+`"`) && strings.Contains(line, `source_workload="carol"`) {
				seen, found = append(seen, pick(line)), true
			}
		}
		if !found {
			err = errors.Join(err, errors.New("no istio_requests_total has the status "+code))
		}
	}
	line, errLoad := d.marketLoad.clean(ctx, before)
	return append(seen, line), errors.Join(err, errLoad, d.l.Delete(ctx, "AuthorizationPolicy", "market", "users-only"), d.l.Delete(ctx, "RequestAuthentication", "market", "users"))
}
