// Command pages writes the pages of the reference that come from the control plane's
// code: `make generate` runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/control/coverage"
	"github.com/ambit-mesh/ambit/internal/control/routes"
)

//go:generate go run . -out ../../../docs/reference

func main() {
	out := flag.String("out", "", "`directory` to write to")
	flag.Parse()
	if *out == "" {
		fmt.Fprintln(os.Stderr, "pages: -out is missing: where are the pages to go?")
		os.Exit(2)
	}
	for name, text := range map[string]string{"routes.md": routes.FieldPage(), "policies.md": coverage.Page()} {
		if err := os.WriteFile(filepath.Join(*out, name), []byte(text), 0o644); err != nil { //nolint:gosec // pages are public
			fmt.Fprintln(os.Stderr, "pages:", err)
			os.Exit(1)
		}
	}
}
