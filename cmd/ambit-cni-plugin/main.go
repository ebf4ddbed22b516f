// Command ambit-cni-plugin is run by the container runtime for every new pod;
// see internal/node/cniplugin.
package main

import (
	"os"

	"github.com/ambit-mesh/ambit/internal/node/cniplugin"
)

func main() { os.Exit(cniplugin.Run(os.Getenv, os.Stdin, os.Stdout)) }
