// Package logging gives every program of the mesh the same log: slog records
// with a scope, as tab-separated text or as JSON, with levels that can be
// changed while the program runs.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// Format is how a record is written.
type Format uint8

const (
	// Plain is "time<TAB>level<TAB>scope<TAB>message<TAB>key=value …".
	Plain Format = iota
	// JSON is one object a line with the keys time, level, scope, message.
	JSON
)

// ParseFormat reads "", "plain" or "json".
func ParseFormat(s string) (Format, error) {
	switch s {
	case "", "plain":
		return Plain, nil
	case "json":
		return JSON, nil
	}
	return Plain, fmt.Errorf("log format %q is neither plain nor json", s)
}

// Logging is one program's log.
type Logging struct {
	Levels *Levels
	out    *output
}

type output struct {
	mu     sync.Mutex // one record is one Write
	w      io.Writer
	format Format
}

// New writes to w, at the levels of spec (see Levels.Set).
func New(w io.Writer, format Format, spec string) (*Logging, error) {
	levels, err := NewLevels(spec)
	if err != nil {
		return nil, err
	}
	return &Logging{Levels: levels, out: &output{w: w, format: format}}, nil
}

// Logger returns the logger of a scope: a package, or a stream of records of
// its own such as "access".
func (l *Logging) Logger(scope string) *slog.Logger {
	return slog.New(&handler{out: l.out, scope: scope, level: l.Levels.scope(scope)})
}

// Discard is a logger for tests and for code that was given none.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
