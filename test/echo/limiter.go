package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
)

// limiter is a rate limit service. A domain is NAME-N: each descriptor may have N, ever. Of
// the domain slow-N it answers late, and of broken-N with an error. It prints a line for each
// question.
type limiter struct {
	ratelimitv3.UnimplementedRateLimitServiceServer

	mu   sync.Mutex
	used map[string]int
}

// ShouldRateLimit implements envoy.service.ratelimit.v3.RateLimitService.
func (l *limiter) ShouldRateLimit(ctx context.Context, q *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	if err := q.ValidateAll(); err != nil {
		return nil, err
	}
	name, number, _ := strings.Cut(q.GetDomain(), "-")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil:
		return nil, err
	case name == "broken":
		return nil, errors.New("it is broken")
	case name == "slow":
		select {
		case <-time.After(slowly):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	out := &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OK}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range q.GetDescriptors() {
		text := q.GetDomain()
		for _, e := range d.GetEntries() {
			text += " " + e.GetKey() + "=" + e.GetValue()
		}
		fmt.Println("asked about", text)
		if l.used[text] += int(max(q.GetHitsAddend(), 1)); l.used[text] > n {
			out.OverallCode = ratelimitv3.RateLimitResponse_OVER_LIMIT
		}
	}
	return out, nil
}

func serveLimiter(l net.Listener) error {
	s := grpc.NewServer()
	ratelimitv3.RegisterRateLimitServiceServer(s, &limiter{used: map[string]int{}})
	return s.Serve(l)
}
