package bootstrap

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

var role = Role{Threads: ThreadVars{Prefix: "ROLE", Fraction: 1}}

func host(cpus int, files ...string) Host {
	return Host{
		CPUs: cpus,
		Exists: func(p string) bool {
			for _, f := range files {
				if f == p {
					return true
				}
			}
			return false
		},
		ReadFile: func(string) ([]byte, error) { return nil, os.ErrNotExist },
	}
}

// TestThreads: a role's own variables count, and those of another do not.
func TestThreads(t *testing.T) {
	for _, tc := range []struct {
		env  Env
		want int
	}{
		{Env{}, 16},
		{Env{"ROLE_WORKER_THREADS": "3"}, 3},
		{Env{"OTHER_WORKER_THREADS": "3"}, 16},
		{Env{"ROLE_RESOURCE_CPU_LIMIT": "1500m"}, 2},
		{Env{"PROXY_CONFIG": "concurrency: 5"}, 5},
	} {
		r := NewReader(tc.env)
		if s := r.Settings(host(16), role); s.Threads != tc.want || r.Err() != nil {
			t.Errorf("%v: %d threads, error %v", tc.env, s.Threads, r.Err())
		}
	}
}

// TestSelf: half a name is no name.
func TestSelf(t *testing.T) {
	env := Env{"POD_NAME": "p", "POD_NAMESPACE": "n", "SERVICE_ACCOUNT": "s"}
	if w := NewReader(env).Self(); w == nil || *w != (Workload{Name: "p", Namespace: "n", ServiceAccount: "s"}) {
		t.Error(w)
	}
	delete(env, "SERVICE_ACCOUNT")
	if w := NewReader(env).Self(); w != nil {
		t.Error(w)
	}
}

// TestMountedToken: a token that is mounted is used without being named.
func TestMountedToken(t *testing.T) {
	if s := NewReader(Env{}).Settings(host(1, defaultTokenFile), role); s.TokenFile != defaultTokenFile {
		t.Error(s.TokenFile)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add("XDS_ADDRESS", "https://x:1")
	f.Add("SECRET_TTL", "1d2h")
	f.Add("ROLE_WORKER_THREADS", "10%")
	f.Add("PROXY_CONFIG", "proxyMetadata: {A: b}")
	f.Fuzz(func(t *testing.T, k, v string) {
		r := NewReader(Env{k: v, "XDS_HEADER_A": "s3cret", "AUTH_TOKEN": "s3cret"})
		s := r.Settings(host(2), role)
		if r.Err() == nil && (s.Threads < 1 || s.SecretTTL <= 0 || s.DrainDeadline < 0) {
			t.Fatalf("%q=%q: %+v", k, v, s)
		}
		if b, err := json.Marshal(s); err != nil || strings.Contains(string(b), "s3cret") && !strings.Contains(k+v, "s3cret") {
			t.Fatalf("%v %s", err, b)
		}
	})
}
