// Package feed connects a proxy to its control plane: to the CA, and to xDS, from
// which it keeps the directory of workloads and the policies up to date.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
)

// fakeCASeed makes the fake CA of all proxies one: FAKE_CA is for tests in
// which several of them meet.
const fakeCASeed = "mesh"

// Dial connects to a server of the control plane. Nil stands for the usual way.
type Dial func(ctx context.Context, address string) (net.Conn, error)

// Signer returns the CA that the settings name. With own, certificates are for the
// proxy's own identity; otherwise for workloads of its node.
func Signer(s *bootstrap.Settings, own bool, dial Dial, log *slog.Logger) (certs.Signer, error) {
	if s.FakeCA {
		log.Warn("FAKE_CA is set: certificates protect nothing")
		return certs.NewSharedFakeSigner(fakeCASeed)
	}
	if s.CA.Address == "" {
		return nil, errors.New("CA_ADDRESS is empty: without a CA there are no certificates; set it, or FAKE_CA=true for a test")
	}
	server, err := Server(s, s.CA, dial)
	if err != nil {
		return nil, err
	}
	return certs.NewCAClient(certs.CAConfig{Server: server, OwnIdentity: own})
}

// Server returns how to reach a server of the control plane.
func Server(s *bootstrap.Settings, e bootstrap.Endpoint, dial Dial) (controlplane.Server, error) {
	root, err := rootsFile(e.RootCA)
	if err != nil {
		return controlplane.Server{}, err
	}
	token := s.TokenFile
	if s.Token != "" {
		if token, err = inlineFile("token", s.Token); err != nil {
			return controlplane.Server{}, err
		}
	}
	return controlplane.Server{
		Address: e.URL(), RootCAFile: root, AltHostname: e.AltHostname, PQC: s.PQC,
		TokenFile: token, ClusterID: s.ClusterID, Headers: e.HeaderMap(), Dial: dial,
	}, nil
}

// rootsFile turns what a variable says into the file that clients read; ""
// means the system's roots. PEM text is put into a file of its own.
func rootsFile(v string) (string, error) {
	switch {
	case v == bootstrap.RootsSystem:
		return "", nil
	case strings.Contains(v, "-----BEGIN"):
		return inlineFile("roots", v)
	}
	return v, nil
}

// inlineFile keeps a value in memory that clients want in a file. The link
// under /proc lives as long as the descriptor, which is never closed.
func inlineFile(name, text string) (string, error) {
	f, err := os.CreateTemp("", "proxy-"+name+"-")
	if err != nil {
		return "", err
	}
	if err := os.Remove(f.Name()); err != nil {
		return "", err
	}
	if _, err := f.WriteString(text); err != nil {
		return "", err
	}
	inline = append(inline, f)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

// inline keeps the files of inlineFile from the collector.
var inline []*os.File
