//go:build !race

package codec

const poison = false

func (s *h2Stream) check(bool) {}
