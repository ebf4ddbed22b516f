package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// row is one line of the table.
type row struct {
	name, unit string
	more       bool // more is better
}

// report is what a run has found.
type report struct {
	title          string
	contenders     []*contender
	rows           []row
	samples        map[string]map[string][]float64 // by row, by contender
	errors         []string
	lines          []string // of a report that is no table
	facts          map[string]float64
	passed, failed int
}

func newReport(o options, who []*contender) *report {
	table := rows
	if o.l7 {
		table = l7Rows(o)
	}
	return &report{
		rows:       table,
		title:      fmt.Sprintf("medians of %d interleaved rounds, %s a cell", o.rounds, o.duration),
		contenders: who, samples: map[string]map[string][]float64{},
	}
}

// add takes one measurement. With an error the values do not count.
func (r *report) add(c cell, who *contender, values map[string]float64, err error) {
	if err != nil {
		r.failed++
		r.errors = append(r.errors, fmt.Sprintf("%s, %s: %v", who.title, c.name, err))
		return
	}
	r.passed++
	for name, v := range values {
		if r.samples[name] == nil {
			r.samples[name] = map[string][]float64{}
		}
		r.samples[name][who.name] = append(r.samples[name][who.name], v)
	}
}

// median is 0 and false for nothing.
func median(all []float64) (float64, bool) {
	if len(all) == 0 {
		return 0, false
	}
	s := slices.Sorted(slices.Values(all))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2, true
	}
	return s[len(s)/2], true
}

func (r *report) print(w io.Writer, format string) error {
	if format == "json" {
		return r.printJSON(w)
	}
	for _, e := range r.errors {
		fmt.Fprintln(w, "failed:", e) //nolint:errcheck // the table's writer tells
	}
	for _, l := range r.lines {
		fmt.Fprintln(w, l) //nolint:errcheck // the caller's standard output
	}
	if len(r.contenders) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n\n", r.title) //nolint:errcheck // as above
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	var head strings.Builder
	head.WriteString("\tunit\t")
	for _, c := range r.contenders {
		head.WriteString(c.title + "\t")
	}
	versus := r.comparisons()
	for _, v := range versus {
		head.WriteString(v.title + "\t")
	}
	fmt.Fprintln(t, head.String()) //nolint:errcheck // Flush tells
	for _, row := range r.rows {
		fmt.Fprintln(t, r.line(row, versus)) //nolint:errcheck // Flush tells
	}
	return t.Flush()
}

// comparison is a column of ratios.
type comparison struct{ title, of, to string }

func (r *report) comparisons() []comparison {
	has := func(name string) bool {
		return slices.ContainsFunc(r.contenders, func(c *contender) bool { return c.name == name })
	}
	var out []comparison
	for _, v := range []comparison{
		{"Ambit : no mesh", "ambit", "none"}, {"Ambit : before", "ambit", "before"}, {"Ambit : peer", "ambit", "peer"}, {"waypoint : Ambit", "waypoint", "ambit"},
		{"before : waypoint's CPU", "before-alone", "waypoint-alone"}, {"before : waypoint, all CPU", "before", "waypoint"},
		{"envoy : waypoint's CPU", "envoy", "waypoint-alone"}, {"envoy, mutual TLS : waypoint's CPU", "envoy-mtls", "waypoint-alone"},
	} {
		if has(v.of) && has(v.to) {
			out = append(out, v)
		}
	}
	return out
}

func (r *report) line(row row, versus []comparison) string {
	cols := []string{row.name, row.unit}
	for _, c := range r.contenders {
		v, ok := median(r.samples[row.name][c.name])
		cols = append(cols, number(v, ok))
	}
	for _, v := range versus {
		ratio, ok := r.ratio(row, v)
		text := "-"
		if ok {
			text = strconv.FormatFloat(ratio, 'f', 2, 64)
		}
		cols = append(cols, text)
	}
	return strings.Join(cols, "\t") + "\t"
}

func (r *report) ratio(row row, v comparison) (float64, bool) {
	a, ok := median(r.samples[row.name][v.of])
	b, ok2 := median(r.samples[row.name][v.to])
	if !ok || !ok2 || b == 0 {
		return 0, false
	}
	return a / b, true
}

// number has three digits that matter.
func number(v float64, ok bool) string {
	switch {
	case !ok:
		return "-"
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// jsonRow is one line of the table with what it was made of.
type jsonRow struct {
	Name       string               `json:"name"`
	Unit       string               `json:"unit"`
	MoreBetter bool                 `json:"moreIsBetter"`
	Medians    map[string]float64   `json:"medians"`
	Samples    map[string][]float64 `json:"samples"`
	Ratios     map[string]float64   `json:"ratios,omitempty"`
}

func (r *report) printJSON(w io.Writer) error {
	out := struct {
		Title  string             `json:"title"`
		Rows   []jsonRow          `json:"rows,omitempty"`
		Facts  map[string]float64 `json:"facts,omitempty"`
		Errors []string           `json:"errors,omitempty"`
		Passed int                `json:"passed"`
		Failed int                `json:"failed"`
	}{Title: r.title, Facts: r.facts, Errors: r.errors, Passed: r.passed, Failed: r.failed}
	if len(r.contenders) > 0 {
		for _, row := range r.rows {
			j := jsonRow{Name: row.name, Unit: row.unit, MoreBetter: row.more, Samples: r.samples[row.name], Medians: map[string]float64{}, Ratios: map[string]float64{}}
			for who, s := range j.Samples {
				j.Medians[who], _ = median(s)
			}
			for _, v := range r.comparisons() {
				if x, ok := r.ratio(row, v); ok {
					j.Ratios[v.of+":"+v.to] = x
				}
			}
			out.Rows = append(out.Rows, j)
		}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(out)
}
