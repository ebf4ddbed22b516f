package xds

import (
	"fmt"
	"maps"
	"runtime"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestReply: what is put together by hand is what protobuf would make of it.
func TestReply(t *testing.T) {
	a := NewResource(typeA, "a", []string{"1.2.3.4", "five"}, []byte("body"))
	b := (&Resource{Name: "b", Version: "7"}).sealed(typeA)
	if a.Version != VersionOf([]byte("body")) || string(a.Body) != "body" || b.Version != "7" {
		t.Errorf("%+v, %+v", a, b)
	}
	r := &reply{typeURL: typeA, nonce: "3", partial: true, removed: []string{"gone", "too"}}
	r.grow(1)
	r.add(a)
	r.add(b)
	wire, err := newCodec().Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(wire.Materialize(), &got); err != nil {
		t.Fatal(err)
	}
	want := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: partialVersion, TypeUrl: typeA, Nonce: "3", ControlPlane: &core.ControlPlane{Identifier: "ambitd"}, RemovedResources: []string{"gone", "too"},
		Resources: []*discovery.Resource{
			{Name: "a", Version: a.Version, Aliases: a.Aliases, Resource: &anypb.Any{TypeUrl: typeA, Value: []byte("body")}},
			{Name: "b", Version: "7", Resource: &anypb.Any{TypeUrl: typeA}},
		},
	}
	if !proto.Equal(want, &got) {
		t.Errorf("%v\nwant %v", &got, want)
	}
	if r.resources() != 2 || r.bytes != 4 {
		t.Errorf("%d resources, %d bytes", r.resources(), r.bytes)
	}
}

// FuzzRequest: a request is read as protobuf reads it.
func FuzzRequest(f *testing.F) {
	seed, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "n"}, TypeUrl: typeA, ResourceNamesSubscribe: []string{"*"}, ResponseNonce: "1",
		InitialResourceVersions: map[string]string{"a": "1", "b": "", "": "2"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Add([]byte{fieldKnown<<3 | 2, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		var want discovery.DeltaDiscoveryRequest
		rejected := proto.Unmarshal(msg, &want) != nil
		got := new(request)
		if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(msg)}, got); err != nil {
			if !rejected {
				t.Fatalf("%v for what protobuf reads", err)
			}
			return
		}
		if rejected {
			return // names that are no text are none of the mesh's
		}
		if got.knows() != (len(want.InitialResourceVersions) > 0) || !maps.Equal(got.versions(), want.InitialResourceVersions) {
			t.Fatalf("known %v, want %v", got.versions(), want.InitialResourceVersions)
		}
		want.InitialResourceVersions = nil
		if !proto.Equal(&got.DeltaDiscoveryRequest, &want) {
			t.Fatalf("%v, want %v", &got.DeltaDiscoveryRequest, &want)
		}
	})
}

// meshOf is a mesh of workloads as they are in one of Kubernetes.
func meshOf(n int) []*Resource {
	set := make([]*Resource, n)
	for i := range set {
		name := fmt.Sprintf("Kubernetes//Pod/team-%d/web-7d4b9c6f5d-%05d", i%50, i)
		set[i] = NewResource(typeA, name, []string{fmt.Sprintf("/10.0.%d.%d", i/250, i%250)}, fmt.Appendf(nil, "%-180d", i))
	}
	return set
}

// connected are sessions that have all of a cache, but what they are still to
// be sent.
func connected(tb testing.TB, c *Cache, n int, req *discovery.DeltaDiscoveryRequest) []*session {
	tb.Helper()
	msg, err := proto.Marshal(req)
	if err != nil {
		tb.Fatal(err)
	}
	all := make([]*session, n)
	for i := range all {
		all[i] = newSession(c, nil)
		c.join(all[i])
		if err := tell(all[i], msg); err != nil {
			tb.Fatal(err)
		}
	}
	return all
}

// tell has a session hear a message, as a Server does.
func tell(s *session, msg []byte) error {
	r := new(request)
	defer r.free()
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(msg)}, r); err != nil {
		return err
	}
	_, err := s.request(r)
	return err
}

// drain has a client acknowledge everything that a session says; it returns
// how many resources that were.
func drain(tb testing.TB, s *session) int {
	tb.Helper()
	n := 0
	for r := s.next(); r != nil; r = s.next() {
		n += r.resources()
		r.wire()
		if _, err := s.request(&request{DeltaDiscoveryRequest: discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: r.nonce}}); err != nil {
			tb.Fatal(err)
		}
	}
	return n
}

