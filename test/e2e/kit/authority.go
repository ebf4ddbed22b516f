package kit

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	securityapi "istio.io/api/security/v1alpha1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/kube/portforward"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// Audience is what tokens for the mesh's authority are made for.
const Audience = "istio-ca"

// SPIFFE is the identity of a service account.
func SPIFFE(namespace, account string) string {
	return fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", wellknown.DefaultDomain, namespace, account)
}

// Token asks for a service account's token, bound to a pod unless that is nil.
func (c *Cluster) Token(t testing.TB, namespace, account string, pod *corev1.Pod, audiences ...string) string {
	t.Helper()
	spec := authv1.TokenRequestSpec{Audiences: audiences}
	if pod != nil {
		spec.BoundObjectRef = &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	tr, err := c.Kube.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return tr.Status.Token
}

// ProxyOn is the pod of a node's proxy.
func (c *Cluster) ProxyOn(t testing.TB, node string) *corev1.Pod {
	t.Helper()
	name, err := c.ZtunnelOn(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	pod, err := c.Kube.CoreV1().Pods(SystemNamespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// ControlPlaneConn connects to the control plane as a client of the mesh does.
func (c *Cluster) ControlPlaneConn(t testing.TB) *grpc.ClientConn {
	t.Helper()
	pods, err := c.Kube.CoreV1().Pods(SystemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=istiod", FieldSelector: "status.phase=Running"})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("no control plane: %v", err)
	}
	return c.ConnTo(t, pods.Items[0].Name, "istiod")
}

// ConnTo connects to a pod of a control plane, which is reached as a service.
func (c *Cluster) ConnTo(t testing.TB, pod, service string) *grpc.ClientConn {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.RootCertificates(t)) {
		t.Fatal("no roots")
	}
	conn, err := grpc.NewClient("passthrough:///"+pod,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: service + "." + SystemNamespace + ".svc", MinVersion: tls.VersionTLS12})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return portforward.Dial(ctx, c.Client, SystemNamespace, pod, wellknown.PortXDS)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// RootCertificates are those that clients of the control plane trust.
func (c *Cluster) RootCertificates(t testing.TB) []byte {
	t.Helper()
	cm, err := c.Kube.CoreV1().ConfigMaps(SystemNamespace).Get(t.Context(), "istio-ca-root-cert", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return []byte(cm.Data["root-cert.pem"])
}

// Certificate asks the control plane for one with a token: for the caller's own
// identity, or for that of another.
func Certificate(t testing.TB, conn *grpc.ClientConn, token, other string) (*mtls.Bundle, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	req := &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 3600,
	}
	if other != "" {
		req.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"ImpersonatedIdentity": structpb.NewStringValue(other)}}
	}
	ctx, cancel := context.WithTimeout(Bearing(t.Context(), token), 20*time.Second)
	defer cancel()
	resp, err := securityapi.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, req)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(resp.CertChain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(leaf.URIs) != 1 {
		t.Fatalf("a certificate with names %v, %v", leaf.URIs, err)
	}
	id, err := identity.Parse(leaf.URIs[0].String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := mtls.NewBundle(id, key, resp.CertChain)
	if err != nil {
		t.Fatal(err)
	}
	return b, nil
}

// Bearing is the context of a call that shows a token, unless that is empty,
// and names the cluster that the token is of.
func Bearing(ctx context.Context, token string) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", "Kubernetes")
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// RefusedBy expects an answer of the control plane that says no, and not one
// that did not come.
func RefusedBy(t testing.TB, what string, err error) {
	t.Helper()
	if c := status.Code(err); c != codes.Unauthenticated && c != codes.PermissionDenied {
		t.Errorf("%s: %v, and not refused", what, err)
	}
}
