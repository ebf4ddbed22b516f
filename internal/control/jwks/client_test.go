package jwks

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/jwt/jwttest"
)

// TestAddresses: keys are fetched from nothing that is the control plane's own
// surroundings, whatever name or redirect leads there.
func TestAddresses(t *testing.T) {
	c := NewClient([]netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, nil)
	for address, ok := range map[string]bool{
		"10.0.0.1:80": true, "192.0.2.1:443": true, "[2001:db8::1]:443": true, "[fd12::1]:80": true,
		"127.0.0.1:80": false, "127.9.9.9:80": false, "[::1]:80": false, "0.0.0.0:80": false, "[::]:80": false, "[::ffff:127.0.0.1]:80": false,
		"169.254.169.254:80": false, "[fe80::1]:80": false, "[fe80::1%lo]:80": false, "[fd00:ec2::254]:80": false, "100.100.100.200:80": false, "168.63.129.16:80": false,
		"[64:ff9b::a9fe:a9fe]:80": false, "[64:ff9b::7f00:1]:80": false, "[64:ff9b::808:808]:80": true, "[::ffff:169.254.169.254]:80": false,
		"224.0.0.1:80": false, "[ff02::1]:80": false, "10.9.1.1:80": false, "x": false,
	} {
		if err := c.permit(address); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	for uri, ok := range map[string]bool{
		"https://a.example/keys": true, "http://10.0.0.1:8080/": true, "file:///etc/passwd": false, "gopher://a/": false, "https:///keys": false, "https://u:p@a/": false,
		"/keys": false, "": false, "https://a\x00b/": false, "https://a/" + strings.Repeat("x", 3000): false, "unix:///run/x": false,
	} {
		if err := CheckURI(uri); (err == nil) != ok {
			t.Errorf("%.50q: %v", uri, err)
		}
	}
	// A name and a redirect end at the same check.
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	port := server.URL[strings.LastIndex(server.URL, ":"):]
	for _, uri := range []string{server.URL, "http://localhost" + port} {
		if _, _, err := c.Fetch(t.Context(), Source{URI: uri}); err == nil || !strings.Contains(err.Error(), "own address") {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestFetch: what a server may answer, and what it may not.
func TestFetch(t *testing.T) {
	keys := jwttest.Set(jwttest.New(t, "a", "k", jose.ES256))
	var self string
	mux := http.NewServeMux()
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, keys) })
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>") })
	mux.HandleFunc("/empty", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"keys":[]}`) })
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) {
		for range jwt.MaxKeySet/1024 + 10 {
			_, _ = fmt.Fprint(w, strings.Repeat(" ", 1024))
		}
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/keys", http.StatusMovedPermanently)
	})
	mux.HandleFunc("/metadata", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/x", http.StatusFound)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	for path, doc := range map[string]string{
		"/good": `{"issuer":"SELF/good/","jwks_uri":"SELF/keys"}`, "/other": `{"issuer":"https://other","jwks_uri":"SELF/keys"}`, "/none": `{}`, "/text": `x`,
		"/local": `{"jwks_uri":"file:///etc/passwd"}`,
	} {
		mux.HandleFunc(path+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, strings.ReplaceAll(doc, "SELF", self))
		})
	}
	server := httptest.NewServer(mux)
	defer server.Close()
	self = server.URL
	c := NewClient(nil, nil)
	c.loopback = true
	for name, tt := range map[string]struct {
		uri, issuer string
		want        string // of the error; "" for none
	}{
		"keys": {"/keys", "", ""}, "an error": {"/status", "", "status 503"}, "a page": {"/page", "", "no JSON Web Key Set"}, "no keys": {"/empty", "", "none of 0 keys"},
		"too much": {"/huge", "", "more than 1048576 bytes"}, "a redirect": {"/moved", "", ""}, "redirects without an end": {"/round", "", "redirects"},
		"a redirect to metadata": {"/metadata", "", "link-local"}, "a redirect to a file": {"/file", "", "neither http:// nor https://"},
		"an issuer": {"", "/good", ""}, "an issuer with a slash": {"", "/good/", ""}, "another issuer's": {"", "/other", "is of another issuer"}, "no address": {"", "/none", "no jwks_uri"},
		"no metadata": {"", "/text", "no metadata"}, "nothing there": {"", "/nothing", "status 404"}, "a file of the issuer": {"", "/local", "neither http:// nor https://"},
	} {
		s := Source{URI: tt.uri}
		if s.URI != "" {
			s.URI = self + s.URI
		} else {
			s.Issuer = self + tt.issuer
		}
		text, n, err := c.Fetch(t.Context(), s)
		if tt.want == "" && (err != nil || n != 1 || !strings.Contains(text, `"kid":"k"`)) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %d keys, error %v", name, n, err)
		}
	}
}

// TestSecure: with https, the server proves its name, and nothing leads away from https.
func TestSecure(t *testing.T) {
	keys := jwttest.Set(jwttest.New(t, "a", "k", jose.ES256))
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, keys) }))
	defer plain.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/down":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		case "/.well-known/openid-configuration":
			_, _ = fmt.Fprintf(w, `{"jwks_uri":%q}`, plain.URL)
		default:
			_, _ = fmt.Fprint(w, keys)
		}
	}))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	trusting, strange := NewClient(nil, roots), NewClient(nil, nil)
	trusting.loopback, strange.loopback = true, true
	if _, n, err := trusting.Fetch(t.Context(), Source{URI: server.URL}); n != 1 || err != nil {
		t.Error(n, err)
	}
	for name, tt := range map[string]struct {
		c    *Client
		s    Source
		want string
	}{
		"an unknown authority": {strange, Source{URI: server.URL}, "certificate"},
		"a redirect":           {trusting, Source{URI: server.URL + "/down"}, "redirect from https"},
		"metadata":             {trusting, Source{Issuer: server.URL}, "without https"},
	} {
		if _, _, err := tt.c.Fetch(t.Context(), tt.s); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
