package lifecycle

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestReadiness(t *testing.T) {
	var r Readiness
	get := func() (int, string) {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest("GET", "/healthz/ready", nil))
		return w.Code, w.Body.String()
	}
	if code, _ := get(); code != 200 {
		t.Fatalf("nothing pending, and the answer is %d", code)
	}
	a, b := r.Task("xds"), r.Task("proxy")
	if code, body := get(); code != 500 || !strings.Contains(body, "xds, proxy") {
		t.Fatalf("%d %q", code, body)
	}
	a()
	a()
	if p := r.Pending(); len(p) != 1 || p[0] != "proxy" {
		t.Fatalf("pending %v", p)
	}
	b()
	if code, body := get(); code != 200 || body != "ready\n" {
		t.Fatalf("%d %q", code, body)
	}
}

func TestDrainDeadline(t *testing.T) {
	for _, tc := range []struct{ explicit, grace, want time.Duration }{
		{0, 0, 5 * time.Second},
		{0, 30 * time.Second, 25 * time.Second},
		{0, 10 * time.Second, 9 * time.Second},
		{0, time.Second, time.Second},
		{3 * time.Second, 30 * time.Second, 3 * time.Second},
	} {
		if got := DrainDeadline(tc.explicit, tc.grace); got != tc.want {
			t.Errorf("DrainDeadline(%v, %v) = %v", tc.explicit, tc.grace, got)
		}
	}
}
