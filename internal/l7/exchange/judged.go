package exchange

import (
	"slices"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// judged is the head of a request as its owner has got it. Edits of the request leave
// the bytes alone that it had, so only the list of fields is copied. done: it has been
// judged.
type judged struct {
	head message.Head
	done bool
}

func (j *judged) keep(h *message.Head) {
	fields := append(j.head.Fields[:0], h.Fields...) //nolint:gocritic // the room of the head before
	j.head = message.Head{
		Method: h.Method, Scheme: h.Scheme, Authority: h.Authority, Path: h.Path, Protocol: h.Protocol, Version: h.Version, Fields: fields,
	}
}

// fieldsKept bounds the list of fields that an exchange keeps for use again.
const fieldsKept = 64

func (j *judged) forget() {
	fields := j.head.Fields
	clear(fields[:cap(fields)])
	if cap(fields) > fieldsKept {
		fields = nil
	}
	*j = judged{head: message.Head{Fields: fields[:0]}}
}

// Owner returns who decides about the exchange.
func (x *Exchange) Owner() Owner { return x.owner }

// Recheck has judge look again at every request that is under way, as its owner got it
// first. One that is refused ends: by an answer, or, if that has begun, by a cut. One that
// waits for an external authorizer is judged by what is in force when it goes on.
func (e *Engine) Recheck(judge func(x *Exchange, h *message.Head) *reason.Error) {
	for _, x := range slices.Clone(e.live) {
		if !x.judged.done || x.done || x.check != nil {
			continue
		}
		if err := judge(x, &x.judged.head); err != nil {
			x.fail(err.Reason, err)
		}
	}
}
