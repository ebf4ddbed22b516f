package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
	"github.com/ambit-mesh/ambit/test/bench/splice"
)

// TestMain is the supervisor, the first process of a pod, or a plain proxy when the
// benchmarks start it again.
func TestMain(m *testing.M) {
	supervisor.Main()
	if len(os.Args) > 1 && os.Args[1] == splice.Command {
		os.Exit(splice.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// All benchmarks measure every cell of every contender that is in the repository.
func TestBenchmarksRun(t *testing.T) {
	for name, part := range map[string]options{"connections": {}, "requests": {l7: true}, "idle connections": {l7: true, cells: "memory"}} {
		t.Run(name, func(t *testing.T) {
			o := options{bin: os.Getenv("AMBIT_BIN"), rounds: 1, duration: 100 * time.Millisecond, held: 50, rest: time.Millisecond, output: "json", l7: part.l7, cells: part.cells}
			if code := run(o); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
		ok   bool
	}{{nil, 0, false}, {[]float64{3}, 3, true}, {[]float64{9, 1, 5}, 5, true}, {[]float64{4, 1, 3, 2}, 2.5, true}} {
		if got, ok := median(c.in); got != c.want || ok != c.ok {
			t.Errorf("%v: %v %v", c.in, got, ok)
		}
	}
}

func TestReport(t *testing.T) {
	who := []*contender{{name: "none", title: "no mesh"}, {name: "ambit", title: "Ambit"}, {name: "peer", title: "peer"}, {name: "before", title: "before"}}
	r := newReport(options{rounds: 3, duration: time.Second}, who)
	c := cell{name: "echo"}
	for _, v := range []float64{30, 10, 20} {
		r.add(c, who[0], map[string]float64{rowEcho1: 4 * v}, nil)
		r.add(c, who[1], map[string]float64{rowEcho1: 2 * v}, nil)
		r.add(c, who[2], map[string]float64{rowEcho1: v}, nil)
	}
	r.add(c, who[2], map[string]float64{rowEcho1: 1e9}, errors.New("reset"))
	if r.passed != 9 || r.failed != 1 {
		t.Errorf("%d passed, %d failed", r.passed, r.failed)
	}
	var text bytes.Buffer
	if err := r.print(&text, "text"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"failed: peer, echo: reset", "Ambit : no mesh", "Ambit : before", "Ambit : peer"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	var out bytes.Buffer
	if err := r.print(&out, "json"); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rows           []jsonRow
		Passed, Failed int
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, row := range got.Rows {
		if row.Name != rowEcho1 {
			continue
		}
		if row.Medians["ambit"] != 40 || row.Ratios["ambit:none"] != 0.5 || row.Ratios["ambit:peer"] != 2 {
			t.Errorf("%+v", row)
		}
	}
}

func TestParseLoad(t *testing.T) {
	if r, err := parseLoad(`{"mode":"echo","per_second":5,"errors":0}`); err != nil || r.PerSecond != 5 {
		t.Error(r, err)
	}
	for _, bad := range []string{"", "nonsense", `{"errors":2,"last_error":"reset"}`} {
		if _, err := parseLoad(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestRequestRows: every row of the table of requests is filled by a cell, and the
// ratios are there.
func TestRequestRows(t *testing.T) {
	for wide, cellsOf := range map[bool]int{false: 8, true: 26} {
		o := options{l7: true, wide: wide, rounds: 1, duration: time.Second}
		r := newReport(o, []*contender{{name: "ambit", title: "Ambit"}, {name: "waypoint", title: "waypoint"}})
		for _, who := range r.contenders {
			r.add(cells(o)[0], who, map[string]float64{l7Load(wide)[0].rate(): 100}, nil)
		}
		names := map[string]bool{}
		for _, c := range cells(o) {
			names[c.name] = true
		}
		if len(names) != cellsOf || len(r.rows) != 2*cellsOf {
			t.Errorf("%d cells, %d rows", len(names), len(r.rows))
		}
		var text bytes.Buffer
		if err := r.print(&text, "text"); err != nil || !strings.Contains(text.String(), "waypoint : Ambit") || strings.Contains(text.String(), rowEcho1) {
			t.Errorf("%v\n%s", err, text.String())
		}
	}
}

// TestChosenCells: what no chosen cell needs is not made.
func TestChosenCells(t *testing.T) {
	for part, want := range map[string][]int{"": {1, 10_000}, "h2,rate": {1}, "r10000": {1, 10_000}, "memory": {1}} {
		o := options{l7: true, cells: part}
		if got := o.tables(); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", part, got, want)
		}
		if got := len(l7Rows(o)); got == 0 || part == "memory" && got != 1 {
			t.Errorf("%q: %d rows", part, got)
		}
	}
	ports := map[int]string{}
	for _, p := range reverseProxies {
		for _, proto := range protocols {
			for _, n := range tables {
				port := listener(p.port, proto, n)
				if ports[port] != "" {
					t.Errorf("%s and %s share port %d", ports[port], p.name, port)
				}
				ports[port] = p.name
			}
		}
	}
}

// Half of the policies refuse and half allow, and one of them allows what is measured; Envoy
// has each of them, and so has the mesh.
func TestGuardedPolicies(t *testing.T) {
	all := policies()
	if len(all) != guardedPolicies {
		t.Fatalf("%d policies", len(all))
	}
	by, err := newIssuer()
	if err != nil {
		t.Fatal(err)
	}
	mesh, envoy := guardedYAML(by), envoyFilters(by)
	allows, meets := 0, 0
	for _, p := range all {
		if p.allows {
			allows++
		}
		if strings.HasPrefix("/a/1024", p.prefix) { //nolint:gocritic // the prefix is the policy's
			if meets++; !p.allows || p.user != guardedUser {
				t.Errorf("%+v judges what is measured", p)
			}
		}
		if strings.Count(mesh, "name: "+p.name+",") != 1 || strings.Count(envoy, p.name+":") != 1 {
			t.Errorf("%s is not on both sides", p.name)
		}
	}
	if allows != guardedPolicies/2 || meets != 1 {
		t.Errorf("%d allow, %d are met", allows, meets)
	}
	if !strings.Contains(mesh, by.keys) || !strings.Contains(envoy, by.keys) || strings.Contains(by.keys, `"d"`) {
		t.Error("the key of the issuer is not on both sides, or its private part is")
	}
}
