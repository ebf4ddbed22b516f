package extauthz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	extauthzpb "github.com/ambit-mesh/ambit/api/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Outcome is what came of a question.
type Outcome uint8

// The outcomes. The zero value lets nothing pass.
const (
	// Invalid: there is an answer, and it cannot be read or applied.
	Invalid Outcome = iota
	Allowed
	Denied
	// Failed: the authorizer could not be asked, or reports a failure of its own.
	Failed
	// Opened: it failed, and fails open.
	Opened
)

// String returns the outcome as it is counted.
func (o Outcome) String() string {
	return [...]string{"error", "allowed", "denied", "error", "fail_open"}[min(o, Opened)]
}

// Verdict is what an answer means.
type Verdict struct {
	Outcome Outcome
	Err     error // of Failed and Invalid
	// Of Denied: what the client gets.
	Status int
	Reply  []Edit
	Body   []byte
	// Of Allowed: what is changed of the request, and of the response.
	Request, Response []Edit
	setParams         [][2]string
	removeParams      []string
	// Metadata is that of the answer; of Allowed and Denied.
	Metadata *Metadata
}

// Edit changes a header.
type Edit struct {
	how   how
	key   message.Key
	value []byte
}

type how uint8

const (
	set      how = iota // in place of all others
	add                 // beside others
	join                // behind a comma
	ifAbsent            // without others
	replace             // in place of others, if there are any
	remove
)

// Bounds of an answer.
const (
	// MaxReply bounds the body of an answer by HTTP, MaxMessage a message of gRPC.
	MaxReply   = 64 << 10
	MaxMessage = 256 << 10
	maxEdits   = 256
	// maxQuery bounds the path and query that an answer makes.
	maxQuery = 16 << 10
)

// Limit returns how many bytes of a body an answer may have.
func (p *Provider) Limit() int {
	if p.GRPC {
		return MaxMessage
	}
	return MaxReply
}

// Answer is what an authorizer has sent.
type Answer struct {
	Head     *message.Head
	Trailers *message.Head // nil without any
	Body     []byte
	// Cut: the body is larger than Limit, and what is more was dropped.
	Cut bool
}

func failed(format string, args ...any) Verdict {
	return Verdict{Outcome: Failed, Err: fmt.Errorf(format, args...)}
}

func invalid(format string, args ...any) Verdict {
	return Verdict{Outcome: Invalid, Err: fmt.Errorf(format, args...)}
}

// Read returns what an answer means.
func (p *Provider) Read(a *Answer) Verdict {
	if p.GRPC {
		return p.readGRPC(a)
	}
	return p.readHTTP(a)
}

// readHTTP reads an answer by HTTP: 200 allows, 5xx is a failure, all else denies.
func (p *Provider) readHTTP(a *Answer) Verdict {
	h := a.Head
	switch {
	case h.Status == 200:
		v := Verdict{Outcome: Allowed}
		for i := range h.Fields {
			f := &h.Fields[i]
			name := strings.ToLower(string(f.Name))
			if Reserved(name) {
				continue // each answer has some that only frame it
			}
			if p.toUpstream.has(f.Name, false) || p.allToUpstream && !describes(name, f.ID) {
				v.Request = append(v.Request, Edit{pick(v.Request, name, f.ID), message.NewKey(name), clone(f.Value)})
			}
			if p.toClientOnAllow.has(f.Name, false) {
				v.Response = append(v.Response, Edit{pick(v.Response, name, f.ID), message.NewKey(name), clone(f.Value)})
			}
		}
		return v
	case h.Status >= 500 || h.Status < 200:
		return failed("it answered with status %d", h.Status)
	}
	v := Verdict{Outcome: Denied, Status: h.Status, Body: a.Body}
	if a.Cut || h.Status == 204 || h.Status == 304 {
		v.Body = nil
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		if Reserved(f.Name) || len(p.toClientDeny) > 0 && !p.toClientDeny.has(f.Name, false) && !always(f) {
			continue
		}
		if v.Body == nil && (f.ID == message.ContentType || f.ID == message.ContentEncoding) {
			continue
		}
		v.Reply = append(v.Reply, Edit{add, message.NewKey(strings.ToLower(string(f.Name))), clone(f.Value)})
	}
	return v
}

// always reports whether a header goes with every denial.
func always(f *message.Field) bool {
	return f.ID == message.Location || f.ID == message.ContentType || f.ID == message.ContentEncoding || keyAuthenticate.Is(f)
}

