package portguard

import (
	"testing"
	"time"
)

func TestJudgeHolder(t *testing.T) {
	for name, c := range map[string]struct {
		holder
		want verdict
	}{
		"the proxy itself":                 {holder{own: true, ours: true, age: time.Hour}, leave},
		"the next generation":              {holder{ours: true, age: time.Second}, leave},
		"the next generation, before this": {holder{ours: true, alone: true, age: time.Second}, leave},
		"it never goes":                    {holder{ours: true, age: generations}, report},
		"a program beside the proxy":       {holder{root: true}, evict},
		"a user beside the proxy":          {holder{}, evict},
		"a user in its place":              {holder{alone: true}, evict},
		"another node proxy":               {holder{alone: true, root: true, age: time.Second}, leave},
		"root in its place":                {holder{alone: true, root: true, age: generations}, evict},
	} {
		if got := c.judge(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
