package measure

import (
	"testing"
	"time"
)

func TestParseUsage(t *testing.T) {
	const stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 1 0 1 2 3\n"
	const rollup = "555-7ff ---p 00000000 00:00 0 [rollup]\nRss:                2048 kB\nPss:                1 kB\nAnonymous:          1024 kB\nAnonHugePages: 7 kB\n"
	for _, c := range []struct {
		text string
		want Usage
		bad  bool
	}{
		{text: stat + rollup, want: Usage{CPU: 3 * time.Second, RSS: 2 << 20, Anonymous: 1 << 20}},
		{text: stat, bad: true},
		{text: "42 (x) S 1\n" + rollup, bad: true},
		{text: "", bad: true},
	} {
		got, err := ParseUsage(c.text)
		if (err != nil) != c.bad || (!c.bad && got != c.want) {
			t.Errorf("%q: %+v, %v", c.text, got, err)
		}
	}
}

func TestParsePeak(t *testing.T) {
	if got, err := parsePeak("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"); got != 2<<20 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "VmHWM: many kB\n", "VmHWM: 1\n"} {
		if _, err := parsePeak(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}
