package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// alpn is the one protocol inside: HBONE is HTTP/2.
const alpn = "h2"

// Options are the choices of an installation. The zero value is TLS 1.3 only,
// without revocation lists. It is comparable.
type Options struct {
	// TLS12 admits TLS 1.2 with forward-secret AES-GCM suites, for peers that
	// cannot do better.
	TLS12 bool
	// PQC admits only key exchange that withstands a quantum computer, which is
	// X25519MLKEM768 in TLS 1.3. It is not for peers that TLS12 is for.
	PQC bool
	// CRL, when set, is asked about every peer.
	CRL *CRL
}

// tls12Suites are the suites of TLS 1.2 that have neither CBC nor static key
// exchange.
var tls12Suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
}

// Server is Options{}.Server.
func Server(get func() (*Bundle, error)) *tls.Config { return Options{}.Server(get) }

// Client is Options{}.Client.
func Client(b *Bundle, expect []identity.Identity) *tls.Config { return Options{}.Client(b, expect) }

// Server accepts workloads of the bundle's own trust domain whose certificate
// chains to the bundle's roots. get is asked at every handshake and must not
// block for long; its error ends the handshake.
func (o Options) Server(get func() (*Bundle, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			b, err := get()
			if err != nil {
				return nil, asReason(reason.CertificateUnavailable, err)
			}
			return o.ServerConfig(b), nil
		},
	}
}

// ServerConfig is the configuration of a server that presents b. It is made
// once for a bundle and shared: the caller must not change it.
func (o Options) ServerConfig(b *Bundle) *tls.Config {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.servers[o]; c != nil {
		return c
	}
	c := o.base(b)
	// Any certificate, because verification is ours: it must happen once and
	// must say why.
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := o.verify(&cs, b, x509.ExtKeyUsageClientAuth)
		return err
	}
	if b.servers == nil {
		b.servers = make(map[Options]*tls.Config, 1)
	}
	b.servers[o] = c
	return c
}

// Client accepts a server that is one of expect and chains to the bundle's
// roots; with nothing expected it accepts nobody. Names and addresses do not
// matter and none is sent. A refused peer is a *reason.Error from Handshake:
// PeerIdentityMismatch, TrustDomainMismatch, CertificateRevoked, TLSFailure.
func (o Options) Client(b *Bundle, expect []identity.Identity) *tls.Config {
	expect = slices.Clone(expect)
	c := o.base(b)
	// The standard library would compare host names; VerifyConnection does
	// all of it instead.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := o.verify(&cs, b, x509.ExtKeyUsageServerAuth)
		if err != nil {
			return err
		}
		if !slices.Contains(expect, id) {
			return reason.Errorf(reason.PeerIdentityMismatch, "peer is %s, expected %s", id, describe(expect))
		}
		return nil
	}
	return c
}

func (o Options) base(b *Bundle) *tls.Config {
	c := &tls.Config{
		Certificates: []tls.Certificate{b.Cert},
		NextProtos:   []string{alpn},
		MinVersion:   tls.VersionTLS13,
		// A resumed session would skip verification against today's roots
		// and revocation lists.
		SessionTicketsDisabled: true,
		// Tunnels carry bulk; small first records only cost time.
		DynamicRecordSizingDisabled: true,
		// CurvePreferences stays at the library's default, which puts the
		// hybrid X25519MLKEM768 first.
	}
	switch {
	case o.PQC:
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	case o.TLS12:
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = tls12Suites
	}
	return c
}

// verify is what both sides demand of a peer, whatever its role.
func (o Options) verify(cs *tls.ConnectionState, b *Bundle, usage x509.ExtKeyUsage) (identity.Identity, error) {
	if cs.NegotiatedProtocol != alpn {
		return identity.Identity{}, reason.Errorf(reason.TLSFailure, "peer did not agree on the protocol %s", alpn)
	}
	id, err := PeerIdentity(cs)
	if err != nil {
		return identity.Identity{}, err
	}
	if id.TrustDomain != b.Identity.TrustDomain {
		return identity.Identity{}, reason.Errorf(reason.TrustDomainMismatch, "peer is %s, own trust domain is %s", id, b.Identity.TrustDomain)
	}
	chains, err := verifyChain(cs.PeerCertificates, b.Roots, usage)
	if err != nil {
		return identity.Identity{}, asReason(reason.TLSFailure, fmt.Errorf("certificate of %s: %w", id, err))
	}
	if o.CRL != nil {
		if err := o.CRL.check(chains); err != nil {
			return identity.Identity{}, err
		}
	}
	return id, nil
}

func verifyChain(certs []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) ([][]*x509.Certificate, error) {
	vo := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
	if len(certs) > 1 {
		vo.Intermediates = x509.NewCertPool()
		for _, c := range certs[1:] {
			vo.Intermediates.AddCert(c)
		}
	}
	return certs[0].Verify(vo)
}

// PeerIdentity is who the certificate of the other side names. It does not
// verify: that happened in the handshake. The error is a *reason.Error.
func PeerIdentity(cs *tls.ConnectionState) (identity.Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return identity.Identity{}, reason.Errorf(reason.TLSFailure, "peer sent no certificate")
	}
	id, err := certificateIdentity(cs.PeerCertificates[0])
	if err != nil {
		return identity.Identity{}, asReason(reason.TLSFailure, fmt.Errorf("peer certificate: %w", err))
	}
	return id, nil
}

// certificateIdentity demands what X509-SVID (sections 2 and 4) demands of a
// leaf: exactly one URI, which is a SPIFFE ID, and no right to sign others.
func certificateIdentity(c *x509.Certificate) (identity.Identity, error) {
	if c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return identity.Identity{}, errors.New("it is a CA's, not a workload's")
	}
	if len(c.URIs) != 1 {
		return identity.Identity{}, fmt.Errorf("it has %d URI names, exactly one is needed", len(c.URIs))
	}
	return identity.Parse(c.URIs[0].String())
}

// Error gives a failed handshake its reason: its own when it has one, else
// TLSFailure. It is nil for nil.
func Error(err error) *reason.Error {
	if err == nil {
		return nil
	}
	// The library's type of a received alert is not exported; this is how it
	// wraps one.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return &reason.Error{Reason: reason.TLSFailure, Detail: "the peer ended the handshake, see its log for the reason", Err: err}
	}
	return asReason(reason.TLSFailure, err)
}

// asReason keeps the reason that err carries already.
func asReason(r reason.Reason, err error) *reason.Error {
	var re *reason.Error
	if errors.As(err, &re) {
		return re
	}
	return &reason.Error{Reason: r, Err: err}
}

func describe(ids []identity.Identity) string {
	switch len(ids) {
	case 0:
		return "nobody"
	case 1:
		return ids[0].String()
	}
	return fmt.Sprintf("one of %d identities, the first %s", len(ids), ids[0])
}
