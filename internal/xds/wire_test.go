package xds

import (
	"fmt"
	"maps"
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
		SystemVersionInfo: partialVersion, TypeUrl: typeA, Nonce: "3", RemovedResources: []string{"gone", "too"},
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
