// Package file reads configuration from directories of YAML, the way
// Kubernetes writes it, watches them, and delivers what changed. It is strict
// about what it reads and forgiving about what it serves: a mistake in a file
// is reported with file, line and field, and the last good state of that
// file's objects stays until it is mended.
package file

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/ambit-mesh/ambit/internal/source"
)

// Options configure a Source; zero values mean the defaults.
type Options struct {
	// ConfigDirs hold the manifests; they are read recursively, except for
	// entries whose name begins with a dot.
	ConfigDirs []string
	// StatusDir holds what WriteOverlay writes; empty for none.
	StatusDir string
	// KeepDir is where the last good state of files with policies outlives
	// the process; empty for not at all. It must be nobody else's.
	KeepDir string
	Logger  *slog.Logger
	// Also are kinds to read in addition to source.Kinds, for analysis.
	Also []*source.Kind

	// Rescan is how often everything is compared again with the disk, in case
	// a notification was lost. Default 10 s.
	Rescan time.Duration
	// Debounce is how long the disk must be quiet before changes are read.
	// Default 50 ms; a directory that is never quiet is read after 10 times that.
	Debounce time.Duration
	// MaxFileBytes bounds one file, MaxFiles all of them. Defaults 16 MiB, 100,000.
	MaxFileBytes int64
	MaxFiles     int
}

func (o Options) withDefaults() Options {
	o.Rescan = cmp.Or(o.Rescan, 10*time.Second)
	o.Debounce = cmp.Or(o.Debounce, 50*time.Millisecond)
	o.MaxFileBytes = cmp.Or(o.MaxFileBytes, 16<<20)
	o.MaxFiles = cmp.Or(o.MaxFiles, 100_000)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
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

// String renders file:line: field: message.
func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += fmt.Sprintf(":%d", p.Line)
	}
	if p.Field != "" {
		s += ": " + p.Field
	}
	return s + ": " + p.Message
}

// Source watches directories. Run may be called once; Problems at any time,
// from any goroutine.
type Source struct {
	opts   Options
	reader *reader // owned by Run
	// notifications asks the kernel for them; tests have it refuse.
	notifications func() (*fsnotify.Watcher, error)

	mu       sync.Mutex
	problems []Problem
}

// New prepares a Source.
func New(opts Options) *Source {
	opts = opts.withDefaults()
	return &Source{opts: opts, reader: newReader(opts), notifications: fsnotify.NewWatcher}
}

// Load reads directories once, without watching: what there is, by key, and
// what is wrong.
func Load(opts Options) ([]source.Event, []Problem) {
	r := newReader(opts.withDefaults())
	r.scan()
	return r.state.flush(), r.state.problems()
}

// Problems lists what is wrong now, ordered by file and line.
func (s *Source) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// poll is how often everything is compared with the disk where the kernel
// gives no notifications.
const poll = time.Second

// Run delivers everything to sink and then every change, until ctx ends
// (which returns nil). A kernel that has no notifications left to give costs
// time, not service.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	w := &watch{s: s, watched: map[string]struct{}{}, paths: map[string]struct{}{}, rescan: s.opts.Rescan}
	if fs, err := s.notifications(); err == nil {
		defer func() { _ = fs.Close() }()
		w.fs, w.events, w.errors = fs, fs.Events, fs.Errors
	} else {
		w.rescan = min(poll, s.opts.Rescan)
		s.opts.Logger.Warn("the kernel does not notify of changes, so the configuration is read again and again: raise fs.inotify.max_user_instances and restart",
			"every", w.rescan, "error", err)
	}
	w.scan()
	s.deliver(sink)
	sink.Synced()
	w.loop(ctx, sink)
	return nil
}

