package brief

import (
	"fmt"
	"slices"
	"testing"
)

// TestNames: a name ends when all of its resources are gone, and newer ones are too many.
func TestNames(t *testing.T) {
	n := New(4)
	for _, s := range []string{"two", "kept", "back", "unanswered"} {
		n.Add(s)
	}
	n.Present("two", "pod")
	n.Present("two", "pod")
	n.Present("two", "service")
	n.Removed("kept")
	n.Removed("back")
	n.Removed("pod") // the service still has the name
	n.Keep("kept")
	n.Present("back", "back")
	n.Present("stranger", "pod")
	n.Removed("stranger")
	fill := func(from int) (ended []string) {
		for i := range 5 {
			s := fmt.Sprint(from + i)
			n.Add(s)
			n.Removed(s)
			n.Removed(s)
		}
		return n.Shed()
	}
	if got := fill(0); !slices.Equal(got, []string{"0", "1"}) {
		t.Errorf("ended %q", got)
	}
	n.Removed("service")
	n.Removed("back")
	n.Add("0")
	n.Removed("0")
	if got := n.Shed(); !slices.Equal(got, []string{"2", "3", "4"}) {
		t.Errorf("ended %q", got)
	}
	if got := fill(10); !slices.Equal(got, []string{"two", "back", "0", "10", "11"}) {
		t.Errorf("ended %q", got)
	}
	if len(n.held) != 0 || len(n.names) != 4 { // three of the last, and the one without an answer
		t.Errorf("%d resources, %d names are kept", len(n.held), len(n.names))
	}
}
