package arrivals

import "github.com/ambit-mesh/ambit/internal/transport/tunnel"

const (
	// maxHello bounds a ClientHello with its records. Those of proxies have
	// about 300 bytes, with post-quantum keys 1,700.
	maxHello = 16 << 10

	recordHeader    = 5 // type, version, length (RFC 8446, 5.1)
	handshakeHeader = 4 // type, length (RFC 8446, 4)

	recordHandshake = 22
	clientHello     = 1
)

// helloState is how much of a ClientHello has arrived.
type helloState uint8

const (
	helloPartial  helloState = iota // so far it can become one
	helloComplete                   // all of it is there
	helloForeign                    // it is none, or one that is too long
)

// lookAtHello reports how much of a ClientHello p is. It may stand in several
// records. What is inside is not read.
func lookAtHello(p []byte) helloState {
	got := 0 // bytes of the handshake message
	var head [handshakeHeader]byte
	for at := 0; ; {
		rec := p[at:]
		if len(rec) > 0 && rec[0] != recordHandshake || len(rec) > 1 && rec[1] != 3 {
			return helloForeign
		}
		if len(rec) < recordHeader {
			return partial(p)
		}
		n := int(rec[3])<<8 | int(rec[4])
		if n == 0 || n > tunnel.MaxRecord {
			return helloForeign
		}
		body := rec[recordHeader:min(len(rec), recordHeader+n)]
		if got < handshakeHeader {
			copy(head[got:], body)
		}
		if got == 0 && len(body) > 0 && body[0] != clientHello {
			return helloForeign
		}
		got += len(body)
		if got >= handshakeHeader {
			need := handshakeHeader + (int(head[1])<<16 | int(head[2])<<8 | int(head[3]))
			if need > maxHello {
				return helloForeign
			}
			if got >= need {
				return helloComplete
			}
		}
		if len(body) < n {
			return partial(p)
		}
		at += recordHeader + n
	}
}

// partial is the state of a hello that is not complete in p.
func partial(p []byte) helloState {
	if len(p) >= maxHello {
		return helloForeign
	}
	return helloPartial
}
