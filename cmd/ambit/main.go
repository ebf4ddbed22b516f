// Command ambit is the command line of the mesh. See internal/cli.
package main

import (
	"context"
	"os"

	"github.com/ambit-mesh/ambit/internal/cli"
	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
)

func main() {
	supervisor.Main()
	os.Exit(cli.Main(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}
