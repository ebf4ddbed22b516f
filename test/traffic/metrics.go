package traffic

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Sample is one series of metrics.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

var (
	series = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)`)
	label  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)
)

// Samples reads the series with a name from what a program serves for Prometheus.
func Samples(text, name string) (out []Sample, err error) {
	for line := range strings.Lines(text) {
		m := series.FindStringSubmatch(line)
		if m == nil || m[1] != name {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(m[3]), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		s := Sample{Name: m[1], Labels: map[string]string{}, Value: v}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			s.Labels[l[1]] = l[2]
		}
		out = append(out, s)
	}
	return out, nil
}
