package rig

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// Issuer signs tokens, and serves its keys where ambitd can fetch them.
type Issuer struct {
	w    *World
	Name string // the claim iss
	URI  string // of the keys

	mu      sync.Mutex
	id      string
	key     *rsa.PrivateKey
	handler http.HandlerFunc // in place of the keys; nil for none
	asked   int
	server  *http.Server
	addr    string
}

// Issuer makes one with a first key. It serves nothing before Serve.
func (w *World) Issuer(name string) *Issuer {
	w.t.Helper()
	i := &Issuer{w: w, Name: name}
	i.Rotate("first")
	var ip netip.Addr
	err := w.Netns(lab.LAN).Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
				ip = p.Addr()
			}
		}
		return err
	})
	if err != nil || !ip.IsValid() {
		w.t.Fatalf("no address for the keys of issuers: %v", err)
	}
	i.addr = netip.AddrPortFrom(ip, 8200).String()
	i.URI = "http://" + i.addr + "/keys"
	return i
}

// Serve begins to serve the keys.
func (i *Issuer) Serve() {
	i.w.t.Helper()
	i.server = &http.Server{Handler: i, ReadHeaderTimeout: time.Minute}
	l := i.w.Listen(lab.LAN, i.addr)
	go func() { _ = i.server.Serve(l) }()
	i.w.t.Cleanup(i.Stop)
}

// Stop ends that.
func (i *Issuer) Stop() { _ = i.server.Close() }

// ServeHTTP implements http.Handler.
func (i *Issuer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked++
	f := i.handler
	i.mu.Unlock()
	switch {
	case f != nil:
		f(rw, r)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(rw).Encode(map[string]string{"issuer": i.Name, "jwks_uri": i.URI})
	default:
		_, _ = fmt.Fprint(rw, i.Keys())
	}
}

// Answer has the server answer otherwise; nil makes it serve the keys again.
func (i *Issuer) Answer(f http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.handler = f
}

// Asked returns how often the server was asked.
func (i *Issuer) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// Rotate replaces the key.
func (i *Issuer) Rotate(id string) {
	i.w.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		i.w.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.key = id, key
}

// Keys returns the key set.
func (i *Issuer) Keys() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.id, Algorithm: "RS256", Use: "sig"}}})
	if err != nil {
		i.w.t.Fatal(err)
	}
	return string(b)
}

// Public returns the key as a certificate has it.
func (i *Issuer) Public() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	der, err := x509.MarshalPKIXPublicKey(i.key.Public())
	if err != nil {
		i.w.t.Fatal(err)
	}
	return der
}

// JWK returns the public key as the header of a token has it.
func (i *Issuer) JWK() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	b, err := json.Marshal(jose.JSONWebKey{Key: i.key.Public(), KeyID: i.id})
	if err != nil {
		i.w.t.Fatal(err)
	}
	return b
}

// Token signs claims. The issuer, and an end in an hour, are among them unless they say
// otherwise.
func (i *Issuer) Token(claims map[string]any) string {
	i.w.t.Helper()
	return i.TokenWith(claims, nil)
}

// TokenWith is Token with more in the header.
func (i *Issuer) TokenWith(claims, header map[string]any) string {
	i.w.t.Helper()
	all := map[string]any{"iss": i.Name, "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range claims {
		all[k] = v
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	opts := (&jose.SignerOptions{}).WithHeader("kid", i.id)
	for k, v := range header {
		opts.WithHeader(jose.HeaderKey(k), v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.key}, opts)
	if err != nil {
		i.w.t.Fatal(err)
	}
	text, err := jwt.Signed(s).Claims(all).Serialize()
	if err != nil {
		i.w.t.Fatal(err)
	}
	return text
}
