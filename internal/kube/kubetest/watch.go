package kubetest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// bookmarkEvery is how often a quiet watch is told how far it is.
const bookmarkEvery = 100 * time.Millisecond

// watcher is one watch: what it wants and how far it is.
type watcher struct {
	q         *request
	match     func(object) bool
	bookmarks bool
	cursor    uint64
	out       []watchEvent
}

type watchEvent struct {
	Type   watch.EventType `json:"type"`
	Object any             `json:"object"`
}

func (s *Server) watch(w http.ResponseWriter, q *request) {
	wt, broken, err := s.startWatch(q)
	if err != nil {
		fail(w, err)
		return
	}
	flusher, _ := w.(http.Flusher)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flusher.Flush()
	timeout := 30 * time.Minute
	if seconds, _ := strconv.Atoi(q.query.Get("timeoutSeconds")); seconds > 0 {
		timeout = time.Duration(seconds) * time.Second
	}
	end := time.Now().Add(timeout)
	tick := time.NewTicker(bookmarkEvery)
	defer tick.Stop()
	enc := json.NewEncoder(w)
	for time.Now().Before(end) {
		changed, ok := s.advance(wt)
		for _, e := range wt.out {
			if enc.Encode(e) != nil {
				return
			}
		}
		wt.out = nil
		flusher.Flush()
		if !ok || !s.wait(q.Context(), changed, broken, tick.C) {
			return
		}
	}
}

// startWatch collects what a watch begins with.
func (s *Server) startWatch(q *request) (*watcher, <-chan struct{}, error) {
	match, err := q.matcher()
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.name != "" {
		base, name := match, q.name
		match = func(o object) bool { return base(o) && o.name() == name }
	}
	wt := &watcher{q: q, match: match, bookmarks: q.query.Get("allowWatchBookmarks") == "true"}
	stream := q.query.Get("sendInitialEvents") == "true"
	if stream && s.noWatchList {
		return nil, nil, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", nil)
	}
	rv := q.query.Get("resourceVersion")
	if !stream && rv != "" && rv != "0" {
		wt.cursor, err = strconv.ParseUint(rv, 10, 64)
		if err != nil {
			return nil, nil, apierrors.NewBadRequest("resourceVersion: " + err.Error())
		}
		return wt, s.breakWatch, nil
	}
	wt.cursor = s.store.rv
	for _, key := range slices.Sorted(maps.Keys(q.table.objects)) {
		if o := q.table.objects[key]; match(o) {
			wt.out = append(wt.out, watchEvent{watch.Added, q.show(o)})
		}
	}
	if stream {
		wt.bookmark(map[string]any{metav1.InitialEventsAnnotationKey: "true"})
	}
	return wt, s.breakWatch, nil
}

// advance takes the watch up to now; ok is false when it has to end.
func (s *Server) advance(wt *watcher) (changed <-chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	steps, ok := s.store.since(wt.cursor)
	if !ok {
		gone := apierrors.NewResourceExpired("too old resource version: " + strconv.FormatUint(wt.cursor, 10)).Status()
		gone.APIVersion, gone.Kind = "v1", "Status"
		wt.out = append(wt.out, watchEvent{watch.Error, gone})
		return nil, false
	}
	for _, c := range steps {
		if c.table == wt.q.table {
			wt.step(c)
		}
	}
	moved := s.store.rv > wt.cursor
	wt.cursor = max(wt.cursor, s.store.rv)
	if wt.bookmarks && moved && len(steps) > 0 && steps[len(steps)-1].table != wt.q.table {
		wt.bookmark(nil)
	}
	return s.store.changed, true
}

// step is a change as seen through the watch's selectors.
func (wt *watcher) step(c change) {
	was, is := wt.match(c.old), wt.match(c.new)
	switch {
	case is && !was:
		wt.out = append(wt.out, watchEvent{watch.Added, wt.q.show(c.new)})
	case is:
		wt.out = append(wt.out, watchEvent{watch.Modified, wt.q.show(c.new)})
	case was:
		last := c.old.clone()
		last.meta()["resourceVersion"] = strconv.FormatUint(c.rv, 10)
		wt.out = append(wt.out, watchEvent{watch.Deleted, wt.q.show(last)})
	}
}

func (wt *watcher) bookmark(annotations map[string]any) {
	meta := map[string]any{"resourceVersion": strconv.FormatUint(wt.cursor, 10)}
	if annotations != nil {
		meta["annotations"] = annotations
	}
	wt.out = append(wt.out, watchEvent{watch.Bookmark, wt.q.show(object{"metadata": meta})})
}
