package app

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/xds"
)

var noHost = bootstrap.Host{CPUs: 4, Exists: func(string) bool { return false }, ReadFile: func(string) ([]byte, error) { return nil, os.ErrNotExist }}

func pod(more bootstrap.Env) bootstrap.Env {
	e := bootstrap.Env{"POD_NAME": "w-1", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "w", "INSTANCE_IP": "10.0.0.7"}
	maps.Copy(e, more)
	return e
}

// TestLoad: a gateway needs its name and its address, and says which is missing.
func TestLoad(t *testing.T) {
	c, err := Load(pod(nil), noHost)
	if err != nil {
		t.Fatal(err)
	}
	if c.Identity().String() != "spiffe://cluster.local/ns/shop/sa/w" || c.Listen.String() != "[::]:15008" || c.Threads != 4 || c.MinimumDrain.Std() != 5*time.Second {
		t.Errorf("%+v", c)
	}
	if c, err := Load(pod(bootstrap.Env{"CONNECTION_TERMINATION_DEADLINE": "2s"}), noHost); err != nil || c.MinimumDrain.Std() != 2*time.Second {
		t.Errorf("%+v, error %v", c, err)
	}
	for _, tt := range []struct {
		named string
		env   bootstrap.Env
	}{
		{"POD_NAME", pod(bootstrap.Env{"POD_NAME": ""})},
		{"INSTANCE_IP", pod(bootstrap.Env{"INSTANCE_IP": "here"})},
		{"XDS_ADDRESS", pod(bootstrap.Env{"XDS_ADDRESS": ""})},
		{"WAYPOINT_WORKER_THREADS", pod(bootstrap.Env{"WAYPOINT_WORKER_THREADS": "many"})},
	} {
		if _, err := Load(tt.env, noHost); err == nil || !strings.Contains(err.Error(), tt.named) {
			t.Errorf("%s: %v", tt.named, err)
		}
	}
}

// TestQuota: what does not fit is not taken, and what is given back fits again.
func TestQuota(t *testing.T) {
	q := newQuota(3)
	if !q.Take(2) || q.Take(2) || q.Room() != 1 || !q.Take(1) || q.Take(1) {
		t.Errorf("room %d", q.Room())
	}
	if q.Give(3); q.Room() != 3 {
		t.Errorf("room %d", q.Room())
	}
}

// TestNamed: each service of a configuration is requested once.
func TestNamed(t *testing.T) {
	v1 := route.PortKey{Namespace: "shop", Hostname: "v1", Port: 80}
	c := &route.Config{
		Ports:     map[route.PortKey]*route.Port{{Namespace: "shop", Hostname: "front", Port: 80}: {}, {Namespace: "shop", Hostname: "front", Port: 81}: {}},
		Upstreams: map[string]*route.Upstream{"a": {Service: v1}, "b": {Service: v1}},
	}
	if got := named(c); !slices.Equal(got, []string{"shop/front", "shop/v1"}) {
		t.Errorf("%v", got)
	}
	if got := named(nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// TestRules: no request is routed before the first answer, and a rule that cannot be
// read is rejected by its name.
func TestRules(t *testing.T) {
	r := newRules()
	if r.config.Load() != nil {
		t.Error("there are routes before the first have come")
	}
	if bad := r.apply(xds.Delta{First: true, Updated: []xds.Resource{{Name: "x", Body: []byte{0xff}}}}); len(bad) != 1 || bad[0].Name != "x" {
		t.Errorf("%v", bad)
	}
	if r.config.Load() == nil {
		t.Error("there is no configuration after the first answer")
	}
	select {
	case <-r.changed:
	default:
		t.Error("nothing says that routes have come")
	}
	if b, err := json.Marshal(r.dump()); err != nil || string(b) != "[]" {
		t.Errorf("%s %v", b, err)
	}
}
