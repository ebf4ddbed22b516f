package rig

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// ExpectLines returns an error unless the node's access log has a line with
// all parts.
func (w *World) ExpectLines(node string, parts ...string) error {
	if len(w.AccessLines(node, parts...)) == 0 {
		return fmt.Errorf("no access log line of %s has all of %q", node, parts)
	}
	return nil
}

// Logs waits until the node's access log has a line with all parts.
func (w *World) Logs(node string, parts ...string) {
	w.t.Helper()
	w.Eventually("the access log of "+node, func() error { return w.ExpectLines(node, parts...) })
}

// BecomesRefused waits until requests are refused, and checks that they stay
// so.
func (w *World) BecomesRefused(from lab.Where, to netip.AddrPort) {
	w.t.Helper()
	refused := func() error {
		if a, err := w.Get(from, to); err == nil {
			return fmt.Errorf("%s is still answered by %s", from, a.Name)
		}
		return nil
	}
	w.Eventually(fmt.Sprintf("%s is refused at %s", from, to), refused)
	for range 3 {
		if err := refused(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// BecomesAnswered waits until requests are answered, and checks that they stay
// so.
func (w *World) BecomesAnswered(from lab.Where, to netip.AddrPort) {
	w.t.Helper()
	w.Eventually(fmt.Sprintf("%s is answered at %s", from, to), func() error { _, err := w.Get(from, to); return err })
	for range 3 {
		w.MustGet(from, to)
	}
}

// Answers makes n requests from a pod, each on a new connection, and returns
// the number of answers by the name of the pod that gave them.
func (w *World) Answers(from lab.Where, to netip.AddrPort, n int) map[string]int {
	w.t.Helper()
	out := w.MustRun(from, Bin("echo"), "get", "-url", "http://"+to.String()+"/", "-n", fmt.Sprint(n))
	count := map[string]int{}
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		count[name]++
	}
	return count
}
