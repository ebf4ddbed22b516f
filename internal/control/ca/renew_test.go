package ca_test

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
)

// asker calls the certificate service as any program may: with a client
// certificate, a token, both or none.
type asker struct {
	cert  *tls.Certificate
	token string
}

// ask asks for a certificate that lives ten years.
func (a asker) ask(t *testing.T, w *world, impersonate string) (tls.Certificate, error) {
	t.Helper()
	roots := x509.NewCertPool()
	bundle, _ := w.ca.Bundle()
	roots.AppendCertsFromPEM(bundle)
	conf := &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13}
	if a.cert != nil {
		conf.Certificates = []tls.Certificate{*a.cert}
	}
	cc, err := grpc.NewClient(strings.TrimPrefix(w.address, "https://"), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if a.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+a.token)
	}
	key := ecKey(t, elliptic.P256())
	req := &securityapi.IstioCertificateRequest{Csr: string(csr(t, key)), ValidityDuration: 10 * 365 * 24 * 3600}
	if impersonate != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(impersonate)}}
	}
	resp, err := securityapi.NewIstioCertificateServiceClient(cc).CreateCertificate(ctx, req)
	if err != nil {
		return tls.Certificate{}, err
	}
	block, _ := pem.Decode([]byte(resp.CertChain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key, Leaf: leaf}, nil
}

// TestAStolenIdentityEnds: a node's token buys certificates of a day, whatever
// it asks for, and none of them buys another.
func TestAStolenIdentityEnds(t *testing.T) {
	w := newWorld(t)
	issue := func(c auth.Caller) string {
		token, err := w.issuer.Issue(c, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	stolen := issue(ztunnel)
	life := func(cert tls.Certificate) time.Duration { return time.Until(cert.Leaf.NotAfter).Round(time.Hour) }

	web, err := asker{token: stolen}.ask(t, w, id("web").String())
	if err != nil || life(web) != 24*time.Hour {
		t.Fatalf("a node proxy for a workload: %v, lives %s", err, life(web))
	}
	own, err := asker{token: stolen}.ask(t, w, "")
	if err != nil || life(own) != 24*time.Hour {
		t.Fatalf("a node proxy for itself: %v, lives %s", err, life(own))
	}
	for name, cert := range map[string]tls.Certificate{"workload": web, "node proxy": own} {
		for token, text := range map[string]string{"no token": "", "a made-up token": "eyJhbGciOiJub25lIn0.e30."} {
			for _, impersonated := range []string{"", id("web").String(), id("db").String()} {
				_, err := asker{&cert, text}.ask(t, w, impersonated)
				if status.Code(err) != codes.Unauthenticated {
					t.Errorf("certificate of the %s and %s, for %q: %v", name, token, impersonated, err)
				}
			}
		}
	}
	// A caller with a token may show a certificate besides; the token counts.
	both, err := asker{&web, issue(auth.Caller{Namespace: "app", ServiceAccount: "db"})}.ask(t, w, "")
	if err != nil || both.Leaf.URIs[0].String() != id("db").String() || life(both) != 90*24*time.Hour {
		t.Errorf("a workload with a token: %v %+v", err, both.Leaf)
	}
}
