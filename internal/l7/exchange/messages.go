package exchange

import (
	"encoding/binary"
	"time"
)

// frames finds the messages of gRPC in a body: each has a byte of flags, its length in
// four bytes, and that many bytes more.
type frames struct {
	head [5]byte
	have uint8  // bytes of head
	left uint32 // bytes of the message that have not come
}

// count returns how many messages begin in the next bytes of the body. A message has
// begun once its length is complete.
func (f *frames) count(p []byte) (n uint64) {
	for len(p) > 0 {
		if f.left > 0 {
			skip := min(int64(len(p)), int64(f.left))
			f.left -= uint32(skip)
			p = p[skip:]
			continue
		}
		took := copy(f.head[f.have:], p)
		p = p[took:]
		if f.have += uint8(took); f.have == uint8(len(f.head)) {
			f.have, f.left = 0, binary.BigEndian.Uint32(f.head[1:])
			n++
		}
	}
	return n
}

// progressTime is how often the messages of a call that goes on are reported, Istio's
// reportingInterval.
const progressTime = 5 * time.Second

// progress reports the messages of a call that goes on.
func (x *Exchange) progress() {
	now := x.engine.loop.Now()
	if !x.responded || now.Sub(x.reported) < progressTime || x.Messages == (Messages{}) {
		return
	}
	x.owner.Progress(x)
	x.reported, x.Messages = now, Messages{}
}
