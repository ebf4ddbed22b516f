package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

// transcript drives a session by lines. Lines that begin with a word are the
// world's acts:
//
//	sub A name,name -name known=name:version   a request of type A
//	ack A NONCE, nack A NONCE text
//	set A name=version[|alias|alias|+with|@group|!late] …, del A name …, synced A
//
// and lines that begin with > are all that the server says until it is silent:
//
//	> A NONCE name=version … -removed …
func transcript(t *testing.T, s *session, script string) {
	t.Helper()
	for n, line := range strings.Split(strings.TrimSpace(script), "\n") {
		line = strings.TrimSpace(line)
		word, rest, _ := strings.Cut(line, " ")
		typ, rest, _ := strings.Cut(rest, " ")
		args := strings.Fields(rest)
		switch word {
		case "", "#":
		case ">":
			got := "silence"
			if resp := said(s); resp != nil {
				got = render(resp)
			}
			want := strings.TrimSpace(strings.TrimPrefix(line, ">"))
			if got != want {
				t.Fatalf("line %d: the server says %q, want %q", n+1, got, want)
			}
		case "set":
			var set []*Resource
			for _, a := range args {
				name, rest, _ := strings.Cut(a, "=")
				parts := strings.Split(rest, "|")
				r := &Resource{Name: name, Version: parts[0], Body: []byte(parts[0])}
				for _, p := range parts[1:] {
					switch rest := p[1:]; p[0] {
					case '+':
						r.With = append(r.With, rest)
					case '@':
						r.Groups = append(r.Groups, Group(rest))
					case '!':
						r.Late = true
					default:
						r.Aliases = append(r.Aliases, p)
					}
				}
				set = append(set, r)
			}
			s.cache.Update(typ, set, nil)
		case "del":
			s.cache.Update(typ, nil, args)
		case "synced":
			s.cache.MarkSynced(typ)
		default:
			if _, err := hear(s, asked(t, word, typ, args)); err != nil {
				t.Fatalf("line %d: %v", n+1, err)
			}
		}
	}
}

func asked(t *testing.T, word, typ string, args []string) *discovery.DeltaDiscoveryRequest {
	t.Helper()
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: typ}
	switch word {
	case "ack":
		req.ResponseNonce = args[0]
	case "nack":
		req.ResponseNonce = args[0]
		req.ErrorDetail = &rpcstatus.Status{Message: strings.Join(args[1:], " ")}
	case "sub":
		for _, a := range args {
			switch {
			case strings.HasPrefix(a, "known="):
				req.InitialResourceVersions = map[string]string{}
				for _, kv := range strings.Split(strings.TrimPrefix(a, "known="), ",") {
					k, v, _ := strings.Cut(kv, ":")
					req.InitialResourceVersions[k] = v
				}
			case strings.HasPrefix(a, "-"):
				req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, a[1:])
			case strings.HasPrefix(a, "node="):
				req.Node = &core.Node{Id: a[len("node="):]}
			case a == "partial":
				req.Node = &core.Node{ClientFeatures: []string{featurePartial}}
			default:
				req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, a)
			}
		}
	default:
		t.Fatalf("unknown act %q", word)
	}
	return req
}

func render(resp *discovery.DeltaDiscoveryResponse) string {
	parts := []string{resp.TypeUrl, resp.Nonce}
	var res, gone []string
	for _, r := range resp.Resources {
		res = append(res, r.Name+"="+string(r.Resource.Value))
	}
	for _, r := range resp.RemovedResources {
		gone = append(gone, "-"+r)
	}
	slices.Sort(res)
	slices.Sort(gone)
	return strings.Join(slices.Concat(parts, res, gone), " ")
}

