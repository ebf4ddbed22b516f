package xds

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
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

const (
	// connectTimeout bounds TCP, TLS and HTTP/2 together.
	connectTimeout = 10 * time.Second
	// pingInterval finds a control plane that vanished without a word. Servers
	// usually take one ping in 15 s or more.
	pingInterval = time.Minute
	pingTimeout  = 20 * time.Second
)

// dialer makes connections from configuration that is read anew each time, so
// that rotated roots and tokens are used.
type dialer struct {
	cfg       ClientConfig
	host      string // without port
	target    string
	plaintext bool
}

func newDialer(cfg ClientConfig) (*dialer, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("xds: address %q: %w", cfg.Address, err)
	}
	d := &dialer{cfg: cfg, host: u.Hostname()}
	switch u.Scheme {
	case "https":
	case "http":
		d.plaintext = true
	default:
		return nil, fmt.Errorf("xds: address %q is not https://host:port or http://host:port", cfg.Address)
	}
	port := u.Port()
	if d.host == "" || port == "" {
		return nil, fmt.Errorf("xds: address %q has no host or no port", cfg.Address)
	}
	// passthrough: the name is resolved when dialling, every time.
	d.target = "passthrough:///" + net.JoinHostPort(d.host, port)
	return d, nil
}

// connect opens a stream; release closes its connection.
func (d *dialer) connect(ctx context.Context) (stream, func(), error) {
	creds, md, err := d.credentials()
	if err != nil {
		return nil, nil, err
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// An HTTP proxy for the internet is not the way to the control plane.
		grpc.WithNoProxy(),
	}, d.cfg.DialOptions...)
	if d.cfg.Dial != nil {
		opts = append(opts, grpc.WithContextDialer(d.cfg.Dial))
	}
	conn, err := grpc.NewClient(d.target, opts...)
	if err != nil {
		return nil, nil, fmt.Errorf("xds: %w", err)
	}
	s, err := discovery.NewAggregatedDiscoveryServiceClient(conn).
		DeltaAggregatedResources(metadata.NewOutgoingContext(ctx, md))
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return s, func() { _ = conn.Close() }, nil
}

func (d *dialer) credentials() (credentials.TransportCredentials, metadata.MD, error) {
	md := metadata.New(d.cfg.Headers)
	if d.cfg.ClusterID != "" {
		md.Set("clusterid", d.cfg.ClusterID)
	}
	if d.plaintext {
		return insecure.NewCredentials(), md, nil
	}
	if d.cfg.TokenFile != "" {
		token, err := os.ReadFile(d.cfg.TokenFile)
		if err != nil {
			return nil, nil, fmt.Errorf("xds: reading the token: %w", err)
		}
		md.Set("authorization", "Bearer "+string(bytes.TrimSpace(token)))
	}
	conf, err := d.tls()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(conf), md, nil
}

func (d *dialer) tls() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: d.host}
	if d.cfg.RootCAFile != "" {
		pem, err := os.ReadFile(d.cfg.RootCAFile)
		if err != nil {
			return nil, fmt.Errorf("xds: reading the root certificates: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("xds: %s holds no certificate in PEM", d.cfg.RootCAFile)
		}
	}
	if d.cfg.AltHostname != "" {
		// One of two names must fit, which crypto/tls cannot express: it checks
		// nothing, verify checks everything.
		conf.InsecureSkipVerify = true
		conf.VerifyConnection = d.verify(conf.RootCAs)
	}
	return conf, nil
}

// verify checks the server's chain, and its name against both names.
func (d *dialer) verify(roots *x509.CertPool) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, c := range cs.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		leaf := cs.PeerCertificates[0]
		if _, err := leaf.Verify(opts); err != nil {
			return err
		}
		err := leaf.VerifyHostname(d.host)
		if err != nil && leaf.VerifyHostname(d.cfg.AltHostname) == nil {
			return nil
		}
		return err
	}
}
