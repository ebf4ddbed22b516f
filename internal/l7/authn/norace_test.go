//go:build !race

package authn

// race is set when the race detector runs, which allocates itself.
const race = false
