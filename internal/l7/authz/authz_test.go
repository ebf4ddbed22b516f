package authz

import (
	"fmt"
	"net/netip"
	"net/url"
	pathpkg "path"
	"strings"
	"testing"

	"pgregory.net/rapid"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	securitypb "github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

const (
	allowing = authzpb.Action_ALLOW
	denying  = authzpb.Action_DENY
	auditing = authzpb.Action_AUDIT
)

func hosts(v ...string) *authzpb.Match {
	m := &authzpb.Match{}
	for _, s := range v {
		m.Hosts = append(m.Hosts, text(s))
	}
	return m
}

func methods(v ...string) *authzpb.Match {
	m := &authzpb.Match{}
	for _, s := range v {
		m.Methods = append(m.Methods, text(s))
	}
	return m
}

func atPaths(v ...string) *authzpb.Match {
	m := &authzpb.Match{}
	for _, s := range v {
		m.Paths = append(m.Paths, pathMatch(s))
	}
	return m
}

func notPaths(v ...string) *authzpb.Match { return &authzpb.Match{NotPaths: atPaths(v...).Paths} }

func withHeader(name string, v ...string) *authzpb.Match {
	h := &authzpb.HeaderMatch{Name: name}
	for _, s := range v {
		h.Values = append(h.Values, text(s))
	}
	return &authzpb.Match{Headers: []*authzpb.HeaderMatch{h}}
}

func withoutHeader(name string, v ...string) *authzpb.Match {
	m := withHeader(name, v...)
	m.Headers[0].Values, m.Headers[0].NotValues = nil, m.Headers[0].Values
	return m
}

// TestRequests: what one policy says about one request.
func TestRequests(t *testing.T) {
	for name, tt := range map[string]struct {
		action  authzpb.Action
		match   *authzpb.Match
		request *request
		refused bool
	}{
		// Hosts: without regard to case. One that is denied is denied on every port.
		"a host":                          {allowing, hosts("a.com"), from("GET", "a.com", "/"), false},
		"in another case":                 {allowing, hosts("A.com"), from("GET", "a.COM", "/"), false},
		"a host with a port":              {allowing, hosts("a.com"), from("GET", "a.com:80", "/"), true},
		"with a port as it is written":    {allowing, hosts("a.com", "a.com:*"), from("GET", "a.com:80", "/"), false},
		"another host":                    {allowing, hosts("a.com"), from("GET", "b.com", "/"), true},
		"a denied host":                   {denying, hosts("a.com"), from("GET", "a.com", "/"), true},
		"a denied host, in another case":  {denying, hosts("a.com"), from("GET", "A.Com", "/"), true},
		"a denied host with a port":       {denying, hosts("a.com"), from("GET", "a.com:8080", "/"), true},
		"a denied host with a dot":        {denying, hosts("a.com"), from("GET", "a.com.", "/"), true},
		"a denied host with both":         {denying, hosts("a.com"), from("GET", "A.com.:80", "/"), true},
		"below a denied host":             {denying, hosts("*.a.com"), from("GET", "x.a.com:80", "/"), true},
		"no denied host":                  {denying, hosts("a.com"), from("GET", "xa.com", "/"), false},
		"any host, denied, without one":   {denying, hosts("*"), from("GET", "", "/"), true},
		"any host, allowed, without one":  {allowing, hosts("*"), from("GET", "", "/"), true},
		"the host as a header":            {allowing, withHeader("Host", "a.com"), from("GET", "A.com", "/"), false},
		"denied by the host as a header":  {denying, withHeader("host", "a.com"), from("GET", "a.com:80", "/"), true},
		"denied by all hosts but one":     {denying, &authzpb.Match{NotHosts: hosts("a.com").Hosts}, from("GET", "a.com:80", "/"), true},
		"not denied by all hosts but one": {denying, &authzpb.Match{NotHosts: hosts("a.com").Hosts}, from("GET", "A.com", "/"), false},
		// Methods: with regard to case where it allows, without where it denies.
		"a method":                    {allowing, methods("GET"), from("GET", "a", "/"), false},
		"an allowed method, in case":  {allowing, methods("GET"), from("get", "a", "/"), true},
		"a denied method, in case":    {denying, methods("DELETE"), from("DeLeTe", "a", "/"), true},
		"a denied method, written so": {denying, methods("delete"), from("DELETE", "a", "/"), true},
		"another method":              {denying, methods("DELETE"), from("DELETED", "a", "/"), false},
		"an excepted method, in case": {allowing, &authzpb.Match{NotMethods: methods("DELETE").Methods}, from("delete", "a", "/"), true},
		// Paths.
		"a path":                           {allowing, atPaths("/a"), from("GET", "a", "/a"), false},
		"with a query":                     {allowing, atPaths("/a"), from("GET", "a", "/a?b"), false},
		"a query is no path":               {allowing, atPaths("*/b"), from("GET", "a", "/a?/b"), true},
		"a path in another case":           {allowing, atPaths("/a"), from("GET", "a", "/A"), true},
		"a prefix":                         {allowing, atPaths("/a/*"), from("GET", "a", "/a/b/c"), false},
		"a suffix":                         {allowing, atPaths("*/c"), from("GET", "a", "/a/b/c"), false},
		"a path below":                     {allowing, atPaths("/a"), from("GET", "a", "/a/b"), true},
		"every path":                       {allowing, atPaths("*"), from("GET", "a", "/"), false},
		"no path":                          {allowing, atPaths("*"), from("CONNECT", "a:1", ""), true},
		"every path, denied":               {denying, atPaths("*"), from("CONNECT", "a:1", ""), true},
		"* of OPTIONS":                     {denying, atPaths("/*"), from("OPTIONS", "a", "*"), false},
		"gRPC":                             {allowing, atPaths("/pkg.Service/Method"), from("POST", "a", "/pkg.Service/Method"), false},
		"denied, with a slash at the end":  {denying, atPaths("/a"), from("GET", "a", "/a/"), true},
		"allowed, with a slash at the end": {allowing, atPaths("/a"), from("GET", "a", "/a/"), true},
		"denied, with reserved characters": {denying, atPaths("/a:b"), from("GET", "a", "/a%3Ab"), true},
		"denied, with escapes written so":  {denying, atPaths("/caf%C3%A9"), from("GET", "a", "/caf%c3%a9"), true},
		"denied, with text written so":     {denying, atPaths("/café"), from("GET", "a", "/caf%c3%a9"), true},
		"denied below, with a slash":       {denying, atPaths("/admin/*"), from("GET", "a", "/x%2F..%2Fadmin%2Fy"), true},
		"allowed below, with a slash":      {allowing, atPaths("/public/*"), from("GET", "a", "/public/..%2Fadmin"), true},
		"allowed below, double encoded":    {allowing, atPaths("/public/*"), from("GET", "a", "/public/..%252Fadmin"), true},
		"excepted from what is denied":     {denying, notPaths("/public/*"), from("GET", "a", "/public/..%2Fadmin"), true},
		// Templates: the examples of Istio's pages.
		"{*} is a segment":           {allowing, atPaths("/foo/{*}"), from("GET", "a", "/foo/bar"), false},
		"{*} is one segment":         {allowing, atPaths("/foo/{*}"), from("GET", "a", "/foo/bar/baz"), true},
		"{*} is no empty segment":    {allowing, atPaths("/foo/{*}"), from("GET", "a", "/foo/"), true},
		"{**} and a slash":           {allowing, atPaths("/foo/{**}/"), from("GET", "a", "/foo/bar/"), false},
		"{**} and a slash, none":     {allowing, atPaths("/foo/{**}/"), from("GET", "a", "/foo/bar"), true},
		"{**} and a slash, denied":   {denying, atPaths("/foo/{**}/"), from("GET", "a", "/foo/bar/baz.txt"), true},
		"both":                       {allowing, atPaths("/foo/{*}/bar/{**}"), from("GET", "a", "/foo/buzz/bar/baz"), false},
		"both, and nothing more":     {allowing, atPaths("/foo/{*}/bar/{**}"), from("GET", "a", "/foo/buzz/bar/"), false},
		"{**} before a segment":      {allowing, atPaths("/{**}/users"), from("GET", "a", "/v1/x/users"), false},
		"{**}, denied, as none":      {denying, atPaths("/{**}/users"), from("GET", "a", "/users"), true},
		"{**}, denied, without more": {denying, atPaths("/foo/{**}"), from("GET", "a", "/foo"), true},
		"{*}, denied, with escapes":  {denying, atPaths("/foo/{*}/b:r"), from("GET", "a", "/foo/x/b%3ar"), true},
		// Headers: lines of a name are one value.
		"a header":                           {allowing, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "x"), false},
		"no header":                          {allowing, withHeader("x-a", "x"), from("GET", "a", "/"), true},
		"a header with another value":        {allowing, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "X"), true},
		"a header that is there":             {allowing, withHeader("x-a", "*"), from("GET", "a", "/", "X-A", "x"), false},
		"an empty header is not there":       {allowing, withHeader("x-a", "*"), from("GET", "a", "/", "X-A", ""), true},
		"a denied header, empty":             {denying, withHeader("x-a", "*"), from("GET", "a", "/", "X-A", ""), true},
		"a header twice":                     {allowing, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "x", "x-a", "x"), true},
		"a header twice, written so":         {allowing, withHeader("x-a", "x,x"), from("GET", "a", "/", "X-A", "x", "x-a", "x"), true},
		"a prefix, and then another":         {allowing, withHeader("x-a", "x*"), from("GET", "a", "/", "X-A", "x1", "x-a", "evil"), true},
		"denied as the first line":           {denying, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "x", "x-a", "y"), true},
		"denied as the last line":            {denying, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "y", "x-a", "x"), true},
		"denied in a list":                   {denying, withHeader("x-a", "x"), from("GET", "a", "/", "X-A", "y, x"), true},
		"denied as lines together":           {denying, withHeader("x-a", "x,y"), from("GET", "a", "/", "X-A", "x", "x-a", "y"), true},
		"denied as lines together, parted":   {denying, withHeader("x-a", "x,y"), from("GET", "a", "/", "X-A", "x", "x_a", "x", "x-a", "y"), true},
		"denied with an underscore":          {denying, withHeader("x-a", "x"), from("GET", "a", "/", "X_A", "x"), true},
		"allowed with an underscore":         {allowing, withHeader("x-a", "x"), from("GET", "a", "/", "X_A", "x"), true},
		"allowed beside another":             {allowing, withHeader("x-a", "x"), from("GET", "a", "/", "X_A", "y", "X-A", "x"), true},
		"allowed beside its like":            {allowing, withHeader("x-a", "x*"), from("GET", "a", "/", "X_A", "x1", "X-A", "x2"), false},
		"a denied crumb":                     {denying, withHeader("cookie", "a=1; b=2"), from("GET", "a", "/", "cookie", "a=1", "cookie", "b=2"), true},
		"a denied cookie among others":       {denying, withHeader("cookie", "b=2"), from("GET", "a", "/", "cookie", "a=1; b=2"), true},
		"allowed without a header":           {allowing, withoutHeader("x-a", "x"), from("GET", "a", "/"), false},
		"an exception in a list":             {allowing, withoutHeader("x-a", "x"), from("GET", "a", "/", "x-a", "y,x"), true},
		"denied unless a header says so":     {denying, withoutHeader("x-a", "x"), from("GET", "a", "/"), true},
		"denied unless it says so only":      {denying, withoutHeader("x-a", "x"), from("GET", "a", "/", "x-a", "x", "x-a", "y"), true},
		"not denied, since a header says so": {denying, withoutHeader("x-a", "x"), from("GET", "a", "/", "x-a", "x"), false},
		// The server name of TLS.
		"a server name is in no request": {allowing, &authzpb.Match{ServerNames: methods("a").Methods}, from("GET", "a", "/"), true},
		"another than a denied one":      {denying, &authzpb.Match{ServerNames: methods("a").Methods}, from("GET", "a", "/"), false},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.request.judge(t, policy(tt.action, tt.match))
			if (err != nil) != tt.refused {
				t.Fatal(err)
			}
			switch {
			case err != nil && tt.action == denying && (err.Reason != reason.PolicyDenied || err.Detail != "shop/p, rule 3"):
				t.Error(err)
			case err != nil && tt.action == allowing && err.Reason != reason.NotAllowed:
				t.Error(err)
			}
		})
	}
}

