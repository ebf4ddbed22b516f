// Package leak has the tests of a package fail when goroutines stay after the last one.
package leak

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// Main runs the tests and exits, with an error when goroutines stay. It is the body of
// TestMain. skip names functions whose goroutines may stay, as they are in stack traces.
func Main(m *testing.M, skip ...string) { os.Exit(Run(m, skip...)) }

// Run is Main for a TestMain that has something to do after the tests: it returns the
// exit code.
func Run(m *testing.M, skip ...string) int {
	var options []goleak.Option
	for _, f := range skip {
		options = append(options, goleak.IgnoreAnyFunction(f))
	}
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintln(os.Stderr, "goroutines that stay:", err)
		return 1
	}
	return 0
}
