// Package traffic reads what programs in pods print and serve: the reports of test/echo's
// load client, the answers of its servers, the responses that its client got, and metrics.
package traffic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Report is what the load client counts: of one second, or in the end of all requests.
type Report struct {
	Final  bool      `json:"final,omitempty"`
	Time   time.Time `json:"time"`
	Sent   int       `json:"sent"`
	OK     int       `json:"ok"`
	Failed int       `json:"failed"`
	// Times that requests took, in microseconds from when each was due. Of the last
	// report, P50 and P99 are the medians of all seconds.
	P50    int64          `json:"p50us"`
	P99    int64          `json:"p99us"`
	Max    int64          `json:"maxus"`
	Errors map[string]int `json:"errors,omitempty"`
	// First are the first error of each kind, with its time and addresses; of the last
	// report.
	First []string `json:"first,omitempty"`
}

// Clean returns an error unless requests were answered and none failed.
func (r Report) Clean() error {
	if r.Failed == 0 && r.OK > 0 {
		return nil
	}
	return fmt.Errorf("of %d requests, %d were answered and %d failed: %v\nthe first of each kind:\n%s", r.Sent, r.OK, r.Failed, r.Errors, strings.Join(r.First, "\n"))
}

// Decoder reads the reports of a load client.
type Decoder struct {
	d        *json.Decoder
	p50, p99 []int64 // of each second
}

// Reports returns a decoder of what a load client prints.
func Reports(r io.Reader) *Decoder { return &Decoder{d: json.NewDecoder(r)} }

// Next returns the next report, or io.EOF.
func (d *Decoder) Next() (Report, error) {
	var r Report
	if err := d.d.Decode(&r); err != nil {
		return r, err
	}
	if !r.Final {
		d.p50, d.p99 = append(d.p50, r.P50), append(d.p99, r.P99)
	} else if n := len(d.p50); n > 0 {
		slices.Sort(d.p50)
		slices.Sort(d.p99)
		r.P50, r.P99 = d.p50[n/2], d.p99[n/2]
	}
	return r, nil
}

// All returns the reports that are left.
func (d *Decoder) All() (all []Report, err error) {
	for {
		r, err := d.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, err
		}
		all = append(all, r)
	}
}

// Total adds the reports of seconds.
func Total(reports []Report) Report {
	sum := Report{Errors: map[string]int{}}
	for _, r := range reports {
		if r.Final {
			continue
		}
		sum.Sent, sum.OK, sum.Failed = sum.Sent+r.Sent, sum.OK+r.OK, sum.Failed+r.Failed
		sum.P50, sum.P99, sum.Max = r.P50, r.P99, max(sum.Max, r.Max)
		for text, n := range r.Errors {
			sum.Errors[text] += n
		}
	}
	return sum
}

// Answer is the first line of what a server answers: who it is, and the caller that it saw.
type Answer struct {
	Name   string
	Caller netip.Addr
}

// ParseAnswer reads the first line of an answer.
func ParseAnswer(body string) (Answer, error) {
	f := strings.Fields(body)
	if len(f) < 3 || f[1] != "answers" {
		return Answer{}, fmt.Errorf("the answer is %q", body)
	}
	caller, err := netip.ParseAddr(f[2])
	return Answer{Name: f[0], Caller: caller.Unmap()}, err
}

// Response is what `echo get -json` prints of each request.
type Response struct {
	Status int         `json:"status,omitempty"`
	Header http.Header `json:"header,omitempty"`
	Body   string      `json:"body,omitempty"`
	// Error is why there was no response.
	Error string `json:"error,omitempty"`
}

// Answer reads the answer of a response with status 200.
func (r Response) Answer() (Answer, error) {
	if r.Error != "" {
		return Answer{}, errors.New(r.Error)
	}
	if r.Status != http.StatusOK {
		return Answer{}, fmt.Errorf("status %d: %s", r.Status, r.Body)
	}
	return ParseAnswer(r.Body)
}

// Request returns the headers that the server got, which it answers to paths that end with
// /headers.
func (r Response) Request() (http.Header, error) {
	if _, err := r.Answer(); err != nil {
		return nil, err
	}
	_, text, _ := strings.Cut(r.Body, "\n")
	h := http.Header{}
	return h, json.Unmarshal([]byte(text), &h)
}

// Bytes is what `echo bytes` prints of each connection: the bytes that came back, in
// hexadecimal, and whether the server ended it then.
type Bytes struct {
	Got   string `json:"got"`
	Ended bool   `json:"ended,omitempty"`
	Error string `json:"error,omitempty"`
}

// Responses reads what `echo get -json` has printed.
func Responses(text string) ([]Response, error) { return lines[Response](text) }

// AllBytes reads what `echo bytes` has printed.
func AllBytes(text string) ([]Bytes, error) { return lines[Bytes](text) }

func lines[T any](text string) (all []T, err error) {
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var r T
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, fmt.Errorf("%w: %q", err, text)
		}
		all = append(all, r)
	}
}
