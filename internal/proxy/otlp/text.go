package otlp

import (
	"encoding/binary"
	"unicode/utf8"
)

// maxText bounds the value of one attribute, in bytes: others chose it.
const maxText = 1024

// cutText shortens a value to its bound.
func cutText[T []byte | string](v T) T {
	if len(v) > maxText {
		return v[:maxText]
	}
	return v
}

// appendText appends a length and a string of protobuf, which is UTF-8 whatever others
// have sent: bytes that are none are replaced.
func appendText[T []byte | string](b []byte, v T) []byte {
	extra := 0 // by replacement
	for i := 0; i < len(v); {
		if v[i] < utf8.RuneSelf {
			i++
			continue
		}
		r, n := decodeRune(v[i:])
		if r == utf8.RuneError && n == 1 {
			extra += len(string(utf8.RuneError)) - 1
		}
		i += n
	}
	b = binary.AppendUvarint(b, uint64(len(v)+extra))
	if extra == 0 {
		return append(b, v...)
	}
	for i := 0; i < len(v); {
		r, n := decodeRune(v[i:])
		b = utf8.AppendRune(b, r)
		i += n
	}
	return b
}

func decodeRune[T []byte | string](v T) (rune, int) {
	var p [utf8.UTFMax]byte
	return utf8.DecodeRune(p[:copy(p[:], v)])
}
