// Package printer prints text that others chose, such as names of objects, on a
// terminal: what a terminal would obey, or a reader would take for something
// else, is escaped.
package printer

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// safe reports whether a terminal shows r as itself. Control characters begin
// escape sequences, and format characters reorder or hide what is around them.
func safe(r rune) bool { return unicode.IsPrint(r) }

// Field returns s for one place of a line: line breaks and tabs are escaped,
// too, because a value that contains them could forge a row or a column.
func Field(s string) string { return escape(s, func(rune) bool { return false }) }

// Text returns s for a place that may have several lines.
func Text(s string) string { return escape(s, isLayout) }

func isLayout(r rune) bool { return r == '\n' || r == '\t' }

// Lines is Text with every line after the first indented, so that none of them
// looks like a line of the program's own.
func Lines(s string) string { return strings.ReplaceAll(Text(s), "\n", "\n  ") }

func escape(s string, also func(rune) bool) string {
	clean := true
	for i := 0; i < len(s) && clean; {
		r, n := utf8.DecodeRuneInString(s[i:])
		clean = shown(r, n, also)
		i += n
	}
	if clean {
		return s
	}
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		b = appendRune(b, s[i:i+n], r, also)
		i += n
	}
	return string(b)
}

func shown(r rune, n int, also func(rune) bool) bool {
	return (r != utf8.RuneError || n > 1) && (safe(r) || also(r))
}

func appendRune(b []byte, raw string, r rune, also func(rune) bool) []byte {
	switch {
	case shown(r, len(raw), also):
		return append(b, raw...)
	case r == utf8.RuneError && len(raw) == 1:
		return fmt.Appendf(b, `\x%02x`, raw[0])
	}
	q := strconv.AppendQuoteRuneToASCII(nil, r)
	return append(b, q[1:len(q)-1]...)
}

// JSON returns a JSON document in which strings hold what a terminal would obey
// as escapes of JSON. It means the same document.
func JSON(doc []byte) []byte {
	s := string(doc)
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case shown(r, n, isLayout):
			out = append(out, s[i:i+n]...)
		case r > 0xffff:
			hi, lo := surrogates(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default: // invalid UTF-8 reads as U+FFFD, as in encoding/json
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += n
	}
	return out
}

func surrogates(r rune) (hi, lo rune) {
	r -= 0x10000
	return 0xd800 + r>>10, 0xdc00 + r&0x3ff
}

// Clean reports whether a terminal shows all of p as it is.
func Clean(p []byte) bool { return len(Text(string(p))) == len(p) }

// Printer writes to a terminal or a file. Nothing but its own layout leaves it
// unescaped, whatever the values are.
type Printer struct {
	w    io.Writer
	part []byte // the beginning of a character whose rest was not written yet
}

// NewPrinter returns a Printer for w. A Printer in a Printer is the inner one.
func NewPrinter(w io.Writer) *Printer {
	if p, ok := w.(*Printer); ok {
		return p
	}
	return &Printer{w: w}
}

// Under returns what the printer writes to, to ask whether it is a terminal.
func (p *Printer) Under() io.Writer { return p.w }

// Write escapes like Text. A character may come in several pieces.
func (p *Printer) Write(b []byte) (int, error) {
	all := append(p.part, b...) //nolint:gocritic // part is replaced below
	whole := completeRunes(all)
	p.part = append([]byte(nil), all[whole:]...)
	if _, err := io.WriteString(p.w, Text(string(all[:whole]))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// completeRunes is the length of b without an unfinished character at its end.
func completeRunes(b []byte) int {
	for i := len(b) - 1; i >= 0 && i >= len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				return i
			}
			break
		}
	}
	return len(b)
}

// Flush writes what Write keeps of an unfinished character.
func (p *Printer) Flush() error {
	part := string(p.part)
	p.part = nil
	_, err := io.WriteString(p.w, Text(part))
	return err
}

// Printf prints like fmt.Printf; the values of strings, errors and Stringers
// are escaped like a Field, unless they are of type Block.
func (p *Printer) Printf(format string, args ...any) error {
	_, err := io.WriteString(p, Sprintf(format, args...))
	return err
}

// Block is a text of several lines that was made with this package.
type Block string

// Sprintf is Printf into a string.
func Sprintf(format string, args ...any) string { return fmt.Sprintf(format, Fields(args)...) }

// Fields returns args with strings, errors and Stringers escaped like a Field.
func Fields(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case Block:
			out[i] = Text(string(v))
		case string:
			out[i] = Field(v)
		case []string:
			l := make([]string, len(v))
			for j := range v {
				l[j] = Field(v[j])
			}
			out[i] = l
		case error:
			out[i] = errors.New(Lines(v.Error()))
		case fmt.Stringer:
			out[i] = Field(v.String())
		default:
			out[i] = a
			if k := reflect.ValueOf(a); k.Kind() == reflect.String { // of a type of its own
				out[i] = Field(k.String())
			}
		}
	}
	return out
}

// Table prints rows under a header, in columns with pad spaces between them.
func (p *Printer) Table(pad int, header []string, rows [][]string) error {
	w := tabwriter.NewWriter(p, 0, 8, pad, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = Field(c)
		}
		if _, err := io.WriteString(w, strings.Join(cells, "\t")+"\n"); err != nil {
			return err
		}
	}
	return w.Flush()
}
