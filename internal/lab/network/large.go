package network

import (
	"errors"

	"github.com/ambit-mesh/ambit/internal/sys/links"
)

// largest is how many bytes may pass an interface of the lab's network as one packet,
// when packets are large: the kernel's bound of a network without hardware is 512 KiB.
const largest = 256 << 10

// Enlarge lets packets on the interfaces that a namespace has now be large.
func (s *Space) Enlarge() error { return Enlarge(s.Links) }

// Enlarge lets packets on the interfaces of a namespace be large.
func Enlarge(l *links.Links) error {
	all, err := l.Interfaces()
	for _, i := range all {
		set := i.Sizes
		for _, size := range []*uint32{&set.GSO, &set.GRO, &set.GSOIPv4, &set.GROIPv4} {
			if *size > 0 && *size < largest && i.Limit >= largest {
				*size = largest
			}
		}
		err = errors.Join(err, l.SetSizes(i.Index, set))
	}
	return err
}
