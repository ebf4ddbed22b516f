package printer

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// hostile are the kinds of text that a terminal obeys or a reader is fooled by.
var hostile = map[string]string{
	"color":          "\x1b[31mred",
	"title":          "\x1b]0;title\a",
	"clipboard":      "\x1b]52;c;cm0gLXJm\x1b\\",
	"C1":             "\u009b31m",
	"raw C1":         "\x9b31m",
	"newline":        "a\nnode2  Kubernetes  ambitd",
	"carriage":       "good\rbad",
	"backspace":      "bad\b\b\bok",
	"delete":         "a\x7f",
	"tab":            "a\tb",
	"columns":        "a\vb\fc",
	"tabwriter":      "a\xffb\xff",
	"bidi":           "user\u202etxt.exe",
	"isolate":        "\u2066a\u2069",
	"zero width":     "ad\u200bmin",
	"line separator": "a\u2028b\u2029c\u0085d",
	"tags":           "a\U000e0041",
	"not UTF-8":      "a\xc3(\xff",
	"cut short":      "a\xe2\x82",
	"NUL":            "a\x00b",
}

func TestField(t *testing.T) {
	for name, s := range hostile {
		got := Field(s)
		if !shows(got) || strings.ContainsAny(got, "\n\t") {
			t.Errorf("%s: %q", name, got)
		}
		if Text(got) != got || Field(got) != got {
			t.Errorf("%s: escaped twice", name)
		}
	}
	for _, s := range []string{"", "web-7d", "10.0.0.1:80", "größe", "日本", "a b", `back\slash`, "é", "🙂", "\ufffd"} {
		if got := Field(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	for s, want := range map[string]string{
		"\x1b[31m": `\x1b[31m`, "a\nb": `a\nb`, "\u202e": `\u202e`, "\xff": `\xff`, "\x7f": `\x7f`, "\U000e0041": `\U000e0041`,
	} {
		if got := Field(s); got != want {
			t.Errorf("%q became %q, not %q", s, got, want)
		}
	}
}

// shows reports whether s is what a terminal shows as it is.
func shows(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' })
}

// TestWriteInPieces: however a text is cut, what arrives is the escaped text.
func TestWriteInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOf(rapid.Byte()).Draw(t, "text")
		if rapid.Bool().Draw(t, "UTF-8") {
			text = []byte(rapid.String().Draw(t, "string"))
		}
		var out bytes.Buffer
		p := NewPrinter(&out)
		for rest := text; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			if m, err := p.Write(rest[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if err := p.Flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != Text(string(text)) || !shows(out.String()) {
			t.Errorf("%q became %q, not %q", text, out.String(), Text(string(text)))
		}
	})
}

func TestPrintf(t *testing.T) {
	for name, s := range hostile {
		var out bytes.Buffer
		p := NewPrinter(&out)
		if err := p.Printf("%s|%v|%-5q|%v|%d\n", s, errors.New(s), s, []string{s}, 7); err != nil {
			t.Fatal(err)
		}
		got := out.String()
		if !shows(got) || !strings.HasSuffix(got, "|7\n") || strings.Count(got, "\n") > 2 || strings.Contains(got, "\nnode2") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := Sprintf("%s %s", netip.MustParseAddr("10.0.0.1"), Block("a\nb\x1b")); got != "10.0.0.1 a\nb\\x1b" {
		t.Errorf("%q", got)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	rows := [][]string{}
	for _, s := range hostile {
		rows = append(rows, []string{s, "next"})
	}
	if err := NewPrinter(&out).Table(2, []string{"NAME", "VALUE"}, rows); err != nil {
		t.Fatal(err)
	}
	if !shows(out.String()) || strings.Count(out.String(), "\n") != len(rows)+1 {
		t.Errorf("%d rows and a header became %q", len(rows), out.String())
	}
}

// TestJSON: the document means the same, and a terminal shows it.
func TestJSON(t *testing.T) {
	for name, s := range hostile {
		want := map[string]any{s: []any{s}}
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := JSON(b)
		var before, after any
		if err := errors.Join(json.Unmarshal(b, &before), json.Unmarshal(got, &after)); err != nil {
			t.Fatalf("%s: %v in %q", name, err, got)
		}
		if !reflect.DeepEqual(before, after) || !shows(string(got)) {
			t.Errorf("%s: %q became %q", name, b, got)
		}
	}
}

func FuzzField(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := Field(s); !shows(got) || strings.ContainsAny(got, "\n\t") {
			t.Errorf("%q became %q", s, got)
		}
	})
}