// deliver tells the sink what changed and the log what went wrong.
func (s *Source) deliver(sink source.Sink) {
	events := s.reader.state.flush()
	now := s.reader.state.problems()
	s.mu.Lock()
	before := s.problems
	s.problems = now
	s.mu.Unlock()
	// Problems first: who sees an effect of a file can see what is wrong with it.
	if len(events) > 0 {
		sink.Apply(events)
	}
	known := make(map[Problem]struct{}, len(before))
	for _, p := range before {
		known[p] = struct{}{}
	}
	for _, p := range now {
		if _, old := known[p]; old {
			continue
		}
		level := slog.LevelWarn
		if p.Ignored {
			level = slog.LevelInfo
		}
		s.opts.Logger.Log(context.Background(), level, "configuration: "+p.Message, "file", p.File, "line", p.Line, "field", p.Field)
	}
}

// watch collects what the kernel reports until the disk is quiet.
type watch struct {
	s       *Source
	fs      *fsnotify.Watcher // nil: there are no notifications
	events  <-chan fsnotify.Event
	errors  <-chan error
	rescan  time.Duration
	watched map[string]struct{}
	paths   map[string]struct{} // files to read again
	all     bool                // or everything
}

func (w *watch) loop(ctx context.Context, sink source.Sink) {
	rescan := time.NewTicker(w.rescan)
	defer rescan.Stop()
	quiet := time.NewTimer(0)
	<-quiet.C
	var first time.Time // when the oldest unread change was reported
	pending := func() {
		if first.IsZero() {
			first = time.Now()
		}
		wait := min(w.s.opts.Debounce, time.Until(first.Add(10*w.s.opts.Debounce)))
		quiet.Reset(max(wait, 0))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.events:
			if !ok {
				return
			}
			if w.note(e) {
				pending()
			}
		case err, ok := <-w.errors:
			if !ok {
				return
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				w.s.opts.Logger.Warn("watching the configuration: reading all of it instead", "error", err)
			}
			w.all = true
			pending()
		case <-rescan.C:
			w.all = true
			pending()
		case <-quiet.C:
			first = time.Time{}
			w.read()
			w.s.deliver(sink)
		}
	}
}

// note reports whether an event concerns us.
func (w *watch) note(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	if _, dir := w.watched[e.Name]; dir && e.Has(fsnotify.Remove|fsnotify.Rename) {
		// The kernel forgot it; one of the same name needs a new watch.
		delete(w.watched, e.Name)
		w.all = true
		return true
	}
	switch {
	case strings.HasPrefix(name, ".."):
		// A mounted ConfigMap swaps the link ..data under all its files.
		w.all = true
	case strings.HasPrefix(name, "."):
		return false
	case isManifest(e.Name):
		if e.Op == fsnotify.Chmod {
			return false
		}
		w.paths[filepath.Clean(e.Name)] = struct{}{}
	case filepath.Ext(name) == "":
		w.all = true // may be a directory that came or went
	default:
		return false
	}
	return true
}

func (w *watch) read() {
	if w.all {
		w.scan()
	}
	for p := range w.paths {
		w.s.reader.refresh(p, true)
	}
	w.all = false
	clear(w.paths)
}

// scan reads everything, watching directories before they are listed so that
// nothing falls between.
func (w *watch) scan() {
	for _, root := range w.s.reader.roots() {
		w.add(root)
	}
	dirs := w.s.reader.scan()
	grown := false
	for _, d := range dirs {
		grown = w.add(d) || grown
	}
	if grown {
		w.s.reader.scan()
	}
	here := make(map[string]struct{}, len(dirs))
	for _, d := range dirs {
		here[d] = struct{}{}
	}
	for d := range w.watched {
		if _, ok := here[d]; !ok {
			_ = w.fs.Remove(d) // gone by itself with the directory
			delete(w.watched, d)
		}
	}
}

// add watches a directory and reports whether it was new.
func (w *watch) add(dir string) bool {
	if _, ok := w.watched[dir]; ok || w.fs == nil {
		return false
	}
	if err := w.fs.Add(dir); err != nil {
		return false // reported by the scan; the next one tries again
	}
	w.watched[dir] = struct{}{}
	return true
}
