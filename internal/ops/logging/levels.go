package logging

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
)

// Levels beside slog's own.
const (
	LevelTrace = slog.LevelDebug - 4
	// LevelOff is above every level a record can have.
	LevelOff = slog.Level(127)
)

// maxScopes bounds the scopes that an operator can name: the set of loggers
// of a program is small, and a request must not grow memory without end.
const maxScopes = 256

// ParseLevel reads off, error, warn, info, debug or trace in any case.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "off":
		return LevelOff, nil
	case "error":
		return slog.LevelError, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	case "trace":
		return LevelTrace, nil
	}
	return 0, fmt.Errorf("log level %q is none of off, error, warn, info, debug, trace", s)
}

// LevelName is the inverse of ParseLevel; a level between two names gets the
// lower one's.
func LevelName(l slog.Level) string {
	switch {
	case l >= LevelOff:
		return "off"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	case l >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}

// Levels holds the level of every scope of a program and can be changed while
// it runs. A scope without a level of its own follows the default. Safe for
// concurrent use; reading a level is one atomic load.
type Levels struct {
	mu     sync.Mutex // guards what follows; not taken to read a level
	start  string
	def    slog.Level
	own    map[string]slog.Level
	scopes map[string]*level
}

type level struct{ v atomic.Int64 }

func (l *level) Level() slog.Level { return slog.Level(l.v.Load()) }

// NewLevels starts from a specification as Set takes it; the empty one means
// info.
func NewLevels(spec string) (*Levels, error) {
	l := &Levels{start: spec, def: slog.LevelInfo, own: map[string]slog.Level{}, scopes: map[string]*level{}}
	if strings.TrimSpace(spec) == "" {
		return l, nil
	}
	if err := l.Set(spec); err != nil {
		return nil, err
	}
	return l, nil
}

// Set changes levels by a list such as "info,access=debug": a bare level is
// the default, scope=level one scope's own. Nothing changes on error.
func (l *Levels) Set(spec string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	def, own := l.def, map[string]slog.Level{}
	for part := range strings.SplitSeq(spec, ",") {
		scope, name, scoped := strings.Cut(strings.TrimSpace(part), "=")
		if !scoped {
			scope, name = "", scope
		} else if scope == "" {
			return fmt.Errorf("log level %q names no scope before '='", part)
		}
		lv, err := ParseLevel(name)
		if err != nil {
			return err
		}
		if scope == "" {
			def = lv
			continue
		}
		own[scope] = lv
	}
	if len(own)+len(l.own) > maxScopes {
		return fmt.Errorf("more than %d scopes have a log level of their own", maxScopes)
	}
	l.def = def
	for s, lv := range own {
		l.own[s] = lv
	}
	l.publish()
	return nil
}

// Change is Set for an operator at run time: a scope that no part of the
// program has logged under is refused, because its level would change nothing.
func (l *Levels) Change(spec string) error {
	if err := l.known(spec); err != nil {
		return err
	}
	return l.Set(spec)
}

func (l *Levels) known(spec string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for part := range strings.SplitSeq(spec, ",") {
		scope, _, scoped := strings.Cut(strings.TrimSpace(part), "=")
		if !scoped || scope == "" || l.scopes[scope] != nil {
			continue
		}
		names := slices.Sorted(maps.Keys(l.scopes))
		return fmt.Errorf("there is no log scope %.64q; the scopes are %s", scope, strings.Join(names, ", "))
	}
	return nil
}

// Reset goes back to the specification the program started with.
func (l *Levels) Reset() {
	l.mu.Lock()
	l.def = slog.LevelInfo
	clear(l.own)
	l.publish()
	l.mu.Unlock()
	if strings.TrimSpace(l.start) != "" {
		// It was accepted by NewLevels.
		_ = l.Set(l.start)
	}
}

// String lists the default and every scope's level, in the form Set reads.
func (l *Levels) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	parts := make([]string, 0, len(l.own))
	for s, lv := range l.own {
		parts = append(parts, s+"="+LevelName(lv))
	}
	sort.Strings(parts)
	return strings.Join(append([]string{LevelName(l.def)}, parts...), ",")
}

func (l *Levels) scope(name string) *level {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.scopes[name]
	if !ok {
		s = &level{}
		l.scopes[name] = s
		l.publish()
	}
	return s
}

// publish copies the levels to where handlers read them; the caller holds mu.
func (l *Levels) publish() {
	for name, s := range l.scopes {
		lv, ok := l.own[name]
		if !ok {
			lv = l.def
		}
		s.v.Store(int64(lv))
	}
}
