// Package h2spec runs the h2spec conformance suite against the HTTP/2 engine
// of internal/transport/h2. Everything is in its test; EXCLUSIONS.md names
// the cases that do not apply.
package h2spec