// TestConnections: a connection without HTTP is judged by what it has. What it has not
// allows nothing and denies.
func TestConnections(t *testing.T) {
	ns := func(v string) *authzpb.Match {
		return &authzpb.Match{Connection: []*securitypb.Match{{Namespaces: []*securitypb.StringMatch{text(v)}}}}
	}
	to := func(a string) *authzpb.Match {
		ip := netip.MustParseAddr(a)
		return &authzpb.Match{Connection: []*securitypb.Match{{DestinationIps: []*securitypb.Address{{Address: ip.AsSlice(), Length: uint32(ip.BitLen())}}}}}
	}
	for name, tt := range map[string]struct {
		policy  *authzpb.Policy
		named   bool // the client has called a name, not an address
		refused bool
	}{
		"its namespace":                       {policy(allowing, ns("shop")), false, false},
		"its namespace, in lower half":        {policy(allowing, ns("web")), false, true},
		"an allowed path":                     {policy(allowing, atPaths("*")), false, true},
		"a denied path":                       {policy(denying, atPaths("/a")), false, true},
		"a denied path of another namespace":  {policy(denying, ns("web"), atPaths("/a")), false, false},
		"a denied path of this namespace":     {policy(denying, ns("shop"), atPaths("/a")), false, true},
		"a denied server name":                {policy(denying, &authzpb.Match{ServerNames: methods("a").Methods}), false, true},
		"an allowed server name":              {policy(allowing, &authzpb.Match{ServerNames: methods("a").Methods}), false, true},
		"its destination":                     {policy(allowing, to("10.9.0.1")), false, false},
		"another destination":                 {policy(denying, to("10.9.0.2")), false, false},
		"an allowed destination, by its name": {policy(allowing, to("10.9.0.1")), true, true},
		"a denied destination, by its name":   {policy(denying, to("10.9.0.2")), true, true},
		"everything":                          {policy(allowing), false, false},
		"nothing":                             {&authzpb.Policy{Namespace: "shop", Name: "p", Action: allowing, Everything: true}, false, true},
		"denied nothing":                      {&authzpb.Policy{Namespace: "shop", Name: "p", Action: denying, Everything: true}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := from("", "", "")
			r.tcp = true
			if tt.named {
				r.conn.Dst = netip.AddrPortFrom(netip.Addr{}, 80)
			}
			if err := r.judge(t, tt.policy); (err != nil) != tt.refused {
				t.Error(err)
			}
		})
	}
}

