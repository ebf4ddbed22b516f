package message

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// NewRequest returns the head of a request that somebody describes, as a client sends it
// by HTTP/2. headers calls its argument with each field. Without a method or a path it is
// GET and /.
func NewRequest(method, host, path string, headers func(add func(name, value string))) (*Head, error) {
	h := &Head{}
	var err error
	add := func(name, value string) {
		if f := h.AddHTTP2(name, value); f != nil && err == nil {
			err = fmt.Errorf("%s %q: %w", strings.TrimPrefix(name, ":"), value, f)
		}
	}
	add(":method", cmp.Or(method, "GET"))
	add(":scheme", "http")
	add(":authority", host)
	add(":path", cmp.Or(path, "/"))
	headers(func(name, value string) {
		if name == "host" && err == nil {
			err = errors.New("header host: the host of the request is given by host")
		}
		add(name, value)
	})
	if err != nil {
		return nil, err
	}
	h.JoinCookies()
	if f := h.CheckRequest(); f != nil {
		return nil, f
	}
	return h, nil
}
