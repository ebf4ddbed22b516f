package why

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
)

func TestParseCall(t *testing.T) {
	for text, want := range map[string]Call{
		"web":                         {Name: "web"},
		"web.shop:80":                 {Name: "web.shop", Port: 80},
		"10.0.0.1:80":                 {Name: "10.0.0.1", Port: 80},
		"fd00::1":                     {Name: "fd00::1"},
		"[fd00::1]:80":                {Name: "fd00::1", Port: 80},
		"svc/web.shop":                {Kind: "svc", Name: "web.shop"},
		"service/web:8080":            {Kind: "svc", Name: "web", Port: 8080},
		"pod/web-0.shop:80":           {Kind: "pod", Name: "web-0.shop", Port: 80},
		"http://web":                  {Name: "web", Scheme: "http", Port: 80, Path: "/"},
		"HTTP://web.shop:8080/a?b=/c": {Name: "web.shop", Scheme: "http", Port: 8080, Path: "/a?b=/c"},
		"http://web?x":                {Name: "web", Scheme: "http", Port: 80, Path: "/?x"},
		"http://[fd00::1]/x":          {Name: "fd00::1", Scheme: "http", Port: 80, Path: "/x"},
		"https://web":                 {Name: "web", SNI: "web", Scheme: "https", Port: 443, Path: "/"},
	} {
		got, err := ParseCall(text)
		if err != nil || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%s: %+v, error %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":80", "web:", "web:0", "web:65536", "web:x", "deploy/web", "ftp://web", "http://", "http://a@b/", "http://a b/", "svc/", "svc/a/b", "http://%zz/"} {
		if got, err := ParseCall(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestAuthority(t *testing.T) {
	for _, tt := range []struct{ to, called, want string }{
		{"web", "10.96.0.1:80", "web"}, {"web.shop", "10.96.0.1:8080", "web.shop:8080"}, {"svc/web.shop", "10.96.0.1:80", "web.shop"},
		{"pod/web-0:8080", "10.0.0.1:8080", "10.0.0.1:8080"}, {"fd00::1", "[fd00::1]:80", "[fd00::1]"}, {"[fd00::1]:81", "[fd00::1]:81", "[fd00::1]:81"},
	} {
		c, err := ParseCall(tt.to)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.authority(netip.MustParseAddrPort(tt.called)); got != tt.want {
			t.Errorf("%s at %s: %q, want %q", tt.to, tt.called, got, tt.want)
		}
	}
}

// fake answers from a list, and notes what it was asked.
type fake struct {
	answers []*verdict.Verdict
	errs    []error
	asked   []string
}

func (f *fake) next(at string, q verdict.Question) (*verdict.Verdict, string, error) {
	i := len(f.asked)
	f.asked = append(f.asked, at+" "+q.Values().Encode())
	if i < len(f.errs) && f.errs[i] != nil {
		return nil, "", f.errs[i]
	}
	return f.answers[min(i, len(f.answers)-1)], at, nil
}

func (f *fake) Node(_ context.Context, node string, q verdict.Question) (*verdict.Verdict, string, error) {
	return f.next("ztunnel/"+node, q)
}

func (f *fake) Waypoint(_ context.Context, namespace, name string, q verdict.Question) (*verdict.Verdict, string, error) {
	return f.next("waypoint "+namespace+"/"+name, q)
}

func client(next *verdict.Next) *verdict.Verdict {
	v := verdict.New(verdict.RoleClient)
	v.Called, v.Captured, v.Next = netip.MustParseAddrPort("10.96.0.1:80"), true, next
	v.Steps = []verdict.Step{{Step: verdict.StepCapture, Object: "Pod shop/client", Says: "the pod is in the mesh"}}
	return v
}

func waypoint(next *verdict.Next) *verdict.Verdict {
	v := verdict.New(verdict.RoleWaypoint)
	v.HTTP, v.Next = true, next
	for i := range 8 {
		v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Object: fmt.Sprint("AuthorizationPolicy shop/p", i), Says: "DENY does not match"})
	}
	v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Object: "AuthorizationPolicy shop/readers", Rule: "rule 2", Says: "ALLOW matches", Decides: true})
	return v
}

