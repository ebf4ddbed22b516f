package workload

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/ending"
)

func TestFate(t *testing.T) {
	tunnels, plain := &Traits{Protocol: HBONE}, &Traits{}
	lives, direct := &Workload{Traits: tunnels}, &Workload{Traits: plain}
	serving, closing := &Workload{Traits: tunnels, Ending: ending.Serving}, &Workload{Traits: tunnels, Ending: ending.Closing}
	for name, tc := range map[string]struct {
		old, now *Workload
		want     Fate
	}{
		"new":                              {nil, lives, Stay},
		"new, and about to end":            {nil, serving, Stay},
		"a service":                        {nil, nil, Stay},
		"another detail":                   {lives, lives, Stay},
		"removed":                          {lives, nil, Close},
		"removed in the end":               {closing, nil, Close},
		"its end is asked for":             {lives, serving, Release},
		"its end is asked for, not ready":  {lives, closing, Release},
		"the end goes on":                  {serving, closing, Stay},
		"it leaves the mesh":               {lives, direct, Release},
		"it joins the mesh":                {direct, lives, Stay},
		"a successor":                      {closing, lives, Renew},
		"a successor that is not enrolled": {serving, direct, Renew},
		"never in the mesh":                {direct, direct, Stay},
	} {
		if got := (&Change{OldWorkload: tc.old, NewWorkload: tc.now}).Fate(); got != tc.want {
			t.Errorf("%s: %v, and not %v", name, got, tc.want)
		}
	}
	var none *Workload
	if none.KeepsTunnels() || !lives.KeepsTunnels() || direct.KeepsTunnels() || serving.KeepsTunnels() {
		t.Error("which workloads keep tunnels")
	}
}
