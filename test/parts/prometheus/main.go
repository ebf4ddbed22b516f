// Command prometheus is what of Prometheus reads and evaluates metrics, for tests: its
// parser of the text format, its storage interfaces, and its query engine. It scrapes what
// the command line names into memory.
//
//	prometheus [-interval 1s] [-listen ADDRESS] [-rules FILE [-for 1s]] APP=URL…
//
// /api/v1/query and /api/v1/alerts answer as Prometheus does; /names lists the metrics that a
// query names. A target has the labels app and instance, as a
// pod has with the usual configuration for Kubernetes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
)

// maxScrape bounds an answer of a target in bytes.
const maxScrape = 16 << 20

func main() {
	interval := flag.Duration("interval", time.Second, "pause between scrapes")
	listen := flag.String("listen", "127.0.0.1:9090", "where queries are answered")
	rules := flag.String("rules", "", "`file` of alert rules")
	hold := flag.Duration("for", -1, "how long each alert is pending, in place of what its rule has")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *interval, *listen, *rules, *hold, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, interval time.Duration, listen, file string, hold time.Duration, targets []string) error {
	db := newMemory()
	for _, t := range targets {
		app, at, ok := strings.Cut(t, "=")
		u, err := url.Parse(at)
		if !ok || err != nil || u.Host == "" {
			return fmt.Errorf("%q is not APP=URL", t)
		}
		go scrapes(ctx, db, target{at, labels.FromStrings("app", app, "instance", u.Host)}, interval)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	p := parser.NewParser(parser.Options{})
	engine := promql.NewEngine(promql.EngineOpts{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), MaxSamples: 10_000_000, Timeout: 10 * time.Second,
		EnableAtModifier: true, EnableNegativeOffset: true, Parser: p,
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/api/v1/query", func(w http.ResponseWriter, r *http.Request) { query(w, r, engine, db) })
	mux.HandleFunc("/names", func(w http.ResponseWriter, r *http.Request) { names(w, r, p) })
	if file != "" {
		a, err := loadRules(file, engine, p, db, hold)
		if err != nil {
			return err
		}
		mux.HandleFunc("/api/v1/alerts", a.serve)
		go a.run(ctx, interval)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type target struct {
	url    string
	labels labels.Labels
}

// scrapes reads a target again and again.
func scrapes(ctx context.Context, db *memory, t target, interval time.Duration) {
	for tick := time.NewTicker(interval); ; {
		if err := scrape(ctx, db, t); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "scraping %s: %v\n", t.url, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func scrape(ctx context.Context, db *memory, t target) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxScrape))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return db.take(b, resp.Header.Get("Content-Type"), t.labels, time.Now())
}

// take parses an answer of a target, and keeps its samples.
func (m *memory) take(b []byte, contentType string, of labels.Labels, now time.Time) error {
	p, err := textparse.New(b, contentType, labels.NewSymbolTable(), textparse.ParserOptions{FallbackContentType: "text/plain;version=0.0.4"})
	if err != nil {
		return err
	}
	for {
		entry, err := p.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case entry != textparse.EntrySeries:
			continue
		}
		_, _, value := p.Series()
		var l labels.Labels
		p.Labels(&l)
		all := labels.NewBuilder(l)
		of.Range(func(one labels.Label) { all.Set(one.Name, one.Value) })
		m.append(all.Labels(), now.UnixMilli(), value)
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// query answers an instant query in the form of Prometheus' API.
func query(w http.ResponseWriter, r *http.Request, engine *promql.Engine, db *memory) {
	q, err := engine.NewInstantQuery(r.Context(), db, nil, r.FormValue("query"), time.Now())
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"status": "error", "errorType": "bad_data", "error": err.Error()})
		return
	}
	defer q.Close()
	res := q.Exec(r.Context())
	if res.Err != nil {
		answer(w, http.StatusUnprocessableEntity, map[string]string{"status": "error", "errorType": "execution", "error": res.Err.Error()})
		return
	}
	answer(w, http.StatusOK, map[string]any{"status": "success", "data": map[string]any{"resultType": string(res.Value.Type()), "result": res.Value}})
}
