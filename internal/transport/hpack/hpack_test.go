package hpack

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"unsafe"

	oracle "golang.org/x/net/http2/hpack"
)

const (
	testTable = 4096
	testLong  = 1 << 14
)

// read decodes a block as a connection does, and returns copies of the fields.
func read(d *Decoder, block []byte, s *Scratch) (fields []Field, err error) {
	rest, err := d.Begin(block, s)
	for err == nil && len(rest) > 0 {
		var f Field
		if f, rest, err = d.Next(rest, true); err == nil {
			fields = append(fields, f)
		}
	}
	for i := range fields {
		fields[i].Name, fields[i].Value = strings.Clone(fields[i].Name), strings.Clone(fields[i].Value)
	}
	return fields, err
}

// The same static table and the same codes as another implementation has.
func TestTablesAreTheOnesOfTheProtocol(t *testing.T) {
	for i := range static {
		d := oracle.NewDecoder(testTable, nil)
		f, err := d.DecodeFull([]byte{indexed | byte(i+1)})
		if err != nil || f[0].Name != static[i].Name || f[0].Value != static[i].Value {
			t.Errorf("entry %d: %v and %v, %v", i+1, static[i], f, err)
		}
	}
	for b := range 256 {
		s := strings.Repeat(string([]byte{byte(b)}), 3)
		code := oracle.AppendHuffmanString(nil, s)
		if got := appendCoded(nil, s); !bytes.Equal(got, code) || codedLen(s) != len(code) {
			t.Errorf("byte %d: code %x instead of %x", b, got, code)
		}
		if got, err := appendDecoded(nil, code, 10); err != nil || string(got) != s {
			t.Errorf("byte %d: read as %q, %v", b, got, err)
		}
	}
}

func same(a, b string) bool { return unsafe.StringData(a) == unsafe.StringData(b) }

func randomField(r *rand.Rand) Field {
	names := []string{":path", ":status", "accept", "x-request-id", "cookie", "x-" + strings.Repeat("n", r.IntN(60)), "user-agent"}
	f := Field{Name: names[r.IntN(len(names))], Sensitive: r.IntN(5) == 0}
	switch r.IntN(4) {
	case 0:
		f.Value = []string{"/", "200", "gzip, deflate", "a", ""}[r.IntN(5)]
	case 1:
		b := make([]byte, r.IntN(80))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Value = string(b)
	case 2:
		f.Value = strings.Repeat("v", r.IntN(5000))
	case 3:
		f.Value = strings.Repeat("ab1", r.IntN(4))
	}
	return f
}

// What is written is what another implementation reads, and the other way round, over many
// blocks of one connection whose table changes its size.
func TestBlocksAgreeWithAnotherImplementation(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		enc, dec := NewEncoder(testTable), NewDecoder(testTable, testLong)
		var theirs bytes.Buffer
		theirEnc, theirDec := oracle.NewEncoder(&theirs), oracle.NewDecoder(testTable, nil)
		var scratch *Scratch
		if seed%2 == 0 {
			scratch = &Scratch{}
		}
		for block := range 40 {
			if r.IntN(8) == 0 {
				n := uint32(r.IntN(testTable + 1))
				enc.SetTableSize(n)
				theirEnc.SetMaxDynamicTableSize(n)
			}
			var sent []Field
			var ours []byte
			theirs.Reset()
			for range r.IntN(12) {
				f := randomField(r)
				sent = append(sent, f)
				ours = enc.Append(ours, &f)
				_ = theirEnc.WriteField(oracle.HeaderField(f))
			}
			got, err := theirDec.DecodeFull(ours)
			if err != nil {
				t.Fatalf("seed %d, block %d: the other does not read it: %v", seed, block, err)
			}
			back, err := read(dec, theirs.Bytes(), scratch)
			if err != nil {
				t.Fatalf("seed %d, block %d: %v", seed, block, err)
			}
			if len(got) != len(sent) || len(back) != len(sent) {
				t.Fatalf("seed %d, block %d: %d and %d fields of %d", seed, block, len(got), len(back), len(sent))
			}
			for i, f := range sent {
				if g := Field(got[i]); g.Name != f.Name || g.Value != f.Value || back[i].Name != f.Name || back[i].Value != f.Value {
					t.Fatalf("seed %d, block %d: field %d is %+v, %+v and %+v", seed, block, i, f, g, back[i])
				}
				if f.Sensitive && !got[i].Sensitive {
					t.Fatalf("seed %d, block %d: a sensitive field is not marked", seed, block)
				}
			}
		}
	}
}

