package ztunnel

import (
	"reflect"
	"testing"

	"github.com/ambit-mesh/ambit/api/admin"
)

func TestParseSyncz(t *testing.T) {
	want := follower{admin.Follower{Name: "ztunnel-a.istio-system", Cluster: "Kubernetes", Version: "v1", Types: []string{"Address", "Authorization"}}}
	for name, said := range map[string]string{
		"ambitd": `[{"name":"ztunnel-a.istio-system","cluster":"Kubernetes","version":"v1","types":["Address","Authorization"]}]`,
		"istiod": `[{"cluster_id":"Kubernetes","proxy":"ztunnel-a.istio-system","proxy_type":"ztunnel","istio_version":"v1","resources":{
			"type.googleapis.com/istio.workload.Address":{"sent":"1","acked":"1"},"type.googleapis.com/istio.security.Authorization":{"sent":"2"}}}]`,
	} {
		s, err := parseSyncz(name, []byte(said))
		if err != nil || len(s.clients) != 1 || !reflect.DeepEqual(s.clients[0].V, want) {
			t.Errorf("%s: %+v, %v", name, s.clients, err)
		}
	}
	for _, bad := range []string{`{}`, `[{"name":7}]`, `[7]`} {
		if _, err := parseSyncz("ambitd", []byte(bad)); err == nil {
			t.Errorf("%s was understood", bad)
		}
	}
}
