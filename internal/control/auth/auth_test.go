package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
)

var ztunnel = Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-x", PodUID: "uid-1", Node: "n1"}

func newIssuer(t testing.TB) *Issuer {
	t.Helper()
	i, err := OpenIssuer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestIssuer(t *testing.T) {
	dir := t.TempDir()
	i, err := OpenIssuer(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", info.Mode(), err)
	}
	again, err := OpenIssuer(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []Caller{ztunnel, {Namespace: "a", ServiceAccount: "b"}} {
		token, err := i.Issue(c, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.Authenticate(t.Context(), Credentials{Token: token})
		c.Method = "ambit token"
		if err != nil || got != c {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := newIssuer(t).Authenticate(t.Context(), Credentials{Token: token}); !errors.Is(err, ErrNotMine) {
			t.Errorf("another issuer: %v", err)
		}
		if _, err := again.verify(token, time.Now().Add(time.Hour+leeway+2*time.Second)); !errors.Is(err, jwt.ErrExpired) {
			t.Errorf("expired: %v", err)
		}
		if _, err := again.verify(token, time.Now().Add(-leeway-2*time.Second)); err == nil {
			t.Error("accepted before its time")
		}
	}
	for _, bad := range []Caller{{}, {Namespace: "a"}, {ServiceAccount: "b"}, {Namespace: "a:b", ServiceAccount: "c"}, {Namespace: "a", ServiceAccount: "b", Node: "x/y"}, {Namespace: strings.Repeat("a", 254), ServiceAccount: "b"}} {
		if _, err := i.Issue(bad, time.Hour); err == nil {
			t.Errorf("issued for %+v", bad)
		}
	}
	for _, ttl := range []time.Duration{0, -1, MaxTokenTTL + 1} {
		if _, err := i.Issue(ztunnel, ttl); err == nil {
			t.Errorf("issued for %s", ttl)
		}
	}
}

// TestIssuerRace: processes that begin together end up with one key.
func TestIssuerRace(t *testing.T) {
	dir := t.TempDir()
	kids := make([]string, 8)
	var wg sync.WaitGroup
	for n := range kids {
		wg.Go(func() {
			if i, err := OpenIssuer(dir); err != nil {
				t.Error(err)
			} else {
				kids[n] = i.kid
			}
		})
	}
	wg.Wait()
	for _, k := range kids {
		if k != kids[0] {
			t.Errorf("keys %v", kids)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
}

func TestBrokenKey(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "x", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, keyFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenIssuer(dir); err == nil {
			t.Errorf("opened %q", text)
		}
	}
}

// forge signs any claims with the issuer's key.
func (i *Issuer) forge(t *testing.T, cl any, key jose.SigningKey) string {
	t.Helper()
	s, err := jose.NewSigner(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(cl).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokensRefused(t *testing.T) {
	i := newIssuer(t)
	now := time.Now().Unix()
	base := func(change func(c map[string]any)) string {
		c := map[string]any{
			"iss": "ambit", "sub": "system:serviceaccount:ns:sa", "aud": []string{"istio-ca"}, "exp": now + 3600, "iat": now, "nbf": now,
			"kubernetes.io": map[string]any{"namespace": "ns", "serviceaccount": map[string]any{"name": "sa"}},
		}
		change(c)
		return i.forge(t, c, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: i.kid}})
	}
	good := base(func(map[string]any) {})
	if _, err := i.verify(good, time.Now()); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	none := b64([]byte(`{"alg":"none","kid":"`+i.kid+`"}`)) + "." + parts[1] + "."
	spki, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(must(base64.RawURLEncoding.DecodeString(parts[1])), &claims); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"empty": "", "dots": "..", "text": "hello", "no algorithm": none, "too long": good + strings.Repeat("A", maxToken),
		"public key as HMAC secret": i.forge(t, claims, jose.SigningKey{Algorithm: jose.HS256, Key: jose.JSONWebKey{Key: spki, KeyID: i.kid}}),
		"another key, our id":       i.forge(t, claims, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: other, KeyID: i.kid}}),
		"our key, no id":            i.forge(t, claims, jose.SigningKey{Algorithm: jose.ES256, Key: i.key}),
		"changed claims":            parts[0] + "." + b64([]byte(`{"iss":"ambit"}`)) + "." + parts[2],
		"no signature":              parts[0] + "." + parts[1] + ".",
		"JSON form":                 `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"white space":               " " + good,
		"no expiry":                 base(func(c map[string]any) { delete(c, "exp") }),
		"expired":                   base(func(c map[string]any) { c["exp"] = now - 120 }),
		"from tomorrow":             base(func(c map[string]any) { c["nbf"] = now + 86400 }),
		"issued tomorrow":           base(func(c map[string]any) { c["iat"] = now + 86400 }),
		"other issuer":              base(func(c map[string]any) { c["iss"] = "kubernetes" }),
		"no audience":               base(func(c map[string]any) { delete(c, "aud") }),
		"other audience":            base(func(c map[string]any) { c["aud"] = "api" }),
		"other subject":             base(func(c map[string]any) { c["sub"] = "system:serviceaccount:ns:admin" }),
		"no account":                base(func(c map[string]any) { delete(c, "kubernetes.io") }),
		"account with colon": base(func(c map[string]any) {
			c["sub"] = "system:serviceaccount:a:b:c"
			c["kubernetes.io"] = map[string]any{"namespace": "a", "serviceaccount": map[string]any{"name": "b:c"}}
		}),
	} {
		if c, err := i.Authenticate(t.Context(), Credentials{Token: token}); err == nil {
			t.Errorf("%s: accepted as %+v", name, c)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// FuzzToken: nothing but what the issuer signed is accepted.
func FuzzToken(f *testing.F) {
	i := newIssuer(f)
	good, err := i.Issue(ztunnel, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(`{"payload":"e30","signatures":[]}`)
	f.Add(good[:len(good)-2])
	f.Fuzz(func(t *testing.T, token string) {
		c, err := i.Authenticate(context.Background(), Credentials{Token: token})
		if err == nil && c.Account() != ztunnel.Account() {
			t.Errorf("%q accepted as %+v", token, c)
		}
	})
}

// FuzzClaims: whatever a good signature covers, a caller is well-formed.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"ambit","sub":"system:serviceaccount:a:b","aud":"istio-ca","exp":99999999999,"kubernetes.io":{"namespace":"a","serviceaccount":{"name":"b"},"pod":{"name":"c","uid":"d"},"node":{"name":"e"}}}`))
	f.Add([]byte(`{"exp":-1e300}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var cl claims
		if json.Unmarshal(text, &cl) != nil {
			return
		}
		c, err := cl.caller(time.Now())
		if err == nil && (c.validate() != nil || cl.Subject != subjectPrefix+c.Namespace+":"+c.ServiceAccount) {
			t.Errorf("%s gives %+v", text, c)
		}
	})
}

type fixed struct {
	c   Caller
	err error
}

func (f fixed) Authenticate(context.Context, Credentials) (Caller, error) { return f.c, f.err }

func TestChain(t *testing.T) {
	a, b := Caller{Namespace: "a", ServiceAccount: "a"}, Caller{Namespace: "b", ServiceAccount: "b"}
	bad := errors.New("bad")
	for _, tt := range []struct {
		name  string
		chain Chain
		want  Caller
	}{
		{"none", nil, Caller{}},
		{"first", Chain{fixed{c: a}, fixed{c: b}}, a},
		{"second", Chain{fixed{err: ErrNotMine}, fixed{c: b}}, b},
		{"after a failure", Chain{fixed{err: bad}, fixed{c: b}}, b},
		{"failures", Chain{fixed{err: bad}, fixed{err: ErrNotMine}}, Caller{}},
		{"nameless caller", Chain{fixed{}}, Caller{}},
	} {
		got, err := tt.chain.Authenticate(t.Context(), Credentials{Token: "x"})
		if got != tt.want || (err == nil) != (tt.want != Caller{}) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
	}
}

func TestInterceptors(t *testing.T) {
	i := newIssuer(t)
	token := must(i.Issue(ztunnel, time.Hour))
	var log strings.Builder
	failures := 0
	in := Interceptors{Authenticator: i, Logger: slog.New(slog.NewTextHandler(&log, nil)), OnFailure: func() { failures++ }}
	for _, tt := range []struct {
		name string
		md   metadata.MD
		ok   bool
	}{
		{"good", metadata.Pairs("authorization", "Bearer "+token, "clusterid", "c1"), true},
		{"lower case", metadata.Pairs("authorization", "bearer "+token, "clusterid", "c1"), true},
		{"nothing", nil, false},
		{"basic", metadata.Pairs("authorization", "Basic "+token), false},
		{"only the scheme", metadata.Pairs("authorization", "Bearer "), false},
		{"two tokens", metadata.Pairs("authorization", "Bearer "+token, "authorization", "Bearer "+token), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			failures = 0
			log.Reset()
			ctx := peer.NewContext(metadata.NewIncomingContext(t.Context(), tt.md), &peer.Peer{Addr: &net.TCPAddr{Port: 4711}})
			var got Caller
			_, err := in.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/m"}, func(ctx context.Context, _ any) (any, error) {
				got, _ = FromContext(ctx)
				return nil, nil
			})
			serr := in.Stream(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/m"}, func(_ any, ss grpc.ServerStream) error {
				if c, ok := FromContext(ss.Context()); !ok || c != got {
					t.Errorf("stream has %+v", c)
				}
				return nil
			})
			if tt.ok {
				if err != nil || serr != nil || got.Account() != ztunnel.Account() || got.Cluster != "" || failures != 0 {
					t.Errorf("%v %v %+v", err, serr, got)
				}
				return
			}
			if status.Code(err) != codes.Unauthenticated || status.Code(serr) != codes.Unauthenticated || failures != 2 {
				t.Errorf("%v %v, %d failures", err, serr, failures)
			}
			if got := log.String(); !strings.Contains(got, "4711") || strings.Contains(got, token) {
				t.Errorf("log: %s", got)
			}
		})
	}
	if _, ok := FromContext(t.Context()); ok {
		t.Error("a caller out of nowhere")
	}
}

func TestClientCert(t *testing.T) {
	fake, stranger := must(certs.NewFakeSigner()), must(certs.NewFakeSigner())
	pool := x509.NewCertPool()
	pool.AddCert(fake.Root())
	a := ClientCert{TrustDomain: "cluster.local", Roots: func() *x509.CertPool { return pool }}
	show := func(f *certs.FakeSigner, id identity.Identity) *tls.ConnectionState {
		m := certs.NewManager(certs.Config{Sign: f})
		defer m.Close()
		b := must(m.Get(t.Context(), id))
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{b.Cert.Leaf}}
	}
	id := identity.Identity{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: "sa"}
	got, err := a.Authenticate(t.Context(), Credentials{Peer: show(fake, id)})
	if err != nil || got.Account() != "ns/sa" || got.Node != "" {
		t.Errorf("%+v %v", got, err)
	}
	foreign := id
	foreign.TrustDomain = "elsewhere"
	for name, cs := range map[string]*tls.ConnectionState{"stranger": show(stranger, id), "foreign": show(fake, foreign)} {
		if _, err := a.Authenticate(t.Context(), Credentials{Peer: cs}); err == nil || errors.Is(err, ErrNotMine) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, cr := range []Credentials{{}, {Peer: &tls.ConnectionState{}}} {
		if _, err := a.Authenticate(t.Context(), cr); !errors.Is(err, ErrNotMine) {
			t.Errorf("%v", err)
		}
	}
}

type reviewer struct {
	r   Review
	err error
}

func (r reviewer) Review(context.Context, string, []string) (Review, error) { return r.r, r.err }

func TestKubernetesTokens(t *testing.T) {
	good := Review{
		Authenticated: true, Username: "system:serviceaccount:istio-system:ztunnel", Audiences: []string{"istio-ca"},
		Extra: map[string][]string{
			"authentication.kubernetes.io/pod-name": {"ztunnel-x"}, "authentication.kubernetes.io/pod-uid": {"uid-1"},
			"authentication.kubernetes.io/node-name": {"n1"},
		},
	}
	got, err := KubernetesTokens{Reviewer: reviewer{r: good}}.Authenticate(t.Context(), Credentials{Token: "x"})
	want := ztunnel
	want.Method = "token review"
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	for name, change := range map[string]func(r *Review){
		"refused":        func(r *Review) { r.Authenticated = false },
		"a user":         func(r *Review) { r.Username = "admin" },
		"half a name":    func(r *Review) { r.Username = "system:serviceaccount:ns" },
		"odd name":       func(r *Review) { r.Username = "system:serviceaccount:ns:a:b" },
		"no audience":    func(r *Review) { r.Audiences = nil },
		"other audience": func(r *Review) { r.Audiences = []string{"api"} },
	} {
		r := good
		change(&r)
		if c, err := (KubernetesTokens{Reviewer: reviewer{r: r}}).Authenticate(t.Context(), Credentials{Token: "x"}); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if _, err := (KubernetesTokens{Reviewer: reviewer{err: errors.New("away")}}).Authenticate(t.Context(), Credentials{Token: "x"}); err == nil {
		t.Error("API server away")
	}
	if _, err := (KubernetesTokens{}).Authenticate(t.Context(), Credentials{}); !errors.Is(err, ErrNotMine) {
		t.Error(err)
	}
}
