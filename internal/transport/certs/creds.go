package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc/credentials"
)

// SystemRoots as a root file stands for the roots of the operating system.
const SystemRoots = "SYSTEM"

// TransportCredentials verify a control plane's server against the roots in
// rootCAFile ("" and SystemRoots: the system's), which is read for each
// connection, so that a new bundle needs no restart. altHostname, when set, is
// the name that the server's certificate must carry, instead of the host that
// is dialled.
func TransportCredentials(rootCAFile, altHostname string) credentials.TransportCredentials {
	return &fileCredentials{
		TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}),
		rootCAFile:           rootCAFile,
		altHostname:          altHostname,
	}
}

type fileCredentials struct {
	credentials.TransportCredentials // for Info and the rest
	rootCAFile, altHostname          string
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *fileCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.altHostname != "" {
		authority = c.altHostname
	}
	if c.rootCAFile != "" && c.rootCAFile != SystemRoots {
		text, err := os.ReadFile(c.rootCAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("roots of the control plane: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(text) {
			return nil, nil, fmt.Errorf("roots of the control plane: no certificate in %s", c.rootCAFile)
		}
	}
	return credentials.NewTLS(conf).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (c *fileCredentials) Clone() credentials.TransportCredentials {
	d := *c
	return &d
}

// CallCredentials are the headers that identify a proxy to the control plane.
type CallCredentials struct {
	// TokenFile is read for each call: tokens are replaced under us.
	TokenFile string
	ClusterID string
	// Headers are further ones; their names are lowered.
	Headers map[string]string
	// Plaintext lets the token go over a connection without TLS.
	Plaintext bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c CallCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := make(map[string]string, 2+len(c.Headers))
	for k, v := range c.Headers {
		md[strings.ToLower(k)] = v
	}
	if c.ClusterID != "" {
		md["clusterid"] = c.ClusterID
	}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("own token: %w", err)
		}
		token = bytes.TrimSpace(token)
		if len(token) == 0 {
			return nil, fmt.Errorf("own token: %s is empty", c.TokenFile)
		}
		md["authorization"] = "Bearer " + string(token)
	}
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (c CallCredentials) RequireTransportSecurity() bool { return !c.Plaintext }
