package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run has found, in the order of the table.
type report struct {
	Title   string   `json:"title"`
	Columns []string `json:"columns"` // the programs, in the order measured
	Rows    []row    `json:"rows"`
	Errors  []string `json:"errors,omitempty"`
	Passed  int      `json:"passed"`
	Failed  int      `json:"failed"`
}

// row is one figure of each program that it was found of.
type row struct {
	Name   string             `json:"name"`
	Values map[string]float64 `json:"values"`
	Unit   string             `json:"unit"`
}

// begin adds a column, which is filled from now on.
func (r *report) begin(column string) { r.Columns = append(r.Columns, column) }

func (r *report) add(name string, value float64, unit string) {
	i := slices.IndexFunc(r.Rows, func(row row) bool { return row.Name == name })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, row{name, map[string]float64{}, unit})
	}
	r.Rows[i].Values[r.Columns[len(r.Columns)-1]] = value
}

func (r *report) seconds(name string, d time.Duration) { r.add(name, d.Seconds(), "s") }

func (r *report) mib(name string, bytes int64) { r.add(name, float64(bytes)/(1<<20), "MiB") }

// quantiles adds a row for each.
func (r *report) quantiles(name string, all []time.Duration) {
	all = slices.Sorted(slices.Values(all))
	for _, q := range []int{50, 99} {
		r.add(fmt.Sprintf("%s, p%d", name, q), float64(quantile(all, q))/float64(time.Millisecond), "ms")
	}
}

// quantile is the smallest value that q percent of all are no larger than;
// all is sorted and not empty.
func quantile(all []time.Duration, q int) time.Duration {
	return all[max(0, (len(all)*q+99)/100-1)]
}

func (r *report) print(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	for _, e := range r.Errors {
		fmt.Fprintln(w, "failed:", e) //nolint:errcheck // the table's writer tells
	}
	fmt.Fprintf(w, "%s\n\n", r.Title) //nolint:errcheck // as above
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "\t%s\t\t\n", strings.Join(r.Columns, "\t")) //nolint:errcheck // Flush tells
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t", row.Name) //nolint:errcheck // Flush tells
		for _, column := range r.Columns {
			text := "-"
			if v, ok := row.Values[column]; ok {
				text = number(v)
			}
			fmt.Fprintf(t, "%s\t", text) //nolint:errcheck // Flush tells
		}
		fmt.Fprintf(t, "%s\t\n", row.Unit) //nolint:errcheck // Flush tells
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d passed, %d failed\n", r.Passed, r.Failed)
	return err
}

// number has three digits that matter.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// busy is the processor time that the whole machine has spent working.
func busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(b))
}

// parseBusy adds up the first line of /proc/stat, less idle and waiting.
func parseBusy(text string) (time.Duration, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	const user, idle, wait, steal = 1, 4, 5, 8
	if len(f) <= steal || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var sum time.Duration
	for i := user; i < steal; i++ {
		if i == idle || i == wait {
			continue
		}
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond // USER_HZ
	}
	return sum, nil
}

// metric is the value of a metric without labels.
func metric(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}
