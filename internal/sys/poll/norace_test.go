//go:build !race

package poll

// raceAllocs is how many allocations the race detector adds to a round trip.
const raceAllocs = 0
