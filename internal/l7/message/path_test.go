package message

import (
	"bytes"
	"testing"
)

func normal(path string, mode Normalisation) (string, *Fault) {
	h := Head{Path: []byte(path)}
	f := h.NormalisePath(mode)
	return string(h.Path), f
}

func TestNormalisation(t *testing.T) {
	for _, c := range []struct{ in, base, merge, decode string }{
		{"/", "/", "/", "/"},
		{"/a/../b?x=/../%2f", "/b?x=/../%2f", "/b?x=/../%2f", "/b?x=/../%2f"},
		{"/%61%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"},
		{"/a\\b", "/a/b", "/a/b", "/a/b"},
		{"/x%2F..%2Fadmin", "/x%2F..%2Fadmin", "/x%2F..%2Fadmin", "/admin"},
		{"/x%5c..%5cadmin", "/x%5c..%5cadmin", "/x%5c..%5cadmin", "/admin"},
		{"/%2e%2E/a/.", "/a/", "/a/", "/a/"},
		{"/a//b///c", "/a//b///c", "/a/b/c", "/a/b/c"},
		{"/a//../b", "/a/b", "/a/b", "/a/b"},
		{"/..", "/", "/", "/"},
		{"/a/b/..", "/a/", "/a/", "/a/"},
		{"/a/b/../", "/a/", "/a/", "/a/"},
		{"/a;x/../b", "/b", "/b", "/b"},
		{"/%252F", "/%252F", "/%252F", "/%252F"},
		{"/...", "/...", "/...", "/..."},
		{"/%c3%a9", "/%c3%a9", "/%c3%a9", "/%c3%a9"},
	} {
		for mode, want := range map[Normalisation]string{None: c.in, Base: c.base, MergeSlashes: c.merge, DecodeAndMergeSlashes: c.decode} {
			if got, f := normal(c.in, mode); f != nil || got != want {
				t.Errorf("mode %d: %s becomes %s (%v), want %s", mode, c.in, got, f, want)
			}
		}
	}
}

func TestStrict(t *testing.T) {
	for in, want := range map[string]string{"/a/b.c?x=//": "/a/b.c?x=//", "/%61": "/a", "/.well-known/x": "/.well-known/x", "/100%25": "/100%25",
		"/%25zz": "/%25zz", "*": "*", "/a/": "/a/", "/a%20b": "/a%20b", "/...": "/..."} {
		if got, f := normal(in, Strict); f != nil || got != want {
			t.Errorf("%s becomes %s (%v), want %s", in, got, f, want)
		}
	}
	for in, want := range map[string]*Fault{
		"/a%2Fb": ErrPathSlash, "/a%2fb": ErrPathSlash, "/%5c": ErrPathBackslash, "/a\\b": ErrPathBackslash, "//a": ErrPathEmptySeg, "/a//": ErrPathEmptySeg,
		"/.": ErrPathDots, "/a/../b": ErrPathDots, "/%2e%2e/": ErrPathDots, "/.%2e": ErrPathDots, "/..": ErrPathDots, "/%252F": ErrPathDouble, "/%252e": ErrPathDouble,
		"/%25%32%66": ErrPathDouble, "/a;b": ErrPathParameter, "/a%3bb": ErrPathParameter, "/a/..;/b": ErrPathParameter, "/%00": ErrPathControl, "/%0d%0a": ErrPathControl, "/%7f": ErrPathControl,
		"/%": ErrEscape, "/%4": ErrEscape, "/%zz": ErrEscape, "/a#b": ErrFragment,
	} {
		if got, f := normal(in, Strict); f != want {
			t.Errorf("%s: %v (%s), want %v", in, f, got, want)
		}
	}
}

// FuzzNormalise: a normal form is its own normal form, no mode leaves what it
// promises to remove, and the query never changes.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e%2fx", "//", "/a\\..\\b?c#", "/%25%32%66", "/./../.", "/%", "/..;/x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || in[0] != '/' {
			return
		}
		for mode := Strict; mode <= DecodeAndMergeSlashes; mode++ {
			h := Head{Path: bytes.Clone(in)}
			query := bytes.Clone(h.Query())
			if h.NormalisePath(mode) != nil {
				continue
			}
			once := bytes.Clone(h.Path)
			if bad := h.NormalisePath(mode); bad != nil || !bytes.Equal(h.Path, once) {
				t.Fatalf("mode %d: %q becomes %q, then %q (%v)", mode, in, once, h.Path, bad)
			}
			if !bytes.Equal(h.Query(), query) {
				t.Fatalf("mode %d: query of %q is now %q", mode, in, h.Query())
			}
			p := h.PathOnly()
			if len(p) == 0 || p[0] != '/' {
				t.Fatalf("mode %d: %q becomes %q", mode, in, p)
			}
			if mode == None {
				continue
			}
			for _, s := range bytes.Split(p[1:], []byte("/")) {
				if dots(s) {
					t.Fatalf("mode %d: %q keeps a dot segment: %q", mode, in, p)
				}
			}
			if bytes.IndexByte(p, '\\') >= 0 || (mode == Strict || mode >= MergeSlashes) && bytes.Contains(p, []byte("//")) {
				t.Fatalf("mode %d: %q becomes %q", mode, in, p)
			}
		}
	})
}