func TestSession(t *testing.T) {
	for name, script := range map[string]string{
		"everything": `
			set A x=1 y=1
			synced A
			sub A
			> A 1 x=1 y=1
			ack A 1
			> silence`,
		"nothing before it is complete": `
			set A x=1
			sub A
			> silence
			set A y=1
			synced A
			> A 1 x=1 y=1`,
		"an empty type is answered": `
			synced A
			sub A
			> A 1
			ack A 1
			> silence`,
		"only what changed": `
			set A x=1 y=1
			synced A
			sub A
			> A 1 x=1 y=1
			ack A 1
			set A x=2 y=1
			> A 2 x=2
			ack A 2
			del A y nobody
			> A 3 -y
			ack A 3
			> silence`,
		"changes coalesce while an answer is awaited": `
			set A x=1
			synced A
			sub A
			> A 1 x=1
			set A x=2
			> silence
			set A x=3 y=1
			del A y
			set A z=1
			del A nobody
			ack A 99
			> silence
			ack A 1
			> A 2 x=3 z=1 -y
			ack A 2
			> silence`,
		"a rejection counts as an answer": `
			set A x=1
			synced A
			sub A
			> A 1 x=1
			nack A 1 x: bad
			> silence
			set A x=2
			> A 2 x=2`,
		"back with versions": `
			set A x=1 y=2 new=1
			synced A
			sub A known=x:1,y:1,gone:7
			> A 1 new=1 y=2 -gone
			ack A 1
			> silence`,
		"back with all of it": `
			set A x=1
			synced A
			sub A known=x:1
			> A 1
			ack A 1
			> silence`,
		"types go out one beside the other, the preferred first": `
			set A x=1
			set P p=1
			synced A
			synced P
			sub A
			sub P
			> P 1 p=1
			> A 2 x=1
			> silence
			ack A 2
			ack P 1
			set A x=2
			set P p=2
			> P 3 p=2
			> A 4 x=2`,
		"on demand from nothing": `
			set A x=1|ip1 y=1|ip2
			synced A
			sub A * -*
			> silence
			set A x=2|ip1
			> silence
			sub A ip1
			> A 1 x=2
			ack A 1
			sub A nobody
			> A 2 -nobody
			ack A 2
			set A x=3|ip1 y=2|ip2 nobody=1
			> A 3 nobody=1 x=3
			ack A 3
			del A x y nobody
			> A 4 -nobody -x
			ack A 4
			> silence`,
		"an alias may mean several": `
			set A svc=1|vip pod1=1|vip pod2=1|other
			synced A
			sub A vip
			> A 1 pod1=1 svc=1
			ack A 1
			set A pod2=2|other|vip
			> A 2 pod2=2
			ack A 2
			set A pod1=2|other
			> A 3 pod1=2`,
		"a name asked for before it exists": `
			synced A
			sub A vip
			> A 1 -vip
			ack A 1
			set A pod=1|vip
			> A 2 pod=1`,
		"a name that came to exist meanwhile": `
			set A z=1
			synced A
			sub A z
			> A 1 z=1
			sub A vip
			set A pod=1|vip
			ack A 1
			> A 2 pod=1
			ack A 2
			> silence`,
		"no longer wanted": `
			set A x=1 y=1|ip
			synced A
			sub A x ip
			> A 1 x=1 y=1
			ack A 1
			sub A -x
			set A x=2 y=2|ip
			> A 2 y=2 -x
			ack A 2
			sub A -ip
			> A 3 -y
			ack A 3
			set A x=3 y=3|ip
			del A x y
			> silence`,
		"no longer wanted, and then wanted again": `
			set A x=1
			synced A
			sub A x
			> A 1 x=1
			ack A 1
			sub A -x
			sub A x
			> A 2 x=1
			ack A 2
			set A x=2
			> A 3 x=2`,
		"an alias whose resource goes before the answer": `
			set A b=1|ip
			synced A
			sub A ip
			del A b
			> A 1 -b -ip`,
		"asked again, answered again": `
			set A x=1
			synced A
			sub A x
			> A 1 x=1
			ack A 1
			sub A x
			> A 2 x=1`,
		"back on demand": `
			set A x=1 y=2 z=1
			synced A
			sub A z * -* known=x:1,y:1,gone:1
			> A 1 y=2 z=1 -gone
			ack A 1
			set A x=2
			> A 2 x=2`,
		"from everything to single names": `
			set A x=1 y=1
			synced A
			sub A
			> A 1 x=1 y=1
			ack A 1
			sub A x -*
			> A 2 x=1
			ack A 2
			set A x=2 y=2
			> A 3 x=2`,
		"from single names to everything": `
			set A x=1 y=1
			synced A
			sub A x
			> A 1 x=1
			ack A 1
			sub A *
			> A 2 x=1 y=1
			ack A 2
			set A z=1
			> A 3 z=1`,
		"a type nobody serves": `
			sub C
			> silence`,
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache()
			s := newSession(c, []string{"P"})
			c.join(s)
			transcript(t, s, script)
		})
	}
}

func TestSessionBounds(t *testing.T) {
	c := NewCache()
	s := newSession(c, nil)
	for i := range maxTypes {
		if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "one more"}); err == nil {
		t.Error("types are not bounded")
	}
	if len(c.types) > 0 {
		t.Errorf("clients make up %d types of the cache", len(c.types))
	}
}

// TestPartialResponses: a client that understands them gets a large state in
// parts that are marked, and changes in between are not lost.
func TestPartialResponses(t *testing.T) {
	c := NewCache()
	big := strings.Repeat("x", chunkBytes/4)
	var set []*Resource
	for i := range 10 {
		set = append(set, &Resource{Name: fmt.Sprint("r", i), Version: "1", Body: []byte(big)})
	}
	c.Update("A", set, nil)
	c.MarkSynced("A")
	for _, features := range [][]string{nil, {featurePartial}} {
		s := newSession(c, nil)
		c.join(s)
		if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "A", Node: &core.Node{ClientFeatures: features}}); err != nil {
			t.Fatal(err)
		}
		held := map[string]bool{}
		responses := 0
		for {
			resp := said(s)
			if resp == nil {
				break
			}
			responses++
			for _, r := range resp.Resources {
				held[r.Name] = true
			}
			if last := len(held) == 10; last == (resp.SystemVersionInfo == partialVersion) {
				t.Errorf("response %d with %d held is marked %q", responses, len(held), resp.SystemVersionInfo)
			}
			if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "A", ResponseNonce: resp.Nonce}); err != nil {
				t.Fatal(err)
			}
		}
		if want := 1 + 2*len(features); responses != want || len(held) != 10 {
			t.Errorf("features %v: %d resources in %d responses, want %d", features, len(held), responses, want)
		}
		c.leave(s)
	}
}

