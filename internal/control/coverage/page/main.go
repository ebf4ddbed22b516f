// Command page writes the page of the reference on the fields of policies and telemetry.
package main

import (
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/internal/control/coverage"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: page FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], []byte(coverage.Page()), 0o644); err != nil { //nolint:gosec // a page for everybody
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
