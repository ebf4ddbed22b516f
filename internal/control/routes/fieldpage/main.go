// Command fieldpage writes the page of the reference on the fields of routes.
package main

import (
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/internal/control/routes"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: fieldpage FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], []byte(routes.FieldPage()), 0o644); err != nil { //nolint:gosec // a page for everybody
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
