// Package file reads configuration from directories of YAML, the way
// Kubernetes writes it, watches them, and delivers what changed. It is strict
// about what it reads and forgiving about what it serves: a mistake in a file
// is reported with file, line and field, and the last good state of that
// file's objects stays until it is mended.
package file

import (
	"context"
	"errors"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/source"
)

// Options configure a Source; zero values mean the defaults.
type Options struct {
	// ConfigDirs hold the manifests; they are read recursively, except for
	// entries whose name begins with a dot.
	ConfigDirs []string
	// StatusDir holds what WriteOverlay writes; empty for none.
	StatusDir string
	Logger    *slog.Logger

	// Rescan is how often everything is compared again with the disk, in case
	// a notification was lost. Default 10 s.
	Rescan time.Duration
	// Debounce is how long the disk must be quiet before changes are read.
	// Default 50 ms; a directory that is never quiet is read after 10 times that.
	Debounce time.Duration
	// MaxFileBytes bounds one file, MaxFiles all of them. Defaults 4 MiB, 100,000.
	MaxFileBytes int64
	MaxFiles     int
}

// Problem is a mistake in a file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`  // from 1; 0 when unknown
	Field   string `json:"field,omitempty"` // like spec.rules[0].from; empty when unknown
	Message string `json:"message"`
	// Ignored tells that nothing is wrong: the object is of a kind the mesh
	// does not read.
	Ignored bool `json:"ignored,omitempty"`
}

// Source watches directories. Run may be called once; Problems at any time,
// from any goroutine.
type Source struct{ opts Options }

// New prepares a Source.
func New(opts Options) *Source { return &Source{opts: opts} }

// Run delivers everything to sink and then every change, until ctx ends
// (which returns nil). Errors are those of starting to watch.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	return errors.New("not yet")
}

// Problems lists what is wrong now, ordered by file and line.
func (s *Source) Problems() []Problem { return nil }

// Load reads directories once, without watching.
func Load(opts Options) ([]source.Event, []Problem, error) {
	return nil, nil, errors.New("not yet")
}

// WriteOverlay writes what its caller knows about obj (metadata uid,
// annotations and labels, spec.nodeName, spec.clusterIP(s), status; nothing
// else of it is written) to dir/writer, atomically. Sources merge it over the
// object of the same key: annotations and labels one by one, status by its top
// level fields, uid, nodeName and cluster addresses where the object has none.
// An overlay without its object is ignored. Pass only what you own: an
// annotation copied from the object would outlive its removal there.
func WriteOverlay(dir, writer string, obj metav1.Object) error {
	return errors.New("not yet")
}

// RemoveOverlay removes what WriteOverlay wrote; it is no error when there is
// nothing.
func RemoveOverlay(dir, writer string, key source.Key) error {
	return errors.New("not yet")
}
