package record

import (
	"crypto/tls"
	"strconv"
	"testing"
)

// BenchmarkSend has this package beside crypto/tls: n bytes that were read somewhere
// become records in a buffer.
func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1 << 10, MaxPlain, 16 * MaxPlain} {
		b.Run("record/"+strconv.Itoa(n), func(b *testing.B) {
			c, _ := mirror(b, tls.TLS_AES_128_GCM_SHA256)
			buf := make([]byte, Len(n))
			slots := Slots(nil, buf, 0, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				slots = Slots(slots[:0], buf, 0, n)
				c.Seal(buf, n)
			}
		})
		b.Run("tls/"+strconv.Itoa(n), func(b *testing.B) {
			_, w, far := pair(b, true)
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := far.Write(p); err != nil {
					b.Fatal(err)
				}
				w.in.b = w.in.b[:0]
			}
		})
	}
}

// BenchmarkReceive is the same for what arrives.
func BenchmarkReceive(b *testing.B) {
	for _, n := range []int{1 << 10, MaxPlain, 16 * MaxPlain} {
		b.Run("record/"+strconv.Itoa(n), func(b *testing.B) {
			c, peer := mirror(b, tls.TLS_AES_128_GCM_SHA256)
			buf := make([]byte, Len(n))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c.Seal(buf, n)
				b.StartTimer()
				if _, _, err := peer.Open(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("tls/"+strconv.Itoa(n), func(b *testing.B) {
			c, w, far := pair(b, true)
			buf, plain := make([]byte, Len(n)), make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c.Seal(buf, n)
				w.out.b = append(w.out.b[:0], buf...)
				b.StartTimer()
				for k := 0; k < n; {
					m, err := far.Read(plain[k:])
					if err != nil {
						b.Fatal(err)
					}
					k += m
				}
			}
		})
	}
}
