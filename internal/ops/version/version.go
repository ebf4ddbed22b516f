// Package version tells which build of Ambit a program is.
package version

import "runtime/debug"

// tag is set by the linker: -X …/internal/ops/version.tag=v1.2.3.
var tag = "dev"

// Info describes a build.
type Info struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Dirty   bool   `json:"dirty,omitempty"`
	Go      string `json:"go"`
}

// Get reads what the linker and the Go tool wrote into the program.
func Get() Info {
	i := Info{Version: tag}
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	i.Go = b.GoVersion
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			i.Commit = s.Value
		case "vcs.modified":
			i.Dirty = s.Value == "true"
		}
	}
	return i
}

func (i Info) String() string {
	s := i.Version
	if len(i.Commit) >= 12 {
		s += " (" + i.Commit[:12]
		if i.Dirty {
			s += ", modified"
		}
		s += ")"
	}
	return s
}
