package dnsproxy

import "testing"

// TestAsking: what is no name is no question, whatever its length.
func TestAsking(t *testing.T) {
	s := &scratch{}
	for name, want := range map[string]bool{"web": true, "a.b": true, "a..b": false, string(make([]byte, 300)): false} {
		s.question.Parse(asking(name, false))
		if s.question.Asks != want || want && string(s.question.Name()) == "" {
			t.Errorf("%q: a question %v, %q", name, s.question.Asks, s.question.Name())
		}
	}
	if addrs, known := (*Pod)(nil).Lookup(t.Context(), "web", false); known || addrs != nil {
		t.Error("a pod without look-ups has names")
	}
}
