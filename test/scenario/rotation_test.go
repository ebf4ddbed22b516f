package scenario

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// rotation looks at a change of the root from outside.
type rotation struct{ *rig.World }

func (r rotation) status() (a admin.Authority, err error) {
	b, err := r.Admin(r.T().Context(), lab.Ambitd, admin.PathAuthority)
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	return a, err
}

// reaches waits for a stage; the rotation goes on by itself.
func (r rotation) reaches(stage admin.Stage) (a admin.Authority) {
	r.T().Helper()
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(200 * time.Millisecond) {
		var err error
		if a, err = r.status(); err == nil && a.Stage == stage {
			return a
		}
	}
	r.T().Fatalf("the rotation does not reach %s: %+v", stage, a)
	return a
}

// start asks for it, as `ambit ca rotate` does.
func (r rotation) start() {
	r.T().Helper()
	resp, err := r.HTTP(lab.LAN).Post("http://127.0.0.1:8080/ca/rotate", "", nil)
	if err != nil {
		r.T().Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		r.T().Fatalf("POST /ca/rotate: %s", resp.Status)
	}
}

// roots counts the certificates in the file that clients of ambitd trust.
func (r rotation) roots() int {
	r.T().Helper()
	b, err := os.ReadFile(r.StateDir() + "/ambitd/root-cert.pem")
	if err != nil {
		r.T().Fatal(err)
	}
	return strings.Count(string(b), "BEGIN CERTIFICATE")
}

// TestRootRotation changes the root of a mesh under load, in which every
// connection is a handshake of its own, and kills ambitd in the middle of it.
// Not one connection fails, and nothing has to be restarted.
func TestRootRotation(t *testing.T) {
	w := rig.Start(t, lab.Config{
		YAML: shop,
		// A life of a day is one of seconds here. Half of it, which remains when
		// a certificate is renewed, is what ambitd has to come back in.
		Args: map[string][]string{"ambitd": {"--cert-ttl", "20s", "--max-cert-ttl", "20s", "--rotation-margin", "2s"}},
		Env: map[string][]string{"ztunnel": {
			"SECRET_TTL=20s", "POOL_MAX_STREAMS_PER_CONNECTION=1", "POOL_UNUSED_RELEASE_TIMEOUT=1ms",
		}},
	})
	r := rotation{w}
	first, err := r.status()
	if err != nil || first.Stage != "steady" || r.roots() != 1 {
		t.Fatalf("at the beginning: %v %+v, %d roots", err, first, r.roots())
	}
	to := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	load := w.StartLoad(far, to, 20)
	stop := caller(w, to)
	held := w.MustHold(far, netip.AddrPortFrom(w.Pod("shop", "web", false), 9000))

	r.start()
	a := r.reaches("new-root-distributed")
	if a.Signer != first.Signer || a.NextSigner == "" || r.roots() != 2 {
		t.Errorf("while the new root is introduced: %+v, %d roots in the file", a, r.roots())
	}
	next := a.NextSigner
	if err := w.Kill(t.Context(), lab.Ambitd, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if a = r.reaches("signing-by-new"); a.Signer != next || r.roots() != 2 {
		t.Errorf("while both are trusted: %+v, %d roots in the file", a, r.roots())
	}
	if err := w.Kill(t.Context(), lab.Ambitd, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if a = r.reaches("steady"); a.Signer != next || r.roots() != 1 {
		t.Errorf("in the end: %+v, %d roots in the file", a, r.roots())
	}
	load.Clean()
	if made := stop(); made < 100 {
		t.Errorf("only %d requests were made", made)
	}
	if err := held.Ping(); err != nil {
		t.Errorf("a connection from before the rotation: %v", err)
	}
	for _, node := range []string{"node1", "node2"} {
		if n := failures(w, node); n > 0 {
			t.Errorf("%s counted %v failed connections", node, n)
		}
		// It could always talk to ambitd, whoever had signed for that.
		if text := w.Log("ztunnel/" + node); strings.Contains(text, "unknown authority") || strings.Contains(text, "bad certificate") {
			t.Errorf("%s met a certificate that it does not trust", node)
		}
	}
	// Who comes now knows the new root only.
	if err := w.Restart(t.Context(), "ztunnel/node2", lab.RestartGraceful); err != nil {
		t.Fatal(err)
	}
	w.Eventually("a new proxy takes part", func() error { _, err := w.Get(far, to); return err })
}

// caller makes requests all the time, each on a connection of its own, none
// of which may fail. stop ends it and tells how many there were.
func caller(w *rig.World, to netip.AddrPort) (stop func() int) {
	quit, made := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-quit:
				made <- n
				return
			case <-time.After(40 * time.Millisecond):
			}
			if _, err := w.Get(far, to); err != nil {
				w.T().Errorf("request %d: %v", n, err)
			}
		}
	}()
	return sync.OnceValue(func() int { close(quit); return <-made })
}

// failures sums a proxy's failed connections.
func failures(w *rig.World, node string) (n float64) {
	for _, s := range w.Metrics(node, "istio_tcp_connections_failed_total") {
		n += s.Value
		w.T().Log(fmt.Sprint(node, " failed: ", s.Labels))
	}
	return n
}
