package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// issuerName is the iss claim of our own tokens.
const issuerName = "ambit"

// keyFile is the issuer's key in its state directory.
const keyFile = "token-key.pem"

const (
	// maxToken bounds a token, in bytes; ours have about 700, and a bound
	// Kubernetes token has less than 2 KiB.
	maxToken = 8 << 10
	// leeway bounds the difference of two clocks.
	leeway = time.Minute
	// MaxTokenTTL bounds the life of a token: a stolen one works that long.
	MaxTokenTTL = 366 * 24 * time.Hour
)

const subjectPrefix = "system:serviceaccount:"

// Issuer makes and judges the tokens of a mesh without Kubernetes. Its key is
// the whole secret: whoever can read it can be anybody.
type Issuer struct {
	key    *ecdsa.PrivateKey
	kid    string
	signer jose.Signer
}

// claims have the shape of a bound Kubernetes service account token.
type claims struct {
	jwt.Claims
	Kubernetes kubernetesClaims `json:"kubernetes.io"`
}

type kubernetesClaims struct {
	Namespace      string     `json:"namespace"`
	ServiceAccount reference  `json:"serviceaccount"`
	Pod            *reference `json:"pod,omitempty"`
	Node           *reference `json:"node,omitempty"`
}

type reference struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// OpenIssuer loads the key in stateDir, or makes it (0600) when there is
// none. Several processes may do so at once: all get the same key.
func OpenIssuer(stateDir string) (*Issuer, error) {
	path := filepath.Join(stateDir, keyFile)
	key, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(stateDir, path); err != nil {
			return nil, fmt.Errorf("token key: %w", err)
		}
		key, err = loadKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("token key %s: %w", path, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki)
	i := &Issuer{key: key, kid: base64.RawURLEncoding.EncodeToString(sum[:16])}
	i.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: i.kid}},
		(&jose.SignerOptions{}).WithType("JWT"))
	return i, err
}

func loadKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(strings.TrimSpace(string(rest))) != 0 {
		return nil, errors.New("not one PEM private key; remove the file to begin with a new key, which voids all tokens")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA P-256 key")
	}
	return ec, nil
}

// makeKey writes a new key, unless another process was first: the link fails
// then, and theirs counts. The file appears whole or not at all.
func makeKey(dir, path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others read the trust bundle in it; keys are 0600
		return err
	}
	f, err := os.CreateTemp(dir, ".token-key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// Issue makes a token for c that is valid for ttl from now. Method and Cluster
// are not part of a token.
func (i *Issuer) Issue(c Caller, ttl time.Duration) (string, error) {
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	if ttl <= 0 || ttl > MaxTokenTTL {
		return "", fmt.Errorf("token: a validity of %s is not between 0 and %s", ttl, MaxTokenTTL)
	}
	now := time.Now()
	cl := claims{
		Claims: jwt.Claims{
			Issuer:    issuerName,
			Subject:   subjectPrefix + c.Namespace + ":" + c.ServiceAccount,
			Audience:  jwt.Audience{wellknown.TokenAudience},
			Expiry:    jwt.NewNumericDate(now.Add(ttl)),
			NotBefore: jwt.NewNumericDate(now),
			IssuedAt:  jwt.NewNumericDate(now),
		},
		Kubernetes: kubernetesClaims{Namespace: c.Namespace, ServiceAccount: reference{Name: c.ServiceAccount}},
	}
	if c.PodName != "" {
		cl.Kubernetes.Pod = &reference{Name: c.PodName, UID: c.PodUID}
	}
	if c.Node != "" {
		cl.Kubernetes.Node = &reference{Name: c.Node}
	}
	return jwt.Signed(i.signer).Claims(cl).Serialize()
}

// Authenticate implements Authenticator. Tokens that name another key are not
// ours to judge.
func (i *Issuer) Authenticate(_ context.Context, cr Credentials) (Caller, error) {
	if cr.Token == "" {
		return Caller{}, ErrNotMine
	}
	c, err := i.verify(cr.Token, time.Now())
	if err != nil && !errors.Is(err, ErrNotMine) {
		err = fmt.Errorf("token: %w", err)
	}
	return c, err
}

func (i *Issuer) verify(token string, now time.Time) (Caller, error) {
	if len(token) > maxToken {
		return Caller{}, fmt.Errorf("longer than %d bytes", maxToken)
	}
	t, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		// Another issuer may use another algorithm, but nobody's token has
		// another form; which of the two it is does not matter here.
		return Caller{}, fmt.Errorf("%w: %w", ErrNotMine, err)
	}
	if len(t.Headers) != 1 || t.Headers[0].KeyID != i.kid {
		return Caller{}, fmt.Errorf("%w: the token was signed by another key", ErrNotMine)
	}
	var cl claims
	if err := t.Claims(i.key.Public(), &cl); err != nil {
		return Caller{}, err
	}
	return cl.caller(now)
}

// caller checks the claims of a token whose signature is good.
func (cl *claims) caller(now time.Time) (Caller, error) {
	// The library treats a missing time as unlimited.
	if cl.Expiry == nil {
		return Caller{}, errors.New("it never expires")
	}
	err := cl.ValidateWithLeeway(jwt.Expected{
		Issuer:      issuerName,
		AnyAudience: jwt.Audience{wellknown.TokenAudience},
		Time:        now,
	}, leeway)
	if err != nil {
		return Caller{}, err
	}
	k := cl.Kubernetes
	c := Caller{Namespace: k.Namespace, ServiceAccount: k.ServiceAccount.Name, Method: "ambit token"}
	if k.Pod != nil {
		c.PodName, c.PodUID = k.Pod.Name, k.Pod.UID
	}
	if k.Node != nil {
		c.Node = k.Node.Name
	}
	if err := c.validate(); err != nil {
		return Caller{}, err
	}
	if cl.Subject != subjectPrefix+c.Namespace+":"+c.ServiceAccount {
		return Caller{}, fmt.Errorf("its subject %q is not its service account %s", cl.Subject, c.Account())
	}
	return c, nil
}
