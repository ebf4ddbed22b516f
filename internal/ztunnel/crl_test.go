package ztunnel

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// revocations is a file of revocation lists that one side heeds.
type revocations struct {
	w    *world
	path string
	crl  *mtls.CRL
}

// heed gives a side's proxy a list, still empty. It comes before the pod.
func (w *world) heed(s *side) *revocations {
	w.t.Helper()
	r := &revocations{w: w, path: filepath.Join(w.t.TempDir(), "crl.pem")}
	r.write()
	var err error
	if r.crl, err = mtls.OpenCRL(r.path, logging.Discard()); err != nil {
		w.t.Fatal(err)
	}
	s.node.TLS.CRL = r.crl
	r.crl.OnReload(s.node.revoke)
	return r
}

// write makes the list one of the present certificates of ids.
func (r *revocations) write(ids ...identity.Identity) {
	r.w.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, id := range ids {
		leaf, err := x509.ParseCertificate(r.w.bundle(r.w.certs, id).Cert.Certificate[0])
		if err != nil {
			r.w.t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, r.w.signer.Root(), r.w.signer.Key())
	if err != nil {
		r.w.t.Fatal(err)
	}
	if err := os.WriteFile(r.path+".new", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600); err != nil {
		r.w.t.Fatal(err)
	}
	if err := os.Rename(r.path+".new", r.path); err != nil {
		r.w.t.Fatal(err)
	}
}

// revoke puts ids on the list and has it read.
func (r *revocations) revoke(ids ...identity.Identity) {
	r.w.t.Helper()
	r.write(ids...)
	if changed, err := r.crl.Reload(); err != nil || !changed {
		r.w.t.Fatalf("reload: %v %v", changed, err)
	}
}

func (w *world) both() {
	w.t.Helper()
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
}

func TestRevokedClientIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		list := w.heed(w.server)
		list.revoke(account("web"))
		w.both()
		w.refused(w.at(8080))
		w.server.log.wait(t, "connection failed", `direction="inbound"`, "CERTIFICATE_REVOKED")
		if n := w.server.crl(t, "istio_crl_policy_rejections_total", "destination"); n == 0 {
			t.Error("it was not counted")
		}
		// Taken off the list, it is let in again.
		list.revoke(account("other"))
		w.talk(w.dial(w.at(8080)), "again")
	})
}

func TestRevokedServerIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.heed(w.client).revoke(account("cart"))
		w.both()
		w.refused(w.at(8080))
		w.client.log.wait(t, "connection complete", `direction="outbound"`, "CERTIFICATE_REVOKED")
		if n := w.client.crl(t, "istio_crl_policy_rejections_total", "source"); n == 0 {
			t.Error("it was not counted")
		}
	})
}

// A list that changes ends the connections of the peers on it, wherever the
// tunnel was made, and no others.
func TestRevocationEndsLiveConnections(t *testing.T) {
	for _, tt := range []struct {
		name, reporter, direction string
		side                      func(*world) *side
		peer                      identity.Identity
	}{
		{"inbound", "destination", "inbound", func(w *world) *side { return w.server }, account("web")},
		{"outbound", "source", "outbound", func(w *world) *side { return w.client }, account("cart")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, false)
			s := tt.side(w)
			list := w.heed(s)
			w.both()
			c := w.dial(w.at(8080))
			w.talk(c, "before")
			list.revoke(account("somebody"))
			w.talk(c, "not meant")
			list.revoke(tt.peer)
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the connection goes on")
			}
			s.log.wait(t, "connection complete", `direction="`+tt.direction+`"`, "CERTIFICATE_REVOKED")
			if n := s.crl(t, "istio_crl_policy_rejections_total", tt.reporter); n != 1 {
				t.Errorf("%v tunnels counted", n)
			}
			w.refused(w.at(8080))
		})
	}
}

// An idle tunnel of a peer that is revoked takes no new connections.
func TestRevocationEndsIdleTunnels(t *testing.T) {
	w := newWorld(t, false)
	list := w.heed(w.server)
	w.both()
	c := w.dial(w.at(8080))
	w.talk(c, "before")
	_ = c.Close()
	w.server.log.wait(t, "connection complete", `direction="inbound"`)
	list.revoke(account("web"))
	w.refused(w.at(8080))
	w.server.log.wait(t, "connection failed", `direction="inbound"`, "CERTIFICATE_REVOKED")
}

// Without a certificate of its own a proxy has no roots to judge by.
func TestUntrackedTunnelsAreCounted(t *testing.T) {
	w := newWorld(t, false)
	list := w.heed(w.server)
	ca := &unreliable{Certificates: w.certs}
	w.server.node.Certs = ca
	w.both()
	c := w.dial(w.at(8080))
	w.talk(c, "before")
	ca.gone.Store(true)
	list.revoke(account("web"))
	if n := w.server.crl(t, "istio_crl_untracked_connections_total", "destination"); n != 1 {
		t.Errorf("%v tunnels counted", n)
	}
	w.talk(c, "still there")
}

// unreliable gives certificates out until it is gone.
type unreliable struct {
	Certificates
	gone atomic.Bool
}

func (u *unreliable) Get(ctx context.Context, id identity.Identity) (*mtls.Bundle, error) {
	if u.gone.Load() {
		return nil, errors.New("gone")
	}
	return u.Certificates.Get(ctx, id)
}

// crl reads a counter of revocations.
func (s *side) crl(t *testing.T, metric, reporter string) float64 {
	t.Helper()
	return s.sum(t, metric, map[string]string{"reporter": reporter})
}