var keyAuthenticate = message.NewKey("www-authenticate")

// pick has the first value of a name replace those of the client, and more follow it.
func pick(before []Edit, name string, id message.Name) how {
	for i := range before {
		if before[i].key.String() == name {
			if id == message.Cookie || id == message.SetCookie {
				return add
			}
			return join
		}
	}
	return set
}

func clone(b []byte) []byte { return append([]byte(nil), b...) }

var (
	errCompressed = errors.New("its message is compressed, which was not asked for")
	errFrame      = errors.New("its answer is not one message of gRPC")
	errNothing    = errors.New("its answer neither allows nor denies")
)

// readGRPC reads an answer by gRPC.
func (p *Provider) readGRPC(a *Answer) Verdict {
	switch {
	case a.Cut:
		return invalid("its message is larger than %d bytes", MaxMessage)
	case a.Head.Status != 200:
		return failed("it answered with status %d and not by gRPC", a.Head.Status)
	}
	code := a.Head.Get(message.GRPCStatus)
	if code == nil && a.Trailers != nil {
		code = a.Trailers.Get(message.GRPCStatus)
	}
	if code == nil {
		return failed("its answer has no status of gRPC")
	}
	if n, err := strconv.Atoi(string(code)); err != nil || n != 0 {
		return failed("it answered with status %q of gRPC", code)
	}
	b := a.Body
	switch {
	case len(b) < frameHead:
		return Verdict{Err: errFrame}
	case b[0] != 0:
		return Verdict{Err: errCompressed}
	case uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-frameHead):
		return Verdict{Err: errFrame}
	}
	pb := &extauthzpb.CheckResponse{}
	if err := proto.Unmarshal(b[frameHead:], pb); err != nil {
		return invalid("its message is no CheckResponse: %w", err)
	}
	return interpret(pb)
}

// interpret returns what a message means. A status that is missing is one of 0, but an
// answer without anything is none.
func interpret(pb *extauthzpb.CheckResponse) Verdict {
	if e := pb.GetErrorResponse(); e != nil {
		return failed("it reports a failure of its own, with status %d", e.GetStatus().GetCode())
	}
	metadata, err := NewMetadata(pb.GetDynamicMetadata())
	if pb.GetStatus().GetCode() != 0 {
		v := denial(pb.GetDeniedResponse())
		v.Metadata = metadata // nil when it cannot be used: the denial stands
		return v
	}
	if err != nil {
		return Verdict{Err: err}
	}
	if pb.GetDeniedResponse() != nil || pb.Status == nil && pb.GetOkResponse() == nil {
		return Verdict{Err: errNothing}
	}
	ok := pb.GetOkResponse()
	v := Verdict{Outcome: Allowed, Metadata: metadata, removeParams: ok.GetQueryParametersToRemove()}
	if len(ok.GetHeaders())+len(ok.GetHeadersToRemove())+len(ok.GetResponseHeadersToAdd())+len(ok.GetQueryParametersToSet())+len(v.removeParams) > maxEdits {
		return invalid("it makes more than %d changes", maxEdits)
	}
	for _, name := range ok.GetHeadersToRemove() {
		name = strings.ToLower(name)
		if _, fault := message.CheckName(name); fault != nil || Reserved(name) {
			return invalid("it removes header %q, which it may not", name)
		}
		v.Request = append(v.Request, Edit{how: remove, key: message.NewKey(name)})
	}
	for _, o := range ok.GetHeaders() {
		e, err := edit(o)
		if err != nil {
			return Verdict{Err: err}
		}
		v.Request = append(v.Request, e)
	}
	for _, o := range ok.GetResponseHeadersToAdd() {
		e, err := edit(o)
		if err != nil {
			return Verdict{Err: err}
		}
		if o.Append == nil { // the action counts
			e.how = [...]how{add, ifAbsent, set, replace}[min(uint32(o.GetAppendAction()), 3)]
		} else if e.how == join {
			e.how = add
		}
		v.Response = append(v.Response, e)
	}
	for _, q := range ok.GetQueryParametersToSet() {
		v.setParams = append(v.setParams, [2]string{string(q.GetKey()), string(q.GetValue())})
	}
	return v
}