func destination() *verdict.Verdict {
	v := verdict.New(verdict.RoleDestination)
	v.Next = &verdict.Next{To: verdict.ToProgram, Namespace: "shop", Name: "web", Authority: "10.0.0.2:8080"}
	v.Steps = []verdict.Step{{Step: verdict.StepPolicy, Says: "no policy refuses", Decides: true}}
	return v
}

var (
	toWaypoint = &verdict.Next{
		To: verdict.ToWaypoint, Namespace: "shop", Name: "wp-1", Node: "n2", UID: "c//Pod/shop/wp-1", Tunnel: true, Authority: "10.96.0.1:80",
		Identity: "spiffe://td/ns/shop/sa/client", Source: "10.0.0.1", Host: "web.shop.svc",
	}
	toPod = &verdict.Next{
		To: verdict.ToPod, Namespace: "shop", Name: "web", Node: "n2", UID: "c//Pod/shop/web", Tunnel: true, Authority: "10.0.0.2:8080",
		Identity: "spiffe://td/ns/shop/sa/wp", Source: "10.0.0.9", Host: "web.shop.svc",
	}
)

// TestFollow: each proxy is asked about what the one before passes on.
func TestFollow(t *testing.T) {
	c, err := ParseCall("http://web/a?b")
	if err != nil {
		t.Fatal(err)
	}
	c.Method, c.Headers = "PUT", []verdict.Header{{Name: "x-a", Value: "1"}}
	f := &fake{answers: []*verdict.Verdict{client(toWaypoint), waypoint(toPod), destination()}}
	r, err := Follow(t.Context(), f, Pod{"shop", "client", "n1"}, c)
	if err != nil || !r.Allowed || r.Reason != "OK" || len(r.Hops) != 3 {
		t.Fatalf("%+v, error %v", r, err)
	}
	want := []string{
		"ztunnel/n1 direction=outbound&pod=shop%2Fclient&to=web%3A80",
		"waypoint shop/wp-1 authority=10.96.0.1%3A80&header=x-a%3A1&host=web&http=true&identity=spiffe%3A%2F%2Ftd%2Fns%2Fshop%2Fsa%2Fclient&method=PUT&path=%2Fa%3Fb&service=web.shop.svc&source=10.0.0.1&tunnel=true",
		"ztunnel/n2 authority=10.0.0.2%3A8080&direction=inbound&identity=spiffe%3A%2F%2Ftd%2Fns%2Fshop%2Fsa%2Fwp&pod=shop%2Fweb&service=web.shop.svc&source=10.0.0.9&tunnel=true",
	}
	for i, got := range f.asked {
		if got != want[i] {
			t.Errorf("asked %s\nwant  %s", got, want[i])
		}
	}
	golden(t, "allowed.txt", r.Text())
}

// TestFollowChain: a second waypoint is asked about the request as the first one sends it,
// and about how many waypoints there were. The report has no copy of the request.
func TestFollowChain(t *testing.T) {
	c, err := ParseCall("http://web/a")
	if err != nil {
		t.Fatal(err)
	}
	second := *toWaypoint
	second.Name, second.Authority, second.Identity, second.Hops = "wp-2", "10.96.0.2:80", "spiffe://td/ns/shop/sa/wp", 1
	second.Request = &verdict.Request{Method: "PUT", Host: "inner", Path: "/b", Headers: []verdict.Header{{Name: "authorization", Value: "Bearer x"}}}
	f := &fake{answers: []*verdict.Verdict{client(toWaypoint), waypoint(&second), waypoint(toPod), destination()}}
	r, err := Follow(t.Context(), f, Pod{"shop", "client", "n1"}, c)
	if err != nil || !r.Allowed || len(r.Hops) != 4 {
		t.Fatalf("%+v, error %v", r, err)
	}
	if want := "waypoint shop/wp-2 authority=10.96.0.2%3A80&header=authorization%3ABearer+x&hops=1&host=inner&http=true&identity=spiffe%3A%2F%2Ftd%2Fns%2Fshop%2Fsa%2Fwp&method=PUT&path=%2Fb&service=web.shop.svc&source=10.0.0.1&tunnel=true"; f.asked[2] != want {
		t.Errorf("asked %s\nwant  %s", f.asked[2], want)
	}
	if b, err := json.Marshal(r); err != nil || strings.Contains(string(b), "Bearer") {
		t.Errorf("%s, error %v", b, err)
	}
	// A connection without HTTP stays one.
	plain := *toWaypoint
	plain.Hops = 1
	f = &fake{answers: []*verdict.Verdict{client(toWaypoint), waypoint(&plain), waypoint(toPod), destination()}}
	if _, err := Follow(t.Context(), f, Pod{"shop", "client", "n1"}, Call{Name: "web", TCP: true, SNI: "a.b"}); err != nil || !strings.Contains(f.asked[2], "http=false") || !strings.Contains(f.asked[2], "sni=a.b") {
		t.Errorf("asked %v, error %v", f.asked, err)
	}
}