// judge decodes blocks with both implementations and compares.
func judge(t *testing.T, blocks [][]byte, scratch *Scratch) {
	dec := NewDecoder(testTable, testLong)
	theirs := oracle.NewDecoder(testTable, nil)
	theirs.SetMaxStringLength(testLong)
	for _, b := range blocks {
		want, theirErr := theirs.DecodeFull(b)
		got, err := read(dec, b, scratch)
		switch {
		case err == ErrTableSize || theirErr != nil && strings.Contains(theirErr.Error(), "table size update"): //nolint:errorlint // ours
			return // the other is less strict about where, and stricter about how many
		case err == ErrNumber: //nolint:errorlint // ours
			return // the other has a larger bound
		case (err == nil) != (theirErr == nil):
			t.Fatalf("block %x: %v, the other: %v", b, err, theirErr)
		case err != nil:
			return
		}
		if len(got) != len(want) {
			t.Fatalf("block %x: %d fields, the other: %d", b, len(got), len(want))
		}
		for i := range got {
			if got[i] != Field(want[i]) {
				t.Fatalf("block %x: %+v, the other: %+v", b, got[i], want[i])
			}
		}
	}
}

// FuzzDecoder feeds blocks from a peer, cut at each zero length, to both implementations.
func FuzzDecoder(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		enc := NewEncoder(testTable)
		var all []byte
		for range 3 {
			var b []byte
			for range 4 {
				fd := randomField(r)
				fd.Value = fd.Value[:min(len(fd.Value), 40)]
				b = enc.Append(b, &fd)
			}
			all = append(append(all, byte(len(b))), b...)
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var blocks [][]byte
		for len(p) > 0 {
			n := min(int(p[0]), len(p)-1)
			blocks = append(blocks, p[1:1+n])
			p = p[1+n:]
		}
		judge(t, blocks, nil)
		judge(t, blocks, &Scratch{})
	})
}

func TestRandomBytesAreJudgedAsByAnotherImplementation(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 20000 {
		b := make([]byte, r.IntN(30))
		for i := range b {
			b[i] = byte(r.Uint32())
			if r.IntN(3) == 0 {
				b[i] = []byte{0x40, 0x00, 0x10, 0x7f, 0xff, 0x82, 0xbe, 0x03}[r.IntN(8)]
			}
		}
		judge(t, [][]byte{b, b}, &Scratch{})
	}
}

