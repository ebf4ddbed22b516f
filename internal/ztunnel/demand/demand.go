// Package demand requests what a connection needs of the directory, where the control
// plane sends only what is requested by name.
package demand

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// Timeout is how long a connection waits for what the control plane may be about to
// send.
const Timeout = 5 * time.Second

// maxNames bounds the names that one connection has the proxy request: an address, its
// waypoints, and what is known of those, with room.
const maxNames = 32

// Source requests names.
type Source struct {
	// Request returns when the control plane has answered about a name.
	Request   func(ctx context.Context, name string) error
	Directory *workload.Directory
	Log       *slog.Logger
}

// Fetch requests names, and what unknown then lists. It lists what is missing once more
// after all answers, because an answer can need more. The error is why something is still
// missing; an address that no object has is no error.
func (s Source) Fetch(names []string, unknown func(*workload.Snapshot) []string) *reason.Error {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	var requested []string
	for len(names) > 0 && len(requested) < maxNames {
		for _, name := range names[:min(len(names), maxNames-len(requested))] {
			if err := s.Request(ctx, name); err != nil {
				s.Log.Debug("nothing is known of a name", "name", name, "error", err)
				if errors.Is(err, context.DeadlineExceeded) {
					return reason.Errorf(reason.UnknownDestination, "%s: the control plane did not answer in %s", name, Timeout)
				}
				return reason.Errorf(reason.ResourceExhausted, "%s: %w", name, err)
			}
			requested = append(requested, name)
		}
		names = slices.DeleteFunc(unknown(s.Directory.Snapshot()), func(name string) bool { return slices.Contains(requested, name) })
	}
	return nil
}
