package certs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

// CAConfig says how to reach the mesh's CA.
type CAConfig struct {
	Server controlplane.Server
	// OwnIdentity says that certificates are for the caller itself, not for
	// the workloads of a node: nothing is impersonated.
	OwnIdentity bool
}

// impersonatedKey is the metadata field that names the workload.
const impersonatedKey = "ImpersonatedIdentity"

// CAClient is a Signer that asks an Istio certificate service.
type CAClient struct {
	conn   *grpc.ClientConn
	client securityapi.IstioCertificateServiceClient
	own    bool
}

// NewCAClient makes a client; it connects when first used.
func NewCAClient(conf CAConfig) (*CAClient, error) {
	conn, err := conf.Server.Connect(
		// The manager of the certificates backs off by itself; a long wait down
		// here would only hide that the CA is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// A CA whose node has vanished is noticed; servers take more frequent
		// pings for an attack.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("CA client: %w", err)
	}
	return &CAClient{conn: conn, client: securityapi.NewIstioCertificateServiceClient(conn), own: conf.OwnIdentity}, nil
}

// Sign implements Signer.
func (c *CAClient) Sign(ctx context.Context, id identity.Identity, csrPEM []byte, ttl time.Duration) ([]string, error) {
	req := &securityapi.IstioCertificateRequest{Csr: string(csrPEM), ValidityDuration: int64(ttl / time.Second)}
	if !c.own {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			impersonatedKey: structpb.NewStringValue(id.String()),
		}}
	}
	resp, err := c.client.CreateCertificate(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", c.conn.Target(), err)
	}
	if len(resp.GetCertChain()) == 0 {
		return nil, errors.New("the CA answered without a certificate")
	}
	return resp.GetCertChain(), nil
}

// Close ends the connection.
func (c *CAClient) Close() error { return c.conn.Close() }
