package main

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

// response is what a simulated node looks at of a DeltaDiscoveryResponse. It
// is read without making objects of it: two hundred clients that decoded the
// whole mesh would be most of what is measured.
type response struct {
	typeURL, nonce string
	partial        bool // continued in the next
	resources      int
	removed        int
}

// The numbers of the fields that are read.
const (
	fieldInfo, fieldResources, fieldType, fieldNonce, fieldRemoved = 1, 2, 4, 5, 6

	fieldResourceVersion, fieldResourceBody, fieldResourceName = 1, 2, 3
	fieldAnyValue                                              = 2
)

var errWire = errors.New("not a discovery response")

// readResponse reads a message and calls each with every resource in it, which
// belongs to the message.
func readResponse(msg []byte, each func(resource) error) (response, error) {
	var r response
	err := fields(msg, func(num protowire.Number, v []byte) error {
		switch num {
		case fieldInfo:
			r.partial = string(v) == "partial"
		case fieldType:
			r.typeURL = string(v)
		case fieldNonce:
			r.nonce = string(v)
		case fieldRemoved:
			r.removed++
		case fieldResources:
			r.resources++
			return readResource(v, each)
		default: // not of interest
		}
		return nil
	})
	return r, err
}

// resource is a part of a message.
type resource struct{ name, version, body []byte }

func readResource(msg []byte, each func(resource) error) error {
	var r resource
	err := fields(msg, func(num protowire.Number, v []byte) error {
		switch num {
		case fieldResourceVersion:
			r.version = v
		case fieldResourceName:
			r.name = v
		case fieldResourceBody:
			return fields(v, func(num protowire.Number, v []byte) error {
				if num == fieldAnyValue {
					r.body = v
				}
				return nil
			})
		default: // not of interest
		}
		return nil
	})
	if err != nil {
		return err
	}
	return each(r)
}

// fields calls f with every field that has a length; others are skipped.
func fields(msg []byte, f func(protowire.Number, []byte) error) error {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return errWire
		}
		msg = msg[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, msg); n < 0 {
				return errWire
			}
			msg = msg[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(msg)
		if n < 0 {
			return errWire
		}
		if err := f(num, v); err != nil {
			return err
		}
		msg = msg[n:]
	}
	return nil
}

// healthIs reports whether a resource is a workload of that health.
func healthIs(body []byte, healthy bool) (bool, error) {
	var a workloadpb.Address
	if err := proto.Unmarshal(body, &a); err != nil {
		return false, fmt.Errorf("a resource that is no address: %w", err)
	}
	w := a.GetWorkload()
	if w == nil {
		return false, errors.New("a resource that is no workload")
	}
	return (w.Status == workloadpb.WorkloadStatus_HEALTHY) == healthy, nil
}