// TestTrial: what is under trial is reported, and decides nothing.
func TestTrial(t *testing.T) {
	trial := func(p *authzpb.Policy) *authzpb.Policy { p.DryRun = true; return p }
	for name, tt := range map[string]struct {
		policies []*authzpb.Policy
		notes    string
		refused  bool
	}{
		"a denial":                  {[]*authzpb.Policy{trial(policy(denying))}, "[{shop/p would_deny}]", false},
		"no denial":                 {[]*authzpb.Policy{trial(policy(denying, methods("POST")))}, "[]", false},
		"an ALLOW":                  {[]*authzpb.Policy{trial(policy(allowing))}, "[{shop/p would_allow}]", false},
		"an ALLOW that fits not":    {[]*authzpb.Policy{trial(policy(allowing, methods("POST")))}, "[{ would_allow_none}]", false},
		"beside one in force":       {[]*authzpb.Policy{trial(policy(allowing)), policy(allowing, methods("POST"))}, "[{shop/p would_allow}]", true},
		"an audit":                  {[]*authzpb.Policy{policy(auditing)}, "[{shop/p audited}]", false},
		"an audit of another":       {[]*authzpb.Policy{policy(auditing, methods("POST"))}, "[]", false},
		"an audit of what's denied": {[]*authzpb.Policy{policy(auditing), policy(denying)}, "[{shop/p audited}]", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := from("GET", "a", "/")
			if err := r.judge(t, tt.policies...); (err != nil) != tt.refused || fmt.Sprint(r.notes) != tt.notes {
				t.Errorf("%v, %v", err, r.notes)
			}
		})
	}
}

