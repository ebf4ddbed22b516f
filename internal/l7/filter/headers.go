package filter

import (
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// edit changes fields: set, then add, then remove. An edit may be nil.
func edit(h *message.Head, e *route.HeaderEdit) {
	if e == nil {
		return
	}
	for i := range e.Set {
		h.Set(message.NewKey(e.Set[i].Name), []byte(e.Set[i].Value))
	}
	for i := range e.Add {
		add(h, message.NewKey(e.Add[i].Name), e.Add[i].Value)
	}
	for _, name := range e.Remove {
		h.Remove(message.NewKey(name))
	}
}

// add appends a value to the field of this name, behind a comma, so that programs
// that look at one field see all of them. Set-Cookie cannot be joined.
func add(h *message.Head, k message.Key, value string) {
	i := h.Find(k, 0)
	if i < 0 || h.Fields[i].ID == message.SetCookie {
		h.Add(k, []byte(value))
		return
	}
	h.Append(i, value)
}

func ruleRequest(c *Call) Verdict {
	edit(c.Request, c.Rule.Rule.Filters.Request)
	return Continue
}

func ruleResponse(c *Call) { edit(c.Response, c.Rule.Rule.Filters.Response) }
