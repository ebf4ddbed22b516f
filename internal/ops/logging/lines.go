package logging

import "log/slog"

// Lines is a stream of lines whose text its owner renders, beside the records of the
// same log: a line of either leaves in one write.
type Lines struct {
	out   *output
	level *level
}

// Lines returns the stream of a scope, whose level is changed as that of a Logger.
func (l *Logging) Lines(scope string) *Lines {
	return &Lines{out: l.out, level: l.Levels.scope(scope)}
}

// Enabled reports whether lines are written: a level above info turns them off.
func (l *Lines) Enabled() bool { return slog.LevelInfo >= l.level.Level() }

// Format returns the format of the log.
func (l *Lines) Format() Format { return l.out.format }

// Write writes one line, which ends in a newline. It does not keep p.
func (l *Lines) Write(p []byte) {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	_, _ = l.out.w.Write(p) // there is nobody to tell
}
