package supervisor

import (
	"os"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/process"
)

// Main takes over the process when it was started as a part of a lab: the supervisor, or
// the first process of a pod. Otherwise it returns at once. To be called first of all in
// main or TestMain.
func Main() {
	if len(os.Args) != 2 {
		return
	}
	switch os.Args[0] {
	case lab.SupervisorName:
		os.Exit(supervise(os.Args[1]))
	case lab.InitName:
		os.Exit(process.PodInit(os.Args[1]))
	}
}