func TestWhatCannotBeDecoded(t *testing.T) {
	long := append(appendNumber([]byte{0}, 0, textBits, testLong+1), make([]byte, testLong+1)...)
	for name, c := range map[string]struct {
		block []byte
		err   error
	}{
		"index 0":                     {[]byte{0x80}, ErrIndex},
		"an entry that no table has":  {[]byte{0xbe}, ErrIndex},
		"a name that no table has":    {[]byte{0x7e, 0}, ErrIndex},
		"a number without an end":     {[]byte{0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80}, ErrNumber},
		"a number over the bound":     {[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, ErrNumber},
		"a name that ends early":      {[]byte{0x40, 5, 'a'}, ErrTruncated},
		"no value":                    {[]byte{0x40, 1, 'a'}, ErrTruncated},
		"nothing after the first":     {[]byte{0x40}, ErrTruncated},
		"a size behind a field":       {[]byte{0x82, 0x20}, ErrTableSize},
		"a size over the bound":       {appendNumber(nil, sizeUpdate, sizeUpdateBits, testTable+1), ErrTableSize},
		"a name that is too long":     {long, ErrLong},
		"the code of the end":         {[]byte{0x40, 0x84, 0xff, 0xff, 0xff, 0xff, 0}, ErrHuffman},
		"a code filled with zeros":    {[]byte{0x40, 0x81, 0x18, 0}, ErrHuffman},
		"a code filled up for a byte": {[]byte{0x40, 0x82, 0x1f, 0xff, 0}, ErrHuffman},
	} {
		if _, err := read(NewDecoder(testTable, testLong), c.block, &Scratch{}); err != c.err { //nolint:errorlint // never wrapped
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A table keeps no more memory than a few pieces, whatever the peer puts into it: names
// that are taken from one entry to the next do not keep their first piece.
func TestNamesOfEntriesDoNotPinMemory(t *testing.T) {
	d := NewDecoder(testTable, testLong)
	s := &Scratch{}
	block := []byte{incremental, 1, 'n', 0}
	if _, err := read(d, block, s); err != nil {
		t.Fatal(err)
	}
	first := d.table.at(0).name
	for range 3 {
		// The entry's own name, with another value.
		if _, err := read(d, []byte{incremental | 62, 1, 'v'}, s); err != nil {
			t.Fatal(err)
		}
	}
	if same(first, d.table.at(0).name) {
		t.Error("a new entry has the memory of an old one's name")
	}
}

// What a peer's later blocks write does not change what the table has.
func TestEntriesOutliveTheScratch(t *testing.T) {
	enc, d, s := NewEncoder(testTable), NewDecoder(testTable, testLong), &Scratch{}
	keep := Field{Name: "x-keep", Value: "value of the first block"}
	if _, err := read(d, enc.Append(nil, &keep), s); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		f := Field{Name: "x-other", Value: strings.Repeat("z", 300), Sensitive: true}
		if _, err := read(d, enc.Append(nil, &f), s); err != nil {
			t.Fatal(err)
		}
	}
	got, err := read(d, enc.Append(nil, &keep), s)
	if err != nil || len(got) != 1 || got[0] != keep {
		t.Errorf("%+v, %v", got, err)
	}
}

var benchFields = []Field{
	{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "shop.example.com"},
	{Name: ":path", Value: "/api/v1/items/12345?page=2", Sensitive: true}, {Name: "user-agent", Value: "curl/8.5.0"},
	{Name: "x-request-id", Value: "6f1f8c36-7c43-4f0a-a3f1-0f6c4a3c2f11", Sensitive: true}, {Name: "cookie", Value: "session=abcdef; theme=dark"},
}

func TestSteadyBlocksAllocateNothing(t *testing.T) {
	enc, d, s := NewEncoder(testTable), NewDecoder(testTable, testLong), &Scratch{}
	out := make([]byte, 0, 1024)
	one := func() {
		out = out[:0]
		for i := range benchFields {
			out = enc.Append(out, &benchFields[i])
		}
		rest, err := d.Begin(out, s)
		for err == nil && len(rest) > 0 {
			_, rest, err = d.Next(rest, true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	one()
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A long value that a peer codes and keeps out of tables, as a token may be.
func TestLongCodedValuesAllocateNothing(t *testing.T) {
	value := strings.Repeat("eyJhbGciOiJFUzI1NiJ9.", 60)
	var block bytes.Buffer
	enc := oracle.NewEncoder(&block)
	for range 3 {
		_ = enc.WriteField(oracle.HeaderField{Name: "authorization", Value: value, Sensitive: true})
	}
	d, s := NewDecoder(testTable, testLong), &Scratch{}
	one := func() {
		rest, err := d.Begin(block.Bytes(), s)
		for err == nil && len(rest) > 0 {
			var f Field
			if f, rest, err = d.Next(rest, true); f.Value != value {
				t.Fatalf("%q, %v", f.Value, err)
			}
		}
	}
	for range 10 {
		one()
	}
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	enc := NewEncoder(testTable)
	out := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		out = out[:0]
		for i := range benchFields {
			out = enc.Append(out, &benchFields[i])
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	var theirs bytes.Buffer
	enc := oracle.NewEncoder(&theirs)
	d, s := NewDecoder(testTable, testLong), &Scratch{}
	for range 2 {
		theirs.Reset()
		for _, f := range benchFields {
			_ = enc.WriteField(oracle.HeaderField(f))
		}
		if _, err := read(d, theirs.Bytes(), s); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		rest, err := d.Begin(theirs.Bytes(), s)
		for err == nil && len(rest) > 0 {
			_, rest, err = d.Next(rest, true)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeOther(b *testing.B) {
	var theirs bytes.Buffer
	enc := oracle.NewEncoder(&theirs)
	for b.Loop() {
		theirs.Reset()
		for _, f := range benchFields {
			_ = enc.WriteField(oracle.HeaderField(f))
		}
	}
}
