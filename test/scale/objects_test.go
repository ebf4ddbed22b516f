package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestShape: every pod has a service with a selector, every service without
// one its endpoints, and no two have one address.
func TestShape(t *testing.T) {
	for _, s := range []shape{{services: 2, pods: 1, nodes: 1}, {services: 50, pods: 49, nodes: 3}, {services: 51, pods: 200, nodes: 7}, {services: 2000, pods: 20000, nodes: 200}} {
		used, pods := map[string]bool{}, map[int]int{}
		claim := func(a string) {
			if used[a] {
				t.Fatalf("%s: two have %s", s, a)
			}
			used[a] = true
		}
		for i := range s.pods {
			svc := s.serviceOf(i)
			if svc < 0 || svc >= s.services || external(svc) {
				t.Fatalf("%s: pod %d is of service %d", s, i, svc)
			}
			pods[svc]++
			claim(s.pod(i).Status.PodIP)
		}
		written := 0
		for i := range s.services {
			if external(i) {
				written++
				for _, e := range slice(i).Endpoints {
					claim(e.Addresses[0])
				}
			} else if n, fair := pods[i], s.pods/(s.services-s.slices()); n != fair && n != fair+1 {
				t.Fatalf("%s: service %d has %d pods, not %d", s, i, n, fair)
			}
		}
		for i := range s.nodes {
			claim(proxyPod(i).Status.PodIP)
		}
		if written != s.slices() || s.services+len(used) != len(s.addresses()) {
			t.Errorf("%s: %d slices of %d, %d addresses of %d", s, written, s.slices(), s.services+len(used), len(s.addresses()))
		}
		if names := s.addresses(); len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
			t.Errorf("%s: a name is there twice", s)
		}
	}
}

// TestStart: what comes twice counts once, and what a node knew counts.
func TestStart(t *testing.T) {
	f := &fleet{}
	f.want([]string{"a", "b", "c"})
	told := func(names ...string) *start {
		s := (&node{fleet: f, first: true}).start()
		for _, name := range names {
			s.note(resource{name: []byte(name), version: []byte("1")})
		}
		return s
	}
	if s := told("a", "a", "x", "b"); s.has != 2 || s.told != 3 {
		t.Errorf("%d of 3 after %d", s.has, s.told)
	}
	f.remember()
	if s := told("b"); s.has != 2 || s.told != 1 {
		t.Errorf("back: %d of 3 after %d", s.has, s.told)
	}
	f.remember()
	if s := told("c"); s.has != 2 || s.told != 1 {
		t.Errorf("back with one: %d of 3 after %d", s.has, s.told)
	}
}

// TestReport: a figure that one program has not is no other's.
func TestReport(t *testing.T) {
	r := &report{Title: "title"}
	r.begin("one")
	r.add("a", 1, "s")
	r.add("b", 2, "s")
	r.begin("two")
	r.add("b", 300, "s")
	var out strings.Builder
	if err := r.print(&out, "text"); err != nil {
		t.Fatal(err)
	}
	want := []string{"title", "", "one two", "a 1.00 - s", "b 2.00 300 s", "", "0 passed, 0 failed"}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("line %d is %q, not %q", i+1, got, want[i])
		}
	}
}

// TestChangesDiffer: a change that was made already would never arrive.
func TestChangesDiffer(t *testing.T) {
	for _, s := range []shape{{services: 2, pods: 1, nodes: 1}, {services: 60, pods: 200, nodes: 2}, {services: 2000, pods: 20000, nodes: 200}} {
		w := &world{shape: s}
		seen := map[string]bool{}
		for i := range min(s.mostChanges(), 2000) {
			c := w.change(i)
			if seen[c.resource] {
				t.Fatalf("%s: %s is changed twice", s, c.resource)
			}
			seen[c.resource] = true
		}
	}
}

func TestQuantile(t *testing.T) {
	var all []time.Duration
	for i := 1; i <= 200; i++ {
		all = append(all, time.Duration(i))
	}
	for q, want := range map[int]time.Duration{0: 1, 50: 100, 99: 198, 100: 200} {
		if got := quantile(all, q); got != want {
			t.Errorf("p%d is %d, not %d", q, got, want)
		}
	}
	if got := quantile(all[:1], 50); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

func TestParseBusy(t *testing.T) {
	got, err := parseBusy("cpu  100 20 30 4000 500 6 7 8 9 0\ncpu0 1 2 3\n")
	if want := 1630 * time.Millisecond; err != nil || got != want {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu a 2 3 4 5 6 7 8 9"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestMetric(t *testing.T) {
	const text = "# HELP a\nab 1\na 2.5e3\n"
	if v, err := metric(text, "a"); v != 2500 || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := metric(text, "c"); err == nil {
		t.Error("no error for a metric that is not there")
	}
}

// TestRoutes: every route is of a service that uses a waypoint, every waypoint has
// routes, and a marker is found in its own route alone.
func TestRoutes(t *testing.T) {
	s := shape{services: 250, pods: 300, nodes: 3, routed: routed{waypoints: 2, replicas: 2, routes: 500}}
	used := map[string]int{}
	for i := range s.routes {
		if !s.ofWaypoint(s.routeOf(i)) {
			t.Errorf("route %d is of service %d", i, s.routeOf(i))
		}
		r := s.route(i)
		used[r.GetNamespace()]++
		b, err := r.MarshalJSON()
		if err != nil || !strings.Contains(string(b), marker(i, false)) || strings.Contains(string(b), marker(i, true)) {
			t.Fatalf("%s, error %v", b, err)
		}
	}
	if len(used) != s.waypoints || strings.HasSuffix(marker(11, true), marker(1, true)) {
		t.Errorf("routes by namespace: %v", used)
	}
}
