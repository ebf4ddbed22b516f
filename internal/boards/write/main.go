// Command write writes the boards to chart observability, and the page of all metrics:
// `make generate` runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/boards"
)

func main() {
	out := flag.String("out", "", "`directory` of the boards")
	page := flag.String("page", "", "`file` of the page")
	flag.Parse()
	if err := run(*out, *page); err != nil {
		fmt.Fprintln(os.Stderr, "boards:", err)
		os.Exit(1)
	}
}

func run(out, page string) error {
	files, err := boards.Files()
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(out, name), text, 0o644); err != nil { //nolint:gosec // a chart is public
			return err
		}
	}
	text, err := boards.Page()
	if err != nil {
		return err
	}
	return os.WriteFile(page, []byte(text), 0o644) //nolint:gosec // so is a page
}
