// Package admin serves a program's own HTTP endpoints: health, metrics, log
// levels, profiles and dumps. None of it is on a data path.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = time.Minute
	maxHeaderBytes    = 16 << 10
	shutdownTimeout   = 2 * time.Second
)

// Serve answers on ln until ctx ends, then lets requests under way finish for
// a short time. It closes ln. It returns nil after ctx ended.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		if s.Shutdown(c) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(ln)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// JSON answers GET with what value returns, indented.
func JSON(value func() any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !method(w, r, http.MethodGet) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		// The status is sent; a client that went away is its own affair.
		_ = e.Encode(value())
	})
}

// Logging answers POST: ?level=LEVEL or ?level=scope=LEVEL,… changes levels,
// ?reset goes back to those of the start, neither lists them.
func Logging(levels *logging.Levels) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !method(w, r, http.MethodPost) {
			return
		}
		q := r.URL.Query()
		if q.Has("reset") {
			levels.Reset()
		}
		if spec := q.Get("level"); spec != "" {
			if err := levels.Change(spec); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		_, _ = fmt.Fprintf(w, "current log level is %s\n", levels)
	})
}

// Action answers POST by calling f once per request.
func Action(f func(), said string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !method(w, r, http.MethodPost) {
			return
		}
		_, _ = fmt.Fprintln(w, said)
		f()
	})
}

// Profiles adds Go's profiles under /debug/pprof/.
func Profiles(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

func method(w http.ResponseWriter, r *http.Request, want string) bool {
	if r.Method == want {
		return true
	}
	w.Header().Set("Allow", want)
	http.Error(w, "use "+want, http.StatusMethodNotAllowed)
	return false
}