// TestMemoryOfClients holds a session to what it may keep: nothing of each
// resource, neither when the client has the mesh nor while it is sent.
func TestMemoryOfClients(t *testing.T) {
	const resources, clients = 22_000, 10
	c := NewCache()
	c.Update(typeA, meshOf(resources), nil)
	c.MarkSynced(typeA)
	for _, s := range connected(t, c, 1, &discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "first"}}) {
		drain(t, s) // makes what all share
		c.leave(s)
	}
	for name, features := range map[string][]string{"in pieces": {featurePartial}, "in one": nil} {
		before := heapInUse()
		all := connected(t, c, clients, &discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "n", ClientFeatures: features}})
		replies := make([]*reply, clients)
		for i, s := range all {
			replies[i] = s.next()
			replies[i].wire()
		}
		sending := int(heapInUse()-before) / clients
		for i, s := range all {
			if n := replies[i].resources(); n == 0 || features == nil && n != resources {
				t.Fatalf("%s: %d resources", name, n)
			}
			if _, err := s.request(&request{DeltaDiscoveryRequest: discovery.DeltaDiscoveryRequest{TypeUrl: typeA, ResponseNonce: replies[i].nonce}}); err != nil {
				t.Fatal(err)
			}
			drain(t, s)
		}
		clear(replies)
		idle := int(heapInUse()-before) / clients
		t.Logf("%s: a client is %d bytes while it is sent the mesh, and then %d", name, sending, idle)
		// 16 bytes for each resource on the way.
		if most := map[bool]int{true: 32 << 10, false: 16*resources + 16<<10}[features != nil]; sending > most || idle > 4<<10 {
			t.Errorf("%s: more than %d and %d bytes", name, most, 4<<10)
		}
		for _, s := range all {
			c.leave(s)
		}
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkFirstState is all of a mesh to one client that connects.
func BenchmarkFirstState(b *testing.B) {
	const resources = 22_000
	c := NewCache()
	set := meshOf(resources)
	c.Update(typeA, set, nil)
	c.MarkSynced(typeA)
	known := map[string]string{}
	for _, r := range set {
		known[r.Name] = r.Version
	}
	for _, bm := range []struct {
		name     string
		features []string
		known    map[string]string
		want     int
	}{
		{"in pieces", []string{featurePartial}, nil, resources},
		{"in one", nil, nil, resources},
		{"known", nil, known, 0},
	} {
		b.Run(bm.name, func(b *testing.B) {
			msg, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "n", ClientFeatures: bm.features}, InitialResourceVersions: bm.known})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				s := newSession(c, nil)
				if err := tell(s, msg); err != nil {
					b.Fatal(err)
				}
				if n := drain(b, s); n != bm.want {
					b.Fatalf("%d resources", n)
				}
			}
		})
	}
}

// BenchmarkChange is a change of one resource of many to all of 200 clients.
func BenchmarkChange(b *testing.B) {
	c := NewCache()
	set := meshOf(22_000)
	c.Update(typeA, set, nil)
	c.MarkSynced(typeA)
	all := connected(b, c, 200, &discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "n"}})
	for _, s := range all {
		drain(b, s)
	}
	b.ReportAllocs()
	turn := 0
	for b.Loop() {
		r := set[turn%len(set)]
		c.Update(typeA, []*Resource{NewResource(typeA, r.Name, r.Aliases, fmt.Appendf(nil, "%-180d", -1-turn))}, nil)
		turn++
		for _, s := range all {
			if n := drain(b, s); n != 1 {
				b.Fatalf("%d resources", n)
			}
		}
	}
}

// TestNumbersAreReused: the numbers of entries stay as small as the table was
// large.
func TestNumbersAreReused(t *testing.T) {
	c := NewCache()
	for round := range 5 {
		for i := range 10 {
			c.Update(typeA, []*Resource{{Name: fmt.Sprint(round, i), Version: "1"}}, nil)
		}
		used := map[int]bool{}
		for _, e := range c.types[typeA].resources {
			used[e.number] = true
		}
		if len(used) != 10 || c.types[typeA].numbers > 10 {
			t.Fatalf("%d numbers for 10 entries, of %d", len(used), c.types[typeA].numbers)
		}
		for i := range 10 {
			c.Update(typeA, nil, []string{fmt.Sprint(round, i)})
		}
	}
}
