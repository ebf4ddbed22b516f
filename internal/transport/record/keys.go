package record

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

const (
	nonceLen  = 12
	maxSecret = sha512.Size384
	// maxSent bounds what a Secrets keeps of what crypto/tls has sent. A handshake
	// that sends more is not taken over.
	maxSent = 64 << 10
)

// suite is what a cipher suite means here.
type suite struct {
	hash              func() hash.Hash
	keyLen, secretLen int
}

var (
	aes128 = &suite{sha256.New, 16, sha256.Size}
	aes256 = &suite{sha512.New384, 32, sha512.Size384}
)

func suiteOf(id uint16) *suite {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256:
		return aes128
	case tls.TLS_AES_256_GCM_SHA384:
		return aes256
	}
	return nil
}

// Secrets takes the traffic secrets of one connection from crypto/tls. It is the
// KeyLogWriter of a Config that is used for one handshake.
type Secrets struct {
	client, server secret
	sent           []byte // by crypto/tls
	excess         bool   // more than maxSent
}

type secret struct {
	b [maxSecret]byte
	n int // -1: there were several
}

// Write implements io.Writer for lines of the format NSS Key Log.
func (s *Secrets) Write(line []byte) (int, error) {
	label, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte{'\n'}), []byte{' '})
	_, value, _ := bytes.Cut(rest, []byte{' '})
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		s.client.set(value)
	case "SERVER_TRAFFIC_SECRET_0":
		s.server.set(value)
	}
	return len(line), nil
}

// set takes a secret. One that does not fit, and a second one, leave none.
func (s *secret) set(value []byte) {
	n := hex.DecodedLen(len(value))
	if s.n != 0 || n > len(s.b) {
		s.n = -1
		return
	}
	if _, err := hex.Decode(s.b[:], value); err != nil {
		n = -1
	}
	s.n = n
}

// Sent is called with everything that crypto/tls sends during the handshake.
func (s *Secrets) Sent(p []byte) {
	if s.excess = s.excess || len(s.sent)+len(p) > maxSent; !s.excess {
		s.sent = append(s.sent, p...)
	}
}

// Forget overwrites the secrets.
func (s *Secrets) Forget() {
	s.client, s.server = secret{n: -1}, secret{n: -1}
	s.sent, s.excess = nil, true
}

// unused reports whether crypto/tls has sent nothing under the key of out. When that
// cannot be found out, it is false.
func (s *Secrets) unused(out *half) bool {
	p, encrypted := s.sent, 0
	for len(p) >= HeaderLen {
		n := HeaderLen + int(binary.BigEndian.Uint16(p[3:]))
		if len(p) < n {
			break
		}
		if p[0] == typeApplication {
			encrypted++
			if _, err := out.aead.Open(p[HeaderLen:HeaderLen], out.next(), p[HeaderLen:n], p[:HeaderLen]); err == nil {
				return false
			}
			out.seq = 0
		}
		p = p[n:]
	}
	// A handshake without an encrypted record is none of TLS 1.3: not all was seen.
	return !s.excess && len(p) == 0 && encrypted > 0
}

// half is one direction with its present key.
type half struct {
	aead       cipher.AEAD
	suite      *suite
	seq        uint64
	generation uint64
	iv         [nonceLen]byte
	nonce      [nonceLen]byte // of the record at hand: a local one would be allocated
	secret     [maxSecret]byte
}

// set makes the key of a traffic secret.
func (h *half) set(s *suite, traffic *[maxSecret]byte) error {
	key, err := expand(s, traffic, "key", s.keyLen)
	if err != nil {
		return err
	}
	defer clear(key)
	iv, err := expand(s, traffic, "iv", nonceLen)
	if err != nil {
		return err
	}
	defer clear(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	*h = half{aead: aead, suite: s, iv: [nonceLen]byte(iv), nonce: [nonceLen]byte(iv), secret: *traffic}
	return nil
}

// updated returns the direction with its next key (RFC 8446, 7.2).
func (h *half) updated() (half, error) {
	var next half
	b, err := expand(h.suite, &h.secret, "traffic upd", h.suite.secretLen)
	if err != nil {
		return next, err
	}
	defer clear(b)
	var traffic [maxSecret]byte
	defer clear(traffic[:])
	copy(traffic[:], b)
	err = next.set(h.suite, &traffic)
	next.generation = h.generation + 1
	return next, err
}

// expand is HKDF-Expand-Label without context (RFC 8446, 7.1).
func expand(s *suite, traffic *[maxSecret]byte, label string, n int) ([]byte, error) {
	const prefix = "tls13 "
	info := binary.BigEndian.AppendUint16(make([]byte, 0, 32), uint16(n)) //nolint:gosec // it is short
	info = append(info, byte(len(prefix)+len(label)))                     //nolint:gosec // it is short
	info = append(append(append(info, prefix...), label...), 0)
	return hkdf.Expand(s.hash, traffic[:s.secretLen], string(info), n)
}

// next returns the nonce of the next record, and counts the record (RFC 8446, 5.3). A
// count of 64 bits does not end: a key changes, or its peer is asked for that, long
// before.
func (h *half) next() []byte {
	binary.BigEndian.PutUint64(h.nonce[nonceLen-8:], binary.BigEndian.Uint64(h.iv[nonceLen-8:])^h.seq)
	h.seq++
	return h.nonce[:]
}
