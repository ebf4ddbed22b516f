package source

import (
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ReadMessage reads the JSON of a protobuf message: strictly, or without regard
// to unknown fields. The problem is protobuf's message when ok is false.
func ReadMessage(data []byte, into proto.Message, lenient bool) (problem string, ok bool) {
	err := protojson.UnmarshalOptions{DiscardUnknown: lenient}.Unmarshal(data, into)
	if err == nil {
		return "", true
	}
	// protobuf separates the words of its errors by either kind of space, at
	// random in each build.
	return strings.ReplaceAll(err.Error(), "\u00a0", " "), false
}
