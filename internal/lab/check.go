package lab

import (
	"errors"
	"path/filepath"

	"github.com/ambit-mesh/ambit/internal/source/file"
)

// checkPaths reads manifests as ambitd will, and refuses what ambitd would
// leave aside: like a cluster's API server, a lab does not take a policy with a
// typing error for one that is in force.
func checkPaths(paths []string) error {
	var faults []error
	for _, p := range paths {
		_, problems := file.Load(file.Options{ConfigDirs: []string{p}})
		for _, problem := range problems {
			// A directory is read without those below it; see yamlFiles.
			below := problem.File != p && filepath.Dir(problem.File) != filepath.Clean(p)
			if !problem.Ignored && !below {
				faults = append(faults, errors.New(problem.String()))
			}
		}
	}
	return errors.Join(faults...)
}
