package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/cli/session"
)

// TestCA prints what ambitd says, in each stage.
func TestCA(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		s    admin.Authority
		want []string
	}{
		"steady": {
			admin.Authority{Stage: admin.Steady, Signer: "O=cluster.local", SignerExpires: now.AddDate(10, 0, 0), Roots: 1},
			[]string{"O=cluster.local (self-signed)", "(in 3653 days)", "Nothing is under way", "`ambit ca rotate`"},
		},
		"distributed": {
			admin.Authority{Stage: "new-root-distributed", Until: now.Add(90 * time.Minute), Signer: "O=a", NextSigner: "O=b", Roots: 2},
			[]string{"Next signer:", "O=b", "1 of 2", "Next, at 2026-03-01T13:30:00Z (in 1h30m): the new root signs."},
		},
		"signing": {
			admin.Authority{Stage: "signing-by-new", Until: now.Add(30 * time.Second), Roots: 2},
			[]string{"2 of 2", "(in 30s): the old root is not trusted any more"},
		},
		"due": {
			admin.Authority{Stage: "signing-by-new", Until: now.Add(-time.Second), Roots: 2},
			[]string{"Next, in a moment: the old root"},
		},
		"plugged in": {
			admin.Authority{Stage: admin.Steady, PluggedIn: true, PluginProblem: "ca-key.pem: no such file"},
			[]string{"(plugged in)", "ca-key.pem: no such file", "put new files"},
		},
		"of a newer ambitd": {admin.Authority{Stage: "dancing"}, []string{"Stage:", "dancing"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := json.Marshal(tc.s)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			a := session.New(nil, &out, &out)
			if err := printCA(a, b, session.FormatTable, now); err != nil {
				t.Fatal(err)
			}
			for _, w := range tc.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("%q is not in\n%s", w, out.String())
				}
			}
		})
	}
}

// TestCARotate asks a server at an address, and passes its refusals on.
func TestCARotate(t *testing.T) {
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String())
		if len(asked) > 2 {
			http.Error(w, "no rotation was started: one is under way", http.StatusConflict)
			return
		}
		_, _ = w.Write([]byte(`{"stage": "new-root-distributed", "roots": 2}`))
	}))
	defer s.Close()
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		args = append(append([]string{"ca"}, args...), "--address", strings.TrimPrefix(s.URL, "http://"))
		return Run(context.Background(), args, nil, &out, &out), out.String()
	}
	if code, out := run("rotate", "-o", "json"); code != 0 || !strings.Contains(out, `"roots": 2`) {
		t.Errorf("%d %s", code, out)
	}
	if code, out := run("status"); code != 0 || !strings.Contains(out, "1 of 2") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := run("rotate", "--hurry"); code != 1 || !strings.Contains(out, "error: ambitd: no rotation was started: one is under way") {
		t.Errorf("%d %s", code, out)
	}
	if got := strings.Join(asked, ", "); got != "POST /ca/rotate, GET /debug/ca, POST /ca/rotate?hurry" {
		t.Errorf("asked: %s", got)
	}
}
