package filter

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

func head(path string, fields ...string) *message.Head {
	h := &message.Head{Method: []byte("GET"), Authority: []byte("h:8080"), Path: []byte(path)}
	for i := 0; i < len(fields); i += 2 {
		h.Add(message.NewKey(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func fields(h *message.Head) string {
	var all []string
	for i := range h.Fields {
		all = append(all, string(h.Fields[i].Name)+"="+string(h.Fields[i].Value))
	}
	return strings.Join(all, " ")
}

// TestPrefixes is the table of HTTPPathModifier in Gateway API.
func TestPrefixes(t *testing.T) {
	for _, r := range [][4]string{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"}, {"/foo/bar", "/foo", "/xyz/", "/xyz/bar"}, {"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"}, {"/foo", "/foo", "/xyz", "/xyz"}, {"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"}, {"/foo/", "/foo", "", "/"}, {"/foo", "/foo", "", "/"}, {"/foo/", "/foo", "/", "/"}, {"/foo", "/foo", "/", "/"},
		{"/foo/bar", "/", "/xyz", "/xyz/foo/bar"}, {"/", "/", "/xyz", "/xyz/"},
	} {
		got := string(appendPath(nil, &route.PathEdit{Prefix: true, Value: r[2]}, route.Path{Kind: route.Segments, Value: r[1]}, []byte(r[0])))
		if got != r[3] {
			t.Errorf("%s with %s → %s is %s, want %s", r[0], r[1], r[2], got, r[3])
		}
	}
}

// TestRedirectPorts is B.3 of Gateway API's conformance: which port a Location names.
func TestRedirectPorts(t *testing.T) {
	for _, r := range []struct {
		port  uint16
		tls   bool
		to    route.Redirect
		where string
	}{
		{80, false, route.Redirect{}, "http://h/x?q"}, {8080, false, route.Redirect{}, "http://h:8080/x?q"}, {443, true, route.Redirect{}, "https://h/x?q"},
		{8080, false, route.Redirect{Scheme: "https"}, "https://h/x?q"}, {443, true, route.Redirect{Scheme: "http"}, "http://h/x?q"},
		{80, false, route.Redirect{Port: 8083}, "http://h:8083/x?q"}, {80, false, route.Redirect{Port: 80}, "http://h/x?q"},
		{80, false, route.Redirect{Scheme: "https", Port: 443}, "https://h/x?q"}, {80, false, route.Redirect{Scheme: "https", Port: 8443}, "https://h:8443/x?q"},
		{8443, true, route.Redirect{Host: "o"}, "https://o:8443/x?q"},
	} {
		rule := &route.Target{Rule: &route.Rule{Filters: route.Filters{Redirect: &r.to}}}
		c := &Call{Request: head("/x?q"), Rule: rule, Port: r.port, TLS: r.tls}
		if Request(c) != Answer || c.Reply.Status != 302 || string(c.Reply.Get(message.Location)) != r.where {
			t.Errorf("%+v: %d %s, want %s", r.to, c.Reply.Status, c.Reply.Get(message.Location), r.where)
		}
	}
}

func TestArrive(t *testing.T) {
	h := head("/", "X-Forwarded-Client-Cert", "forged", "A", "b", "X-Envoy-Decorator-Operation", "x", "x-AMBIT-reason", "y", "x-forwarded-client-cert", "z", "x-envoy", "kept")
	Arrive(h, &Client{}, false, 0, ^uint64(0))
	if got := fields(h); got != "A=b x-envoy=kept x-forwarded-proto=http x-request-id=00000000-0000-4000-bfff-ffffffffffff" {
		t.Error(got)
	}
	h = head("/", "x-request-id", "1", "x-forwarded-proto", "https")
	Arrive(h, &Client{}, false, 1, 2)
	if got := fields(h); got != "x-request-id=1 x-forwarded-proto=https" {
		t.Error(got)
	}
	h = head("/", "x-request-id", "1", "x-forwarded-proto", "https", "X-Forwarded-For", "9.9.9.9", "x-forwarded-client-cert", "By=a", "x-forwarded-for", "8.8.8.8, 7.7.7.7")
	Arrive(h, &Client{Address: "10.0.0.1", Certificate: []byte("By=w;URI=c")}, false, 1, 2)
	if got := fields(h); got != "x-request-id=1 x-forwarded-proto=https X-Forwarded-For=9.9.9.9 x-forwarded-for=8.8.8.8, 7.7.7.7,10.0.0.1 x-forwarded-client-cert=By=w;URI=c" {
		t.Error(got)
	}
	re := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	rapid.Check(t, func(t *rapid.T) {
		var id [36]byte
		if s := string(uuid(&id, rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b"))); !re.MatchString(s) {
			t.Fatal(s)
		}
	})
}

func TestOrigins(t *testing.T) {
	list := []string{"https://a.com", "https://*.bar.com", "http://*.x.org:8080"}
	for origin, want := range map[string]bool{
		"https://a.com": true, "HTTPS://A.com": true, "https://a.com:443": false, "http://a.com": false, "https://x.bar.com": true, "https://x.y.bar.com": true,
		"https://.bar.com": false, "https://bar.com": false, "https://evil.com/.bar.com": false, "https://evil.com:1.bar.com": false, "http://b.x.org:8080": true,
		"http://b.x.org": false, "null": false, "": false,
	} {
		if got := permits(list, []byte(origin)); got != want {
			t.Errorf("%q: %t", origin, got)
		}
	}
	if !permits([]string{"*"}, []byte("null")) {
		t.Error("* is every origin")
	}
}

// TestEdits: set, then add, then remove; names without regard to case.
func TestEdits(t *testing.T) {
	h := head("/", "X-A", "1", "x-a", "2", "X-B", "1", "Set-Cookie", "a", "X-C", "1")
	edit(h, &route.HeaderEdit{
		Set: []route.Field{{Name: "x-A", Value: "new"}, {Name: "Host", Value: "other"}},
		Add: []route.Field{{Name: "X-b", Value: "2"}, {Name: "set-cookie", Value: "b"}, {Name: "X-D", Value: "1"}}, Remove: []string{"x-c", "nothing"},
	})
	if got := fields(h) + " " + string(h.Authority); got != "X-A=new X-B=1,2 Set-Cookie=a set-cookie=b X-D=1 other" {
		t.Error(got)
	}
}

// TestOrder: the order is an interface. A change here is a change for authors of
// policies.
func TestOrder(t *testing.T) {
	var names []string
	for _, f := range Order {
		names = append(names, f.Name)
	}
	const want = "[client-certificate cors extensions-authn jwt extensions-authz external-authorization authorization-audit authorization-deny authorization-allow rate-limit fault extensions redirect route rewrite]"
	if got := fmt.Sprint(names); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
