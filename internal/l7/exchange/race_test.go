//go:build race

package exchange_test

// race is set when the race detector runs, which allocates itself.
const race = true
