package resident

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestReadOnly: what may have been written to is never touched.
func TestReadOnly(t *testing.T) {
	const maps = `00400000-00caa000 r-xp 00000000 fe:00 1 /bin/a b
00caa000-0173e000 r--p 008aa000 fe:00 1 /bin/a b
0173e000-017cc000 rw-p 0133e000 fe:00 1 /bin/a b
017cc000-03815000 rw-p 00000000 00:00 0
03900000-03901000 r--s 00000000 fe:00 1 /bin/a b
7f0000000000-7f0000001000 r-xp 00000000 fe:00 2 /lib/libc.so
7f0000002000-7f0000003000 r-xp 00000000 00:00 0 [vdso]
`
	got, err := readOnly(strings.NewReader(maps), "/bin/a b")
	if want := []mapping{{0x400000, 0xcaa000}, {0xcaa000, 0x173e000}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%x, error %v", got, err)
	}
	for _, bad := range []string{"x-2 r-xp 0 0:0 1 /a", "2-1 r-xp 0 0:0 1 /a", "1 r-xp 0 0:0 1 /a"} {
		if got, err := readOnly(strings.NewReader(bad), "/a"); err == nil {
			t.Errorf("%s: %x", bad, got)
		}
	}
}

// TestFixed: a program that can run anywhere keeps its pages.
func TestFixed(t *testing.T) {
	for text, good := range map[string]bool{"\x7fELF............\x02\x00": true, "\x7fELF............\x03\x00": false, "\x7fELF": false} {
		if err := fixed(strings.NewReader(text)); (err == nil) != good {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

// TestUnmap: the program goes on, with less of its file in memory.
func TestUnmap(t *testing.T) {
	before := files(t)
	if err := Unmap(); err != nil {
		t.Fatal(err)
	}
	if after := files(t); after >= before {
		t.Errorf("%d bytes of files are resident, %d before", after, before)
	}
}

// files returns how many bytes of files are resident.
func files(t *testing.T) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			for _, c := range rest {
				if '0' <= c && c <= '9' {
					kib = 10*kib + int(c-'0')
				}
			}
		}
	}
	return kib
}
