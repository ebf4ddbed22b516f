package main

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

func addressOf(t *testing.T, status workloadpb.WorkloadStatus) []byte {
	t.Helper()
	b, err := proto.Marshal(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{Uid: "u", Status: status}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadResponse(t *testing.T) {
	body := addressOf(t, workloadpb.WorkloadStatus_UNHEALTHY)
	msg, err := proto.Marshal(&discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: "partial", TypeUrl: "type", Nonce: "7", RemovedResources: []string{"gone", "too"},
		Resources: []*discovery.Resource{
			{Name: "one", Version: "v", Aliases: []string{"1"}, Resource: &anypb.Any{TypeUrl: "type", Value: body}},
			{Name: "two"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	keep := func(r resource) error { got[string(r.name)] = string(r.version) + string(r.body); return nil }
	r, err := readResponse(msg, keep)
	if want := (response{typeURL: "type", nonce: "7", partial: true, resources: 2, removed: 2}); err != nil || r != want {
		t.Errorf("%+v, %v", r, err)
	}
	if len(got) != 2 || got["one"] != "v"+string(body) || got["two"] != "" {
		t.Errorf("%q", got)
	}
	for n := range len(msg) {
		_, _ = readResponse(msg[:n], keep) // must not panic
	}
	if _, err := readResponse(msg[:len(msg)-1], keep); err == nil {
		t.Error("a message that was cut is no error")
	}
}

func TestHealthIs(t *testing.T) {
	for _, c := range []struct {
		body    []byte
		healthy bool
		want    bool
		bad     bool
	}{
		{body: addressOf(t, workloadpb.WorkloadStatus_HEALTHY), healthy: true, want: true},
		{body: addressOf(t, workloadpb.WorkloadStatus_HEALTHY)},
		{body: addressOf(t, workloadpb.WorkloadStatus_UNHEALTHY), want: true},
		{body: nil, bad: true},
		{body: []byte{0xff}, bad: true},
	} {
		if got, err := healthIs(c.body, c.healthy); got != c.want || (err != nil) != c.bad {
			t.Errorf("%x, %v: %v, %v", c.body, c.healthy, got, err)
		}
	}
}