func TestFollowEnds(t *testing.T) {
	refused := destination().Refuse(reason.Errorf(reason.PolicyDenied, "by \x1b[31mred"))
	refused.Steps[0].Decides = true
	plain := *toPod
	plain.Tunnel = false
	outside := *toPod
	outside.Node, outside.UID = "", "c/networking.istio.io/ServiceEntry/shop/web/0"
	for _, tt := range []struct {
		name string
		f    fake
		hops int
		why  reason.Reason
		text string
	}{
		{"refused by the destination", fake{answers: []*verdict.Verdict{client(toPod), refused}}, 2, reason.PolicyDenied, `refused by ztunnel/n2: POLICY_DENIED: explicitly denied by a policy: by \x1b[31mred`},
		{"outside the mesh", fake{answers: []*verdict.Verdict{client(&verdict.Next{To: verdict.ToOutside, Authority: "192.0.2.1:80"})}}, 1, reason.OK, "allowed: it leaves the mesh, to 192.0.2.1:80"},
		{"a workload that is no pod", fake{answers: []*verdict.Verdict{client(&outside)}}, 1, reason.OK, "allowed: it leaves the mesh, to 10.0.0.2:8080"},
		{"a node without a proxy", fake{answers: []*verdict.Verdict{client(toPod)}, errs: []error{nil, fmt.Errorf("%w: x", ErrNoProxy)}}, 2, reason.ConnectFailure, "no node proxy runs on node n2"},
		{"in plaintext to such a node", fake{answers: []*verdict.Verdict{client(&plain)}, errs: []error{nil, ErrNoProxy}}, 2, reason.OK, "allowed: pod shop/web gets it on 10.0.0.2:8080"},
	} {
		r, err := Follow(t.Context(), &tt.f, Pod{"shop", "client", "n1"}, Call{Name: "web", Port: 80})
		if err != nil || len(r.Hops) != tt.hops || r.Reason != tt.why.String() || r.Allowed != (tt.why == reason.OK) {
			t.Errorf("%s: %+v, error %v", tt.name, r, err)
			continue
		}
		if text := r.Text(); !strings.Contains(text, tt.text) || strings.Contains(text, "\x1b") {
			t.Errorf("%s: %q", tt.name, text)
		}
		if got, _ := r.Info(); got != tt.why {
			t.Errorf("%s: reason %v", tt.name, got)
		}
	}
	loop := &fake{answers: []*verdict.Verdict{client(toWaypoint), waypoint(toWaypoint)}}
	if r, err := Follow(t.Context(), loop, Pod{"shop", "client", "n1"}, Call{Name: "web"}); err == nil || len(loop.asked) != maxHops {
		t.Errorf("a loop: %+v, error %v", r, err)
	}
	for i := range 3 {
		f := fake{answers: []*verdict.Verdict{client(toWaypoint), waypoint(toPod), destination()}, errs: make([]error, 3)}
		f.errs[i] = errors.New("broken")
		if _, err := Follow(t.Context(), &f, Pod{"shop", "client", "n1"}, Call{Name: "web"}); err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("error %v", err)
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	path := "testdata/" + file
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
