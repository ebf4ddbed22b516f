package source

import "testing"

func TestHasAll(t *testing.T) {
	type set = map[string]string
	for _, c := range []struct {
		labels, selector set
		want             bool
	}{
		{nil, nil, true},
		{set{"a": "1"}, nil, true},
		{set{"a": "1", "b": "2"}, set{"a": "1"}, true},
		{set{"a": "1", "b": "2"}, set{"a": "1", "b": "2"}, true},
		{set{"a": "1"}, set{"a": "2"}, false},
		{set{"a": "1"}, set{"a": "1", "b": "2"}, false},
		{set{"a": "1"}, set{"b": ""}, false}, // absent is not empty
		{set{"b": ""}, set{"b": ""}, true},
		{nil, set{"a": "1"}, false},
	} {
		if got := HasAll(c.labels, c.selector); got != c.want {
			t.Errorf("%v, selector %v: %v", c.labels, c.selector, got)
		}
	}
}