// TestPod: at the address of a pod, policies of every service that it backs count.
func TestPod(t *testing.T) {
	forOther := policy(denying, methods("POST"))
	forOther.Services[0].Hostname, forOther.Name = other.Hostname, "q"
	both := []*authzpb.Policy{policy(denying, methods("GET")), forOther}
	for name, tt := range map[string]struct {
		services []Service
		want     string // methods that are allowed
	}{"one": {[]Service{web}, "POST PUT"}, "the other": {[]Service{other}, "GET PUT"}, "both": {[]Service{web, other}, "PUT"}, "none": {nil, "GET POST PUT"}} {
		var allowed []string
		for _, m := range []string{"GET", "POST", "PUT"} {
			r := from(m, "a", "/")
			r.services = tt.services
			if r.judge(t, both...) == nil {
				allowed = append(allowed, m)
			}
		}
		if got := strings.Join(allowed, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

var modes = []message.Normalisation{message.Strict, message.None, message.Base, message.MergeSlashes, message.DecodeAndMergeSlashes}

// sent makes a request with this path that was normalised; false when it is refused
// already.
func sent(p string, mode message.Normalisation) (*request, bool) {
	h := &message.Head{Path: []byte(p)}
	if h.NormalisePath(mode) != nil {
		return nil, false
	}
	return from("GET", "a", string(h.Path)), true
}

// encode draws an encoding of a path that some program reads as the path.
func encode(t *rapid.T, p string) string {
	var b strings.Builder
	for i := range len(p) {
		c := p[i]
		switch how := rapid.IntRange(0, 9).Draw(t, "how"); {
		case c == '/' && how == 0 && i > 0:
			b.WriteString("//")
		case c == '/' && how == 1:
			b.WriteString("/./")
		case c == '/' && how == 2:
			b.WriteString("/x/../")
		case c == '/' && how == 3 && i > 0:
			b.WriteString(`\`)
		case c == '/' && how == 4 && i > 0:
			b.WriteString(";v=1/")
		case how == 5 && i > 0:
			fmt.Fprintf(&b, "%%%02x", c)
		case how == 6 && i > 0:
			fmt.Fprintf(&b, "%%25%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "end") == 0 {
		b.WriteString(";x")
	}
	return b.String()
}

// TestEncodings: no encoding of a denied path is allowed, and none makes another path
// allowed.
func TestEncodings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom([]string{"/admin", "/admin/users", "/a:b/c", "/admin/", "/x.y"}).Draw(t, "path")
		r, ok := sent(encode(t, p), rapid.SampledFrom(modes).Draw(t, "mode"))
		if !ok {
			return
		}
		for _, pattern := range []string{p, p[:len(p)-1] + "*", "*" + p[1:]} {
			if r.judge(t, policy(denying, atPaths(pattern))) == nil {
				t.Fatalf("%s is allowed, and %s is denied", r.path, pattern)
			}
			if r.judge(t, policy(allowing, notPaths(pattern))) == nil {
				t.Fatalf("%s is allowed, and %s is excepted", r.path, pattern)
			}
		}
		if r.judge(t, policy(allowing, atPaths("/public/*"))) == nil {
			t.Fatalf("%s is allowed as if it were public", r.path)
		}
	})
}

// programs are ways in which programs read a path.
var programs = []func(string) string{
	func(p string) string { return p },
	func(p string) string { s, _ := url.PathUnescape(p); return s },
	func(p string) string { s, _ := url.PathUnescape(p); return pathpkg.Clean(s) },
	func(p string) string { s, _ := url.PathUnescape(pathpkg.Clean(p)); return s },
	func(p string) string {
		s, _ := url.PathUnescape(p)
		s, _ = url.PathUnescape(s)
		return pathpkg.Clean(s)
	},
	func(p string) string {
		s, _ := url.PathUnescape(p)
		return pathpkg.Clean(strings.ReplaceAll(s, `\`, "/"))
	},
	func(p string) string { // parameters first
		segments := strings.Split(p, "/")
		for i := range segments {
			segments[i], _, _ = strings.Cut(segments[i], ";")
		}
		s, _ := url.PathUnescape(strings.Join(segments, "/"))
		return pathpkg.Clean(s)
	},
	func(p string) string { // between two times of decoding, with backslashes as slashes
		s, _ := url.PathUnescape(p)
		segments := strings.Split(strings.ReplaceAll(s, `\`, "/"), "/")
		for i := range segments {
			segments[i], _, _ = strings.Cut(segments[i], ";")
		}
		s, _ = url.PathUnescape(strings.Join(segments, "/"))
		return pathpkg.Clean(s)
	},
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/admin", "/%61dmin", "/x/..%2fadmin", "/admin;x", `/\admin`, "/%2561dmin", "//admin", "/admin/%2e", "/./admin", "/%5cadmin", "/a%", "/%25%36%31dmin", `/admin;\0`, "/admin;%2F0", "/admin%3B%252F0", "/admin;%5c%252525252f"} {
		f.Add(s, uint8(0))
		f.Add(s, uint8(2))
	}
	f.Fuzz(func(t *testing.T, p string, mode uint8) {
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "?") {
			return
		}
		r, ok := sent(p, modes[int(mode)%len(modes)])
		if !ok {
			return
		}
		denied, public := r.judge(t, policy(denying, atPaths("/admin"))) != nil, r.judge(t, policy(allowing, atPaths("/public/*"))) == nil
		for i, read := range programs {
			switch as := read(r.path); {
			case as == "/admin" && !denied:
				t.Errorf("%q is allowed, and program %d reads /admin", r.path, i)
			case public && as != "/public" && !strings.HasPrefix(as, "/public/"):
				t.Errorf("%q is public, and program %d reads %q", r.path, i, as)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	body, err := Encode(policy(denying, atPaths("/a/{*}", "*/b"), withHeader("x", "y"), hosts("a")))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		s := NewStore()
		err := s.Put("g/w/shop/p", body)
		a := NewAccess(from("", "", "").conn, []Service{web}, nil)
		a.Begin(s.Set(), from("GET", "a", "/a/b").head(), nil)
		if refusal := a.Judge(); err != nil && (refusal == nil || refusal.Reason != reason.PolicyUnsupported) {
			t.Errorf("%v, and the request is refused: %v", err, refusal)
		}
	})
}

// TestStore: a Set has what was put and not removed, and shares what has not changed.
func TestStore(t *testing.T) {
	s := NewStore()
	put := func(name string, p *authzpb.Policy) {
		t.Helper()
		body, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(name, body); err != nil {
			t.Fatal(err)
		}
	}
	r := from("GET", "a", "/")
	a := NewAccess(r.conn, r.services, nil)
	check := func(when, want string) {
		t.Helper()
		a.Begin(s.Set(), r.head(), nil)
		if got := fmt.Sprint(a.Judge()); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	check("empty", "<nil>")
	before := s.Set()
	put("g/w/shop/p", policy(denying))
	check("denied", "explicitly denied by a policy: shop/p, rule 3")
	if now, again := s.Set(), s.Set(); before == now || now != again {
		t.Error("a Set is the same as long as nothing changes")
	}
	elsewhere := policy(denying)
	elsewhere.Services[0].Hostname = other.Hostname
	mine := s.Set().services[web]
	put("g/w/shop/p2", elsewhere)
	if s.Set().services[web] != mine {
		t.Error("the policies of a service were compiled again for another's")
	}
	put("g/w/shop/p", elsewhere)
	check("for another service", "<nil>")
	s.Remove("g/w/shop/p")
	s.Remove("g/w/shop/p2")
	if len(s.Set().services) > 0 || len(s.of) > 0 {
		t.Errorf("removed, and left: %v", s.Set().services)
	}
	if err := s.Put("g/w/shop/bad", []byte{1}); err == nil {
		t.Error("no error")
	}
	a.Begin(s.Set(), r.head(), nil)
	if err := a.Judge(); err == nil || err.Reason != reason.PolicyUnsupported || err.Detail != "shop/bad" {
		t.Errorf("by one that cannot be read: %v", err)
	}
	if l := s.Summaries(); len(l) != 1 || l[0].Error == "" || l[0].Policy != "shop/bad" {
		t.Errorf("%+v", l)
	}
	s.Remove("g/w/shop/bad")
	check("in the end", "<nil>")
}

// TestRejected: what a gateway does not have is an error.
func TestRejected(t *testing.T) {
	for name, change := range map[string]func(*authzpb.Policy){
		"no action":         func(p *authzpb.Policy) { p.Action = 0 },
		"another action":    func(p *authzpb.Policy) { p.Action = 9 },
		"no name":           func(p *authzpb.Policy) { p.Name = "" },
		"for nothing":       func(p *authzpb.Policy) { p.Services = nil },
		"for both":          func(p *authzpb.Policy) { p.Everything = true },
		"upper case":        func(p *authzpb.Policy) { p.Services[0].Hostname = "A" },
		"an empty match":    func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0] = &authzpb.Match{} },
		"an empty clause":   func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches = nil },
		"an empty text":     func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0].Methods[0] = &securitypb.StringMatch{} },
		"an empty path":     func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0].Paths = []*authzpb.PathMatch{{}} },
		"a header's name":   func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0] = withHeader("x y", "a") },
		"a header's values": func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0] = withHeader("x") },
		"an empty condition": func(p *authzpb.Policy) {
			p.Rules[0].Clauses[0].Matches[0].Connection = []*securitypb.Match{{}}
		},
		"a template": func(p *authzpb.Policy) { p.Rules[0].Clauses[0].Matches[0] = atPaths("/a/{*}.txt") },
		"a field":    func(p *authzpb.Policy) { p.ProtoReflect().SetUnknown([]byte{0xa0, 0x06, 1}) },
	} {
		p := policy(denying, methods("GET"))
		change(p)
		if _, err := Encode(p); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, s := range []string{"/*/baz/{*}", "/**/baz/{*}", "/{**}/foo/{*}", "/foo/{*}.txt", "/foo/{**}/{**}", "{*}", "/a/{}/{*}", "/a//{*}"} {
		if CheckTemplate(s) == nil {
			t.Errorf("%s is no template", s)
		}
	}
}

// TestNoAllocation: a decision costs no memory once the buffers have grown.
func TestNoAllocation(t *testing.T) {
	s := NewStore()
	for i, p := range []*authzpb.Policy{
		policy(denying, atPaths("/admin", "/x/{*}/y", "*/z"), withHeader("x-a", "b", "c*"), hosts("*.evil.com")), policy(allowing, methods("GET", "POST"), withHeader("x-a", "a*")), policy(denying, notPaths("/*")),
	} {
		body, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(fmt.Sprint(i), body); err != nil {
			t.Fatal(err)
		}
	}
	r := from("GET", "a.com:80", "/a%3Ab/c", "x-a", "a1", "x-a", "a2")
	h, set := r.head(), s.Set()
	a := NewAccess(r.conn, r.services, nil)
	var err *reason.Error
	if n := testing.AllocsPerRun(100, func() {
		if !a.Begin(set, h, nil) {
			t.Error("no policies")
		}
		err = a.Judge()
	}); n > 0 || err != nil {
		t.Errorf("%v allocations, %v", n, err)
	}
}
