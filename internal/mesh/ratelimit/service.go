package ratelimit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds of a question to a rate limit service.
const (
	MaxTimeout     = 5 * time.Second
	maxDescriptors = 8
	maxEntries     = 8
	maxText        = 253
)

// Entry is what a descriptor has of a connection.
type Entry uint8

// The entries.
const (
	EntrySourceNamespace Entry = iota
	EntrySourceIdentity
	EntrySourceAddress
	EntryDestinationNamespace
	EntryDestinationService
	EntryDestinationWorkload
)

// entries are the names that users write, and the keys that services get.
var entries = [...]struct{ name, key string }{
	{"SourceNamespace", "source_namespace"}, {"SourceIdentity", "source_identity"}, {"SourceAddress", "source_address"},
	{"DestinationNamespace", "destination_namespace"}, {"DestinationService", "destination_service"}, {"DestinationWorkload", "destination_workload"},
}

// ParseEntry reads what users write.
func ParseEntry(s string) (Entry, error) {
	names := make([]string, 0, len(entries))
	for i, e := range entries {
		if e.name == s {
			return Entry(i), nil //nolint:gosec // one of few
		}
		names = append(names, e.name)
	}
	return 0, fmt.Errorf("%q is not one of %s", s, strings.Join(names, ", "))
}

// String returns the name that users write.
func (e Entry) String() string {
	if int(e) < len(entries) {
		return entries[e].name
	}
	return fmt.Sprintf("Entry(%d)", uint8(e))
}

// Service is a rate limit service that is asked about each connection: Envoy's protocol, by
// gRPC.
type Service struct {
	Namespace, Hostname string
	Port                uint16
	Domain              string
	Timeout             time.Duration
	// Open: connections are let in about which no answer has come.
	Open        bool
	Descriptors [][]Entry
}

// String renders the service, for people.
func (s *Service) String() string {
	mode := "Deny"
	if s.Open {
		mode = "Allow"
	}
	return fmt.Sprintf("service %s:%d is asked about domain %s, within %v, failureMode %s", s.Hostname, s.Port, s.Domain, s.Timeout, mode)
}

// Equal reports whether two services, which may be nil, are the same.
func (s *Service) Equal(o *Service) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.Namespace == o.Namespace && s.Hostname == o.Hostname && s.Port == o.Port && s.Domain == o.Domain && s.Timeout == o.Timeout && s.Open == o.Open &&
		slices.EqualFunc(s.Descriptors, o.Descriptors, slices.Equal[[]Entry])
}

// Check returns what is wrong with a service.
func (s *Service) Check() error {
	switch {
	case s.Namespace == "" || s.Hostname == "" || len(s.Hostname) > maxText || s.Port == 0:
		return errors.New("service: it has no namespace, name or port")
	case s.Domain == "" || len(s.Domain) > maxText:
		return fmt.Errorf("domain: write 1 to %d bytes", maxText)
	case s.Timeout < time.Millisecond || s.Timeout > MaxTimeout || s.Timeout%time.Millisecond != 0:
		return fmt.Errorf("timeout: %v is not from 1ms to %v, in whole milliseconds", s.Timeout, MaxTimeout)
	case len(s.Descriptors) == 0 || len(s.Descriptors) > maxDescriptors:
		return fmt.Errorf("descriptors: there are %d: write 1 to %d", len(s.Descriptors), maxDescriptors)
	}
	for i, d := range s.Descriptors {
		if len(d) == 0 || len(d) > maxEntries {
			return fmt.Errorf("descriptors[%d]: there are %d entries: write 1 to %d", i, len(d), maxEntries)
		}
		for _, e := range d {
			if int(e) >= len(entries) {
				return fmt.Errorf("descriptors[%d]: entry %d is not known", i, e)
			}
		}
	}
	return nil
}

// Values are what entries have of one connection, by entry. What is missing is "none": a
// service accepts no empty value.
type Values [len(entries)]string

// frameHeader is that of a message of gRPC: a byte of flags, and the length.
const frameHeader = 5

// Question appends a ShouldRateLimit request, framed for gRPC.
func (s *Service) Question(buf []byte, v *Values) []byte {
	start := len(buf)
	buf = append(buf, 0, 0, 0, 0, 0)
	buf = protowire.AppendTag(buf, 1, protowire.BytesType)
	buf = protowire.AppendString(buf, s.Domain)
	var descriptor, entry []byte
	for _, d := range s.Descriptors {
		descriptor = descriptor[:0]
		for _, e := range d {
			value := v[e]
			if value == "" {
				value = "none"
			}
			entry = protowire.AppendTag(entry[:0], 1, protowire.BytesType)
			entry = protowire.AppendString(entry, entries[e].key)
			entry = protowire.AppendTag(entry, 2, protowire.BytesType)
			entry = protowire.AppendString(entry, value)
			descriptor = protowire.AppendTag(descriptor, 1, protowire.BytesType)
			descriptor = protowire.AppendBytes(descriptor, entry)
		}
		buf = protowire.AppendTag(buf, 2, protowire.BytesType)
		buf = protowire.AppendBytes(buf, descriptor)
	}
	buf = protowire.AppendTag(buf, 3, protowire.VarintType)
	buf = protowire.AppendVarint(buf, 1)
	binary.BigEndian.PutUint32(buf[start+1:], uint32(len(buf)-start-frameHeader)) //nolint:gosec // bounded by Check
	return buf
}

// Overall codes of an answer.
const (
	codeOK        = 1
	codeOverLimit = 2
)

// Answer reads the answer to a question, framed for gRPC: whether there is room.
func Answer(p []byte) (room bool, err error) {
	if len(p) < frameHeader || p[0] != 0 || int(binary.BigEndian.Uint32(p[1:])) != len(p)-frameHeader {
		return false, errors.New("the answer is no message of gRPC, or is compressed")
	}
	code := uint64(0)
	for p = p[frameHeader:]; len(p) > 0; {
		number, kind, n := protowire.ConsumeTag(p)
		if n < 0 {
			return false, errors.New("the answer cannot be read")
		}
		p = p[n:]
		if number == 1 && kind == protowire.VarintType {
			if code, n = protowire.ConsumeVarint(p); n < 0 {
				return false, errors.New("the answer cannot be read")
			}
		} else if n = protowire.ConsumeFieldValue(number, kind, p); n < 0 {
			return false, errors.New("the answer cannot be read")
		}
		p = p[n:]
	}
	switch code {
	case codeOK:
		return true, nil
	case codeOverLimit:
		return false, nil
	}
	return false, fmt.Errorf("the answer has code %d, which is neither OK nor OVER_LIMIT", code)
}
