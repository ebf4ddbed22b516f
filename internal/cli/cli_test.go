package cli

import (
	"context"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
)

func TestMain(m *testing.M) {
	supervisor.Main()
	testscript.Main(m, map[string]func(){
		"kubectl-ambit": func() {
			os.Exit(Main(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
		},
		"ambit": func() {
			os.Exit(Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// TestScripts runs command lines and compares what they print; with
// UPDATE_GOLDEN=1 the expected output is written anew.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "",
		Setup: func(env *testscript.Env) error {
			// No lab of the machine is to be seen.
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			env.Setenv("AMBIT_LAB", "script-test")
			return nil
		},
	})
}
