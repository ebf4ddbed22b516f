package main

import (
	"context"
	"errors"
)

func scale(ctx context.Context, o options, dir string) (*report, error) {
	return nil, errors.New("not yet")
}
