// Package conformance runs the conformance suite of Gateway API against waypoints,
// on a Kubernetes cluster. It is a module of its own, so that what the suite needs
// does not decide which versions the programs are built with.
package conformance
