package workload

import (
	"maps"
	"testing"

	"pgregory.net/rapid"
)

func TestEndpointSetIsPersistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := NamespacedName{"ns", "host"}
		s := newEndpointSet(1, name)
		model := map[string]*Workload{}
		type version struct {
			s     *endpointSet
			model map[string]*Workload
		}
		var versions []version
		epoch := uint64(1)
		for range rapid.IntRange(1, 400).Draw(t, "edits") {
			uid := rapid.StringMatching("[a-e][a-f][a-f]").Draw(t, "uid")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1:
				s = s.drop(epoch, uid)
				delete(model, uid)
			case 2:
				s = s.withPolicy(epoch, !s.allowUnhealthy)
			case 3:
				versions = append(versions, version{s, maps.Clone(model)})
				epoch++
			default:
				w := &Workload{UID: uid, Healthy: rapid.Bool().Draw(t, "healthy"), Traits: &Traits{Capacity: rapid.Uint32Range(0, 3).Draw(t, "capacity")}}
				s = s.put(epoch, endpoint{w: w})
				model[uid] = w
			}
		}
		for _, v := range append(versions, version{s, model}) {
			got := map[string]*Workload{}
			var weight uint64
			for e := range v.s.all() {
				got[e.w.UID] = e.w
				weight += e.weight(v.s.allowUnhealthy)
			}
			if !maps.Equal(got, v.model) || v.s.n != len(v.model) || v.s.weight != weight {
				t.Fatalf("n=%d weight=%d, want %d and %d", v.s.n, v.s.weight, len(v.model), weight)
			}
			// Every share belongs to the endpoint that brought it.
			shares := map[string]uint64{}
			for r := range v.s.weight {
				shares[v.s.at(r).w.UID]++
			}
			for uid, w := range v.model {
				if want := (endpoint{w: w}).weight(v.s.allowUnhealthy); shares[uid] != want {
					t.Fatalf("%s has %d shares, want %d", uid, shares[uid], want)
				}
			}
		}
	})
}