// edit reads a change of a header, or returns why it cannot be made.
func edit(o *extauthzpb.HeaderValueOption) (Edit, error) {
	name, value := strings.ToLower(string(o.GetHeader().GetKey())), o.GetHeader().GetValue()
	if len(value) == 0 {
		value = o.GetHeader().GetRawValue()
	}
	if _, fault := message.CheckName(name); fault != nil || Reserved(name) {
		return Edit{}, fmt.Errorf("it sets header %q, which it may not", name)
	}
	if message.CheckValue(value) != nil || len(message.Trim(value)) != len(value) {
		return Edit{}, fmt.Errorf("it sets header %q to what no header can have", name)
	}
	e := Edit{set, message.NewKey(name), value}
	if o.GetAppend().GetValue() {
		e.how = join
	}
	return e, nil
}

// denial returns a denial. What a client cannot get of it is left out.
func denial(pb *extauthzpb.DeniedResponse) Verdict {
	v := Verdict{Outcome: Denied, Status: int(pb.GetStatus().GetCode()), Body: pb.GetBody()}
	if v.Status < 200 || v.Status > 599 {
		v.Status = 403
	}
	if v.Status == 204 || v.Status == 304 {
		v.Body = nil
	}
	for i, o := range pb.GetHeaders() {
		if e, err := edit(o); err == nil && i < maxEdits {
			e.how = add
			v.Reply = append(v.Reply, e)
		}
	}
	return v
}

// describes reports whether a header is about an answer, or for the client of it: it says
// nothing about the request that was asked about.
func describes(name string, id message.Name) bool {
	return strings.HasPrefix(name, "content-") || id == message.Date || id == message.Server || name == "set-cookie"
}

// kept are headers that Strip leaves: what authenticates a client to a program is the
// client's own, and the others are what the gateway has written.
var kept = [...]message.Name{message.Authorization, message.Cookie, message.XForwardedFor, message.XForwardedProto, message.XRequestID}

// Strip removes from a request the headers that only the authorizer gives.
func (p *Provider) Strip(h *message.Head) {
	if len(p.toUpstream) == 0 {
		return
	}
	h.RemoveFunc(func(_ int, f *message.Field) bool {
		return p.toUpstream.has(f.Name, true) && !slices.Contains(kept[:], f.ID) && !Reserved(f.Name)
	})
}

// Apply changes the request that was allowed. An error is why that cannot be done.
func (v *Verdict) Apply(h *message.Head) error {
	if len(v.setParams)+len(v.removeParams) > 0 {
		path, err := v.query(h.Path)
		if err != nil {
			return err
		}
		h.SetPath(path)
	}
	Edits(h, v.Request)
	return nil
}

// Edits changes headers.
func Edits(h *message.Head, all []Edit) {
	for i := range all {
		e := &all[i]
		at := h.Find(e.key, 0)
		switch {
		case e.how == remove:
			removeSimilar(h, e.key.String())
		case e.how == set:
			removeSimilar(h, e.key.String())
			h.Add(e.key, e.value)
		case e.how == add, e.how == ifAbsent && at < 0, e.how == join && at < 0:
			h.Add(e.key, e.value)
		case e.how == join:
			h.Append(at, string(e.value))
		case e.how == replace && at >= 0:
			h.Set(e.key, e.value)
		}
	}
}

// removeSimilar removes the headers that a program may take for the one of this name.
func removeSimilar(h *message.Head, name string) {
	one := patterns{{exact, name}}
	h.RemoveFunc(func(_ int, f *message.Field) bool { return one.has(f.Name, true) })
}

var errQuery = errors.New("it makes a query that is too long")

// query returns a path whose query has the changes: what is set comes last.
func (v *Verdict) query(path []byte) ([]byte, error) {
	before, query, _ := strings.Cut(string(path), "?")
	gone := func(part string) bool {
		name, _, _ := strings.Cut(part, "=")
		if plain, err := url.QueryUnescape(name); err == nil {
			name = plain
		}
		for _, s := range v.setParams {
			if s[0] == name {
				return true
			}
		}
		for _, r := range v.removeParams {
			if r == name {
				return true
			}
		}
		return false
	}
	var parts []string
	for part := range strings.SplitSeq(query, "&") {
		if part != "" && !gone(part) {
			parts = append(parts, part)
		}
	}
	for _, s := range v.setParams {
		parts = append(parts, url.QueryEscape(s[0])+"="+url.QueryEscape(s[1]))
	}
	out := before
	if len(parts) > 0 {
		out += "?" + strings.Join(parts, "&")
	}
	if len(out) > max(maxQuery, len(path)) {
		return nil, errQuery
	}
	return []byte(out), nil
}
