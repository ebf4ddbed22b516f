// Package verdict is what a proxy answers at /explain: a question describes a connection
// or a request that does not exist, and the verdict is what the proxy would do with it.
// The command line asks one proxy after the other.
package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Path is where proxies answer, on their admin address.
const Path = "/explain"

// Names of steps.
const (
	StepCapture     = "capture"
	StepDestination = "destination"
	StepEndpoint    = "endpoint"
	StepTunnel      = "tunnel"
	StepProtocol    = "protocol"
	StepRoute       = "route"
	StepFilter      = "filter"
	StepBackend     = "backend"
	StepPolicy      = "policy"
	StepWaypoint    = "waypoint"
)

// Step is one decision.
type Step struct {
	Step string `json:"step"`
	Says string `json:"says"`
	// Object is what the decision comes from, as kind and namespace/name. Rule is the
	// part of it.
	Object string `json:"object,omitempty"`
	Rule   string `json:"rule,omitempty"`
	// Decides is true when this step allows or refuses.
	Decides bool `json:"decides,omitempty"`
}

// Kinds of Next.To.
const (
	ToWaypoint = "waypoint" // a waypoint: its own verdict follows
	ToPod      = "pod"      // a pod: the verdict of its node's proxy follows
	ToProgram  = "program"  // the program of the pod
	ToOutside  = "outside"  // an address that no proxy of this mesh decides about
	ToAnswer   = "answer"   // the proxy answers itself
)

// Next is where the connection goes from a proxy, as the next proxy sees it.
type Next struct {
	To        string `json:"to"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Node      string `json:"node,omitempty"`
	UID       string `json:"uid,omitempty"`
	// Tunnel: the connection goes through HBONE.
	Tunnel bool `json:"tunnel,omitempty"`
	// Authority is the address or name that is asked for there, with the port.
	Authority string `json:"authority,omitempty"`
	// Identity and Source are those that the next proxy sees.
	Identity string `json:"identity,omitempty"`
	Source   string `json:"source,omitempty"`
	// Host is the service that was called.
	Host string `json:"host,omitempty"`
	// Hops is how many waypoints have sent it on, Request what the next one is sent.
	Hops    int      `json:"hops,omitempty"`
	Request *Request `json:"request,omitempty"`
}

// Request is the head of a request between two waypoints.
type Request struct {
	Method  string   `json:"method"`
	Host    string   `json:"host"`
	Path    string   `json:"path"`
	Headers []Header `json:"headers,omitempty"`
}

// Verdict is what one proxy would do.
type Verdict struct {
	// Role is client, waypoint or destination.
	Role    string `json:"role"`
	Steps   []Step `json:"steps"`
	Allowed bool   `json:"allowed"`
	// Reason is of the closed set, OK when allowed. Detail says more.
	Reason string `json:"reason"`
	Detail string `json:"detail,omitempty"`
	// Status is the answer of HTTP that the client gets; 0 without one.
	Status int `json:"status,omitempty"`
	// GRPC is the status of gRPC in the answer; 0 without one.
	GRPC int   `json:"grpcStatus,omitempty"`
	Next *Next `json:"next,omitempty"`
	// Captured: a node proxy carries the connections of the pod.
	Captured bool `json:"captured,omitempty"`
	// HTTP: the proxy reads the requests of the connection.
	HTTP bool `json:"http,omitempty"`
	// Service and Port were called, as the proxy found them.
	Service string         `json:"service,omitempty"` // namespace/hostname
	Called  netip.AddrPort `json:"called,omitzero"`
}

// Roles.
const (
	RoleClient      = "client"
	RoleWaypoint    = "waypoint"
	RoleDestination = "destination"
)

// New returns a verdict that allows.
func New(role string) *Verdict {
	return &Verdict{Role: role, Allowed: true, Reason: reason.OK.String(), Steps: []Step{}}
}

// Add adds a step that something was found by.
func (v *Verdict) Add(step, says string) { v.Steps = append(v.Steps, Step{Step: step, Says: says}) }

// LastDecides leaves, of the steps that decide, only the last: what an earlier one has
// allowed does not matter when a later one refuses.
func (v *Verdict) LastDecides() {
	last := true
	for i := len(v.Steps) - 1; i >= 0; i-- {
		s := &v.Steps[i]
		s.Decides, last = s.Decides && last, last && !s.Decides
	}
}

// Refuse makes the verdict a refusal.
func (v *Verdict) Refuse(err *reason.Error) *Verdict {
	v.LastDecides()
	v.Allowed, v.Reason, v.Detail, v.Next = false, err.Reason.String(), err.Error(), nil
	return v
}

// Errors of questions.
var (
	ErrQuestion = errors.New("bad question")
	ErrUnknown  = errors.New("not found")
	// ErrDirection is of a question to a node proxy.
	ErrDirection = fmt.Errorf("%w: direction: there are outbound and inbound", ErrQuestion)
)

// Handler answers GET. It changes nothing, as a request for /config_dump does.
func Handler(answer func(context.Context, Question) (*Verdict, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		values, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		q, err := Parse(values)
		var v *Verdict
		if err == nil {
			v, err = answer(r.Context(), q)
		}
		switch {
		case errors.Is(err, ErrQuestion):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case errors.Is(err, ErrUnknown):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/json")
			e := json.NewEncoder(w)
			e.SetIndent("", "  ")
			_ = e.Encode(v) // the status is sent
		}
	})
}

// Count writes a number of things, such as "1 policy is".
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
