package logline

import (
	"strconv"
	"unicode/utf8"
)

func appendInt(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }

const hexDigits = "0123456789abcdef"

// escape makes what stands from a place on harmless in a line of text: quotes,
// backslashes and what is not printable.
func escape(b []byte, from int) []byte {
	for i := from; i < len(b); {
		switch c := b[i]; {
		case c == '"' || c == '\\':
			b = insert(b, i, 1)
			b[i] = '\\'
			i += 2
		case c < ' ' || c > '~':
			b = insert(b, i, 3)
			b[i], b[i+1], b[i+2], b[i+3] = '\\', 'x', hexDigits[c>>4], hexDigits[c&15]
			i += 4
		default:
			i++
		}
	}
	return b
}

// escapeJSON makes what stands from a place on the inside of a JSON string. Bytes that
// are no UTF-8 are replaced.
func escapeJSON(b []byte, from int) []byte {
	for i := from; i < len(b); {
		switch c := b[i]; {
		case c == '"' || c == '\\':
			b = insert(b, i, 1)
			b[i] = '\\'
			i += 2
		case c < ' ' || c == 0x7f:
			b = insert(b, i, 5)
			copy(b[i:], `\u00`)
			b[i+4], b[i+5] = hexDigits[c>>4], hexDigits[c&15]
			i += 6
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRune(b[i:])
			if r != utf8.RuneError || n != 1 {
				i += n
				continue
			}
			b = insert(b, i, 2)
			copy(b[i:], "\ufffd")
			i += 3
		}
	}
	return b
}

// insert makes room for n bytes before place i.
func insert(b []byte, i, n int) []byte {
	old := len(b)
	b = append(b, "       "[:n]...)
	copy(b[i+n:], b[i:old])
	return b
}