// TestSessionConverges: whatever changes and however the client is slow, loses
// its connection or follows single names, in the end it holds what the cache
// holds of what it follows, and no version was sent twice on a connection
// without need.
func TestSessionConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		c.MarkSynced("A")
		wildcard := rapid.Bool().Draw(t, "wildcard")
		demands := map[string]bool{}
		held := map[string]string{}
		var s *session
		var inFlight *discovery.DeltaDiscoveryResponse
		connect := func() {
			if s != nil {
				c.leave(s)
			}
			s, inFlight = newSession(c, nil), nil
			c.join(s)
			req := &discovery.DeltaDiscoveryRequest{TypeUrl: "A", InitialResourceVersions: maps.Clone(held)}
			if !wildcard {
				req.ResourceNamesSubscribe = append(slices.Sorted(maps.Keys(demands)), Wildcard)
				req.ResourceNamesUnsubscribe = []string{Wildcard}
			}
			if _, err := hear(s, req); err != nil {
				t.Fatal(err)
			}
		}
		take := func() bool {
			if inFlight == nil {
				inFlight = said(s)
			}
			if inFlight == nil {
				return false
			}
			for _, r := range inFlight.Resources {
				held[r.Name] = r.Version
			}
			for _, n := range inFlight.RemovedResources {
				delete(held, n)
			}
			if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "A", ResponseNonce: inFlight.Nonce}); err != nil {
				t.Fatal(err)
			}
			inFlight = nil
			return true
		}
		connect()
		name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		for i := range rapid.IntRange(1, 40).Draw(t, "acts") {
			switch rapid.IntRange(0, 7).Draw(t, "act") {
			case 0, 1, 2:
				c.Update("A", []*Resource{{Name: name.Draw(t, "set"), Version: fmt.Sprint(i)}}, nil)
			case 3:
				c.Update("A", nil, []string{name.Draw(t, "del")})
			case 4:
				take()
			case 5:
				if inFlight == nil {
					inFlight = said(s)
				}
			case 6:
				connect()
			case 7:
				if !wildcard {
					n := name.Draw(t, "demand")
					demands[n] = true
					if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "A", ResourceNamesSubscribe: []string{n}}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for take() {
		}
		want := map[string]string{}
		for _, r := range c.Resources("A") {
			if wildcard || demands[r.Name] {
				want[r.Name] = r.Version
			}
		}
		if !maps.Equal(held, want) {
			t.Fatalf("client holds %v, want %v", held, want)
		}
	})
}

func FuzzSessionRequest(f *testing.F) {
	f.Add("A", "x,*", "y", "1", "x:1")
	f.Fuzz(func(t *testing.T, typ, sub, unsub, nonce, known string) {
		c := NewCache()
		c.Update("A", []*Resource{{Name: "x", Version: "1", Aliases: []string{"y"}}}, nil)
		c.MarkSynced("A")
		s := newSession(c, nil)
		c.join(s)
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: strings.Split(sub, ","),
			ResourceNamesUnsubscribe: strings.Split(unsub, ","), ResponseNonce: nonce, InitialResourceVersions: map[string]string{known: nonce}}
		for range 3 {
			_, _ = hear(s, req)
			if resp := said(s); resp != nil {
				req.ResponseNonce = resp.Nonce
			}
		}
		c.Update("A", nil, []string{"x"})
		s.next()
		s.status()
	})
}

// hear has a session hear a request, as a client sends it.
func hear(s *session, req *discovery.DeltaDiscoveryRequest) (rejected string, err error) {
	msg, err := proto.Marshal(req)
	if err != nil {
		return "", err
	}
	r := new(request)
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(msg)}, r); err != nil {
		return "", err
	}
	return s.request(r)
}

// said is what a session says next, as a client reads it; nil for nothing.
func said(s *session) *discovery.DeltaDiscoveryResponse {
	r := s.next()
	if r == nil {
		return nil
	}
	resp := new(discovery.DeltaDiscoveryResponse)
	if err := newCodec().Unmarshal(r.wire(), resp); err != nil {
		panic(err)
	}
	return resp
}

func anyOf(typ, body string) *anypb.Any { return &anypb.Any{TypeUrl: typ, Value: []byte(body)} }
