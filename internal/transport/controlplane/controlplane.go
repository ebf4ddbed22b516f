// Package controlplane is how a proxy connects to a server of the control plane:
// gRPC, over TLS against roots in a file, with the headers that say who calls.
// What those files hold is read when it is needed, so that rotated roots and
// tokens are used without a restart.
package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Server is a server of the control plane, and who calls it.
type Server struct {
	// Address is https://host:port, or http:// for plaintext, in which no token
	// is sent.
	Address string
	// RootCAFile has the server's roots in PEM; read again for every
	// connection. Empty means the system's.
	RootCAFile string
	// AltHostname is accepted in the server's certificate beside the host of
	// Address.
	AltHostname string
	// PQC admits only key exchange that withstands a quantum computer.
	PQC bool
	// TokenFile has the bearer token; read again for every call. Empty sends
	// none.
	TokenFile string
	// ClusterID is sent as the clusterid header; empty sends none.
	ClusterID string
	// Headers are further ones; their names are lowered.
	Headers map[string]string
	// Dial, if set, connects to the server's address.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Connect makes a connection, which is dialled when it is first used. The
// options are added to those of the server. An address that is none is an error.
func (s Server) Connect(opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	host, target, err := s.target()
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if host.secure {
		transport = &serverCredentials{TransportCredentials: credentials.NewTLS(s.tls(host.name)), server: s, host: host.name}
	}
	all := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(caller{s, host.secure}),
		// An HTTP proxy for the internet is not the way to the control plane.
		grpc.WithNoProxy(),
	}
	if s.Dial != nil {
		all = append(all, grpc.WithContextDialer(s.Dial))
	}
	return grpc.NewClient(target, append(all, opts...)...)
}

// Check tells what is wrong with the address.
func (s Server) Check() error {
	_, _, err := s.target()
	return err
}

type host struct {
	name   string // without port
	secure bool
}

func (s Server) target() (host, string, error) {
	u, err := url.Parse(s.Address)
	if err != nil {
		return host{}, "", fmt.Errorf("address of the control plane: %w", err)
	}
	h := host{name: u.Hostname(), secure: u.Scheme == "https"}
	if !h.secure && u.Scheme != "http" || h.name == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
		return host{}, "", fmt.Errorf("address of the control plane: %q is not https://host:port or http://host:port", s.Address)
	}
	// passthrough: the name is resolved when dialling, every time.
	return h, "passthrough:///" + net.JoinHostPort(h.name, u.Port()), nil
}

// tls is the configuration without roots.
func (s Server) tls(host string) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if s.PQC {
		c.MinVersion, c.CurvePreferences = tls.VersionTLS13, []tls.CurveID{tls.X25519MLKEM768}
	}
	return c
}

// serverCredentials read the roots for every handshake.
type serverCredentials struct {
	credentials.TransportCredentials // for Info and the rest
	server                           Server
	host                             string
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *serverCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conf := c.server.tls(c.host)
	if file := c.server.RootCAFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, fmt.Errorf("roots of the control plane: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, nil, fmt.Errorf("roots of the control plane: no certificate in PEM in %s", file)
		}
	}
	if c.server.AltHostname != "" {
		// One of two names must fit, which crypto/tls cannot express: it checks
		// nothing, verify checks everything.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = func(cs tls.ConnectionState) error { return c.verify(conf.RootCAs, cs) }
	}
	return credentials.NewTLS(conf).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (c *serverCredentials) Clone() credentials.TransportCredentials {
	d := *c
	return &d
}

// verify checks the server's chain, and its name against both names.
func (c *serverCredentials) verify(roots *x509.CertPool, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server sent no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(opts); err != nil {
		return err
	}
	err := leaf.VerifyHostname(c.host)
	if err != nil && leaf.VerifyHostname(c.server.AltHostname) == nil {
		return nil
	}
	return err
}

// caller is who calls, in headers.
type caller struct {
	server Server
	secure bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c caller) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := make(map[string]string, len(c.server.Headers)+2)
	for k, v := range c.server.Headers {
		md[strings.ToLower(k)] = v
	}
	if c.server.ClusterID != "" {
		md["clusterid"] = c.server.ClusterID
	}
	if c.server.TokenFile == "" || !c.secure {
		return md, nil
	}
	token, err := os.ReadFile(c.server.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("own token: %w", err)
	}
	if token = bytes.TrimSpace(token); len(token) == 0 {
		return nil, fmt.Errorf("own token: %s is empty", c.server.TokenFile)
	}
	md["authorization"] = "Bearer " + string(token)
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. Without
// it there is no token to protect.
func (c caller) RequireTransportSecurity() bool { return c.secure }
