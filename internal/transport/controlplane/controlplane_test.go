package controlplane_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

func TestAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"https://istiod.istio-system.svc:15012": true,
		"http://127.0.0.1:15010":                true,
		"https://[::1]:15012/":                  true,
		"https://istiod":                        false,
		"https://:15012":                        false,
		"istiod:15012":                          false,
		"ftp://istiod:15012":                    false,
		"https://istiod:15012/ca":               false,
		"https://[::1:15012":                    false,
		"":                                      false,
	} {
		if err := (controlplane.Server{Address: address}).Check(); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}

// seen is what a server saw of a call.
type seen struct {
	headers metadata.MD
	state   tls.ConnectionState
}

// serve answers every call, and tells what it saw of it. A nil configuration is
// plaintext.
func serve(t *testing.T, conf *tls.Config) (address string, calls <-chan seen) {
	t.Helper()
	ch := make(chan seen, 4)
	opts := []grpc.ServerOption{grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		got := seen{}
		got.headers, _ = metadata.FromIncomingContext(s.Context())
		if conf != nil {
			got.state = stateOf(s)
		}
		ch <- got
		return s.SendMsg(&emptypb.Empty{})
	})}
	if conf != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(conf)))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return l.Addr().String(), ch
}

func call(t *testing.T, s controlplane.Server) error {
	t.Helper()
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.Invoke(t.Context(), "/any/Call", &emptypb.Empty{}, &emptypb.Empty{})
}

func TestNoTokenInPlaintext(t *testing.T) {
	address, calls := serve(t, nil)
	token := write(t, "token", []byte("secret"))
	if err := call(t, controlplane.Server{Address: "http://" + address, TokenFile: token, ClusterID: "c1", Headers: map[string]string{"X-Extra": "y"}}); err != nil {
		t.Fatal(err)
	}
	got := (<-calls).headers
	if got.Get("authorization") != nil || got.Get("clusterid")[0] != "c1" || got.Get("x-extra")[0] != "y" {
		t.Errorf("headers: %v", got)
	}
}

func TestTokenIsReadForEveryCall(t *testing.T) {
	cert, roots := certificate(t)
	address, calls := serve(t, &tls.Config{Certificates: []tls.Certificate{cert}})
	s := controlplane.Server{Address: "https://" + address, RootCAFile: roots, TokenFile: write(t, "token", []byte("one\n"))}
	for _, token := range []string{"one", "two"} {
		if err := os.WriteFile(s.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := call(t, s); err != nil {
			t.Fatal(err)
		}
		if got := (<-calls).headers.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+token {
			t.Errorf("authorization: %q", got)
		}
	}
	if err := os.WriteFile(s.TokenFile, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := call(t, s); err == nil {
		t.Error("an empty token is sent")
	}
}

// TestPostQuantum: with PQC a server that cannot do X25519MLKEM768 is refused,
// and without it taken.
func TestPostQuantum(t *testing.T) {
	cert, roots := certificate(t)
	for _, tc := range []struct {
		name   string
		server []tls.CurveID
		pqc    bool
		want   tls.CurveID // 0: refused
	}{
		{"able", nil, true, tls.X25519MLKEM768},
		{"unable", []tls.CurveID{tls.X25519}, true, 0},
		{"not asked", []tls.CurveID{tls.X25519}, false, tls.X25519},
	} {
		t.Run(tc.name, func(t *testing.T) {
			address, calls := serve(t, &tls.Config{Certificates: []tls.Certificate{cert}, CurvePreferences: tc.server})
			err := call(t, controlplane.Server{Address: "https://" + address, RootCAFile: roots, PQC: tc.pqc})
			if tc.want == 0 {
				if status.Code(err) != codes.Unavailable {
					t.Errorf("connected: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := (<-calls).state.CurveID; got != tc.want {
				t.Errorf("key exchange %v, want %v", got, tc.want)
			}
		})
	}
}

func stateOf(s grpc.ServerStream) tls.ConnectionState {
	p, _ := peer.FromContext(s.Context())
	return p.AuthInfo.(credentials.TLSInfo).State
}

// certificate is one for 127.0.0.1, and the file of its root, which is itself.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		write(t, "root.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func write(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
