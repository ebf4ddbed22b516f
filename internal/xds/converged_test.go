package xds

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// TestConvergence: the time of a change runs until the client has accepted it, also when it
// waited for a response under way. What a client begins with, and what it rejects, does not count.
func TestConvergence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCache()
		c.MarkSynced("A")
		c.Update("A", []*Resource{{Name: "a", Version: "1"}}, nil)
		s := newSession(c, nil)
		var took []time.Duration
		s.converged = func(typeURL string, d time.Duration) {
			if typeURL != "A" {
				t.Error(typeURL)
			}
			took = append(took, d)
		}
		c.join(s)
		tell := func(req *discovery.DeltaDiscoveryRequest) {
			t.Helper()
			req.TypeUrl = "A"
			if _, err := hear(s, req); err != nil {
				t.Fatal(err)
			}
		}
		next := func() string {
			t.Helper()
			resp := said(s)
			if resp == nil {
				t.Fatal("nothing is due")
			}
			return resp.Nonce
		}
		change := func(version string) { c.Update("A", []*Resource{{Name: "a", Version: version}}, nil) }
		check := func(what string, want ...time.Duration) {
			t.Helper()
			if !slices.Equal(took, want) {
				t.Errorf("%s: %v, want %v", what, took, want)
			}
			took = nil
		}
		tell(&discovery.DeltaDiscoveryRequest{})
		first := next()
		time.Sleep(time.Second)
		tell(&discovery.DeltaDiscoveryRequest{ResponseNonce: first})
		check("what a client begins with")

		change("2")
		time.Sleep(time.Second)
		change("3")
		nonce := next()
		time.Sleep(time.Second)
		change("4") // waits
		time.Sleep(time.Second)
		tell(&discovery.DeltaDiscoveryRequest{ResponseNonce: nonce})
		check("two changes in one response", 3*time.Second)
		nonce = next()
		tell(&discovery.DeltaDiscoveryRequest{ResponseNonce: nonce})
		check("one that waited", time.Second)

		change("5")
		tell(&discovery.DeltaDiscoveryRequest{ResponseNonce: next(), ErrorDetail: &status.Status{Message: "no"}})
		check("one that was rejected")
		time.Sleep(time.Second)
		change("6")
		tell(&discovery.DeltaDiscoveryRequest{ResponseNonce: next()})
		check("the next one", 0)
	})
}
