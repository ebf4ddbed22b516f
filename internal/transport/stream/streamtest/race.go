//go:build race

package streamtest

// race is set when the race detector runs, which allocates itself.
const race = true
