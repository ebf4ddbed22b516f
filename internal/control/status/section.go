package status

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Owned are the parts of a kind's status that the control plane writes.
// Everything else belongs to other controllers and stays as it is.
type Owned struct {
	// Conditions are the types that are owned in status.conditions.
	Conditions []string
	// Lists hold entries with conditions of their own.
	Lists []List
}

// List is a list in a status whose entries may belong to several controllers,
// such as status.parents of a route.
type List struct {
	Name string // of the field of status: parents, ancestors, listeners
	Key  string // of the field that tells entries apart: parentRef, ancestorRef, name
	// Controller is the controllerName of the entries that are owned; empty when
	// all entries are.
	Controller string
	// Max is how many entries the list takes, those of other controllers
	// included. Entries beyond it are left out.
	Max int
}

// Section is one part of a report: the status itself, or one entry of a list.
type Section struct {
	List string // name of a list of Owned; empty for the status itself
	Key  string // the value of the list's key field, from KeyOf
	// Conditions are in order; of several of one type the last counts.
	Conditions []Condition
	// Fields are set in addition to the conditions, such as attachedRoutes, or
	// addresses of the status itself. They are owned where they are set.
	Fields []Field
}

// Field is a field of a section.
type Field struct {
	Name string
	JSON string // its value, from KeyOf
}

// Equal reports whether two sections are the same.
func (s Section) Equal(o Section) bool {
	return s.List == o.List && s.Key == o.Key && slices.Equal(s.Conditions, o.Conditions) && slices.Equal(s.Fields, o.Fields)
}

// Condition returns the condition of a type.
func (s Section) Condition(typ string) (Condition, bool) {
	for _, c := range slices.Backward(s.Conditions) {
		if c.Type == typ {
			return c, true
		}
	}
	return Condition{}, false
}

// KeyOf returns the JSON of a value in one form: equal values have equal keys,
// whether they are Go structs or were read from JSON. It returns an empty
// string for what has no JSON form.
func KeyOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	var plain any
	if json.Unmarshal(b, &plain) != nil {
		return ""
	}
	b, _ = json.Marshal(plain) // sorts keys; it was JSON
	return string(b)
}

// value returns what a key or field was made of.
func value(key string) (v any) {
	_ = json.Unmarshal([]byte(key), &v) // made by KeyOf
	return v
}

// Report is what to write into the status of one generation of an object.
type Report struct {
	// UID is that of the object. A new object may have the name and the
	// generation of its predecessor, and none of the status written to it.
	UID        string
	Generation int64 // 0: conditions do not have it
	Owned      *Owned
	Sections   []Section
	// Written reports that the object had all of this when it was last seen.
	Written bool
	// Named reports that the object is labelled for this revision of the control
	// plane, so that no other one reads it.
	Named bool
}

// SaysAs reports whether two reports say the same of the same object.
func (r Report) SaysAs(o Report) bool {
	return r.UID == o.UID && r.Generation == o.Generation && slices.EqualFunc(r.Sections, o.Sections, Section.Equal)
}

// Equal reports whether two reports of one kind are the same.
func (r Report) Equal(o Report) bool {
	return r.Written == o.Written && r.Named == o.Named && r.SaysAs(o)
}

// Section returns the section of an entry; with empty arguments, that of the
// status itself.
func (r Report) Section(list, key string) (Section, bool) {
	for _, s := range r.Sections {
		if s.List == list && s.Key == key {
			return s, true
		}
	}
	return Section{}, false
}

// Seen is a condition as an object has it.
type Seen struct {
	Condition
	Generation int64
}

// SeenIn returns conditions as Kubernetes has them.
func SeenIn(list []metav1.Condition) (have []Seen) {
	for _, c := range list {
		have = append(have, Seen{Condition{Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message}, c.ObservedGeneration})
	}
	return have
}

// Entry is an entry of a list as an object has it; List and Key are those of a
// Section.
type Entry struct {
	List, Key  string
	Controller string // its controllerName, if it has one
	Conditions []Seen
	Fields     []Field
}

// State is a status as an object has it. Conditions and Fields are those of the
// status itself.
type State struct {
	Conditions []Seen
	Fields     []Field
	Entries    []Entry
}

// In reports whether a status has everything of the report, and nothing owned
// that is not in the report.
func (r Report) In(s State) bool {
	top, _ := r.Section("", "")
	if !says(top, r.Generation, s.Conditions, s.Fields, func(typ string) bool { return slices.Contains(r.Owned.Conditions, typ) }) {
		return false
	}
	for _, l := range r.Owned.Lists {
		if !r.listIn(l, s.Entries) {
			return false
		}
	}
	return true
}

func (r Report) listIn(l List, entries []Entry) bool {
	owned, foreign := 0, 0
	for i, e := range entries {
		switch {
		case e.List != l.Name:
			continue
		case l.Controller != "" && e.Controller != l.Controller:
			foreign++
			continue
		}
		again := slices.ContainsFunc(entries[:i], func(o Entry) bool {
			return o.List == e.List && o.Key == e.Key && o.Controller == e.Controller
		})
		s, wanted := r.Section(l.Name, e.Key)
		if again || !wanted || !says(s, r.Generation, e.Conditions, e.Fields, func(string) bool { return true }) {
			return false
		}
		owned++
	}
	wanted := 0
	for _, s := range r.Sections {
		if s.List == l.Name {
			wanted++
		}
	}
	return owned == wanted || l.Max > 0 && owned+foreign >= l.Max
}

// says reports whether conditions and fields are those of a section, among the
// types that are owned.
func says(s Section, generation int64, have []Seen, fields []Field, owned func(typ string) bool) bool {
	missing := 0
	for i, c := range s.Conditions {
		again := slices.ContainsFunc(s.Conditions[i+1:], func(o Condition) bool { return o.Type == c.Type })
		if owned(c.Type) && !again {
			missing++
		}
	}
	for _, h := range have {
		if !owned(h.Type) {
			continue
		}
		if c, wanted := s.Condition(h.Type); !wanted || c != h.Condition || generation != 0 && generation != h.Generation {
			return false
		}
		missing--
	}
	for _, f := range s.Fields {
		if !slices.Contains(fields, f) {
			return false
		}
	}
	return missing == 0
}
