//go:build race

package gateway

// race is set when the race detector runs, which allocates itself.
const race = true
