// Package parts drives the mesh together with programs of others that users run beside it:
// the Open Policy Agent as an external authorizer, the OTLP receiver of the OpenTelemetry
// collector, and Prometheus' query engine. Each is a small program around their code, in a
// folder and a Go module of its own, so that no program of the mesh depends on them.
package parts
