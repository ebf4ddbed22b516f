package jwks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
)

const (
	// fetchTimeout bounds one attempt, with everything.
	fetchTimeout = 5 * time.Second
	maxRedirects = 3
	maxURI       = 2048
)

// metadata are addresses at which clouds serve a machine its secrets, beside those that
// are link-local.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::254/128"), netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("168.63.129.16/32"),
}

// translated is IPv4 within IPv6 (RFC 6052).
var translated = netip.MustParsePrefix("64:ff9b::/96")

// Client fetches key sets.
type Client struct {
	http    http.Client
	blocked []netip.Prefix

	loopback bool // of tests: their servers are there
}

// NewClient returns a Client that trusts the system's roots and more, if not nil, and
// does not connect to blocked addresses either.
func NewClient(blocked []netip.Prefix, more *x509.CertPool) *Client {
	c := &Client{blocked: slices.Concat(metadata, blocked)}
	dialer := &net.Dialer{Timeout: fetchTimeout, Control: func(_, address string, _ syscall.RawConn) error { return c.permit(address) }}
	c.http = http.Client{
		// No proxy: the address that is connected to is the one that is judged.
		Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			TLSHandshakeTimeout: fetchTimeout, ResponseHeaderTimeout: fetchTimeout,
			TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: more}, ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return fmt.Errorf("redirect from https to %s", r.URL.Scheme)
			}
			return CheckURI(r.URL.String())
		},
	}
	return c
}

// permit returns why an address is not connected to. It is asked with the address that a
// name has at this moment, also after a redirect.
func (c *Client) permit(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := at.Addr().Unmap().WithZone("")
	if translated.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case c.loopback && a.IsLoopback():
	case a.IsLoopback(), a.IsUnspecified():
		return fmt.Errorf("%s is the control plane's own address: keys are not fetched there", a)
	case a.IsLinkLocalUnicast(), a.IsMulticast(), slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(a) }):
		return fmt.Errorf("%s is link-local, multicast or a cloud's metadata: keys are not fetched there", a)
	case slices.ContainsFunc(c.blocked, func(p netip.Prefix) bool { return p.Contains(a) }):
		return fmt.Errorf("%s is blocked by --jwks-blocked-cidr", a)
	}
	return nil
}

// CheckURI returns why keys cannot be fetched from an address.
func CheckURI(uri string) error {
	u, err := url.Parse(uri)
	switch {
	case len(uri) > maxURI:
		return fmt.Errorf("address of %d bytes: at most %d", len(uri), maxURI)
	case err != nil:
		return errors.New("no address")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%q begins with neither http:// nor https://", uri)
	case u.Hostname() == "":
		return fmt.Errorf("%q has no host", uri)
	case u.User != nil:
		return errors.New("the address has a user or a password")
	}
	return nil
}

// wellKnown is where an issuer has its metadata (OpenID Connect Discovery 1.0, 4).
const wellKnown = "/.well-known/openid-configuration"

// Fetch returns the key set of a source, of public keys alone.
func (c *Client) Fetch(ctx context.Context, s Source) (text string, keys int, err error) {
	uri := s.URI
	if uri == "" {
		if uri, err = c.discover(ctx, s.Issuer); err != nil {
			return "", 0, err
		}
	}
	body, err := c.get(ctx, uri)
	if err != nil {
		return "", 0, fmt.Errorf("fetch keys from %s: %w", uri, err)
	}
	set, err := jwt.ParseKeys(body)
	if err != nil {
		return "", 0, fmt.Errorf("fetch keys from %s: %w", uri, err)
	}
	return string(set.Text()), set.Len(), nil
}

// discover returns where an issuer has its keys.
func (c *Client) discover(ctx context.Context, issuer string) (string, error) {
	at := strings.TrimSuffix(issuer, "/") + wellKnown
	body, err := c.get(ctx, at)
	if err != nil {
		return "", fmt.Errorf("look for the keys of issuer %s at %s: %w (or set jwksUri)", issuer, at, err)
	}
	var doc struct {
		Issuer string `json:"issuer"`
		URI    string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("%s has no metadata of an issuer: %w (set jwksUri)", at, err)
	}
	switch {
	case doc.URI == "":
		return "", fmt.Errorf("%s names no jwks_uri (set jwksUri)", at)
	case doc.Issuer != "" && strings.TrimSuffix(doc.Issuer, "/") != strings.TrimSuffix(issuer, "/"):
		return "", fmt.Errorf("%s is of another issuer than %s (correct issuer, or set jwksUri)", at, issuer)
	case strings.HasPrefix(issuer, "https://") && !strings.HasPrefix(doc.URI, "https://"):
		return "", fmt.Errorf("%s names a jwks_uri without https (set jwksUri)", at)
	}
	return doc.URI, nil
}

// get reads an address.
func (c *Client) get(ctx context.Context, uri string) ([]byte, error) {
	if err := CheckURI(uri); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "ambitd")
	resp, err := c.http.Do(r)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // which has the address again
		}
		var op *net.OpError
		if errors.As(err, &op) {
			err = &net.OpError{Op: op.Op, Net: op.Net, Addr: op.Addr, Err: op.Err} // without its own port, which changes
		}
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read, or is of no use
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, jwt.MaxKeySet+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > jwt.MaxKeySet:
		return nil, fmt.Errorf("more than %d bytes", jwt.MaxKeySet)
	}
	return body, nil
}
