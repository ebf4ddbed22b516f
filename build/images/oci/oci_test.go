package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func spec(ref string) Spec {
	return Spec{
		Ref: ref, Arch: "amd64", User: "1337", Entrypoint: []string{"/usr/local/bin/program"},
		Labels: map[string]string{"a": "b"},
		Files: []File{
			{Path: "/usr/local/bin/program", Mode: 0o755, Data: []byte("program of " + ref)},
			{Path: "/etc/conf", Mode: 0o600, Data: []byte("text")},
		},
	}
}

// unpack makes a directory of an archive, as an importer would see it.
func unpack(t *testing.T, archive string) layout.Path {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, h.Name)
		b, err := io.ReadAll(tr)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestArchiveHoldsTheImages(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "images.tar")
	if err := Write(archive, spec("example.org/a:1"), spec("example.org/b:1")); err != nil {
		t.Fatal(err)
	}
	index, err := unpack(t, archive).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, d := range m.Manifests {
		refs = append(refs, d.Annotations["io.containerd.image.name"])
		if d.Annotations["org.opencontainers.image.ref.name"] != refs[len(refs)-1] || !d.Platform.Equals(v1.Platform{OS: "linux", Architecture: "amd64"}) {
			t.Errorf("descriptor %+v", d)
		}
	}
	if diff := cmp.Diff([]string{"example.org/a:1", "example.org/b:1"}, refs); diff != "" {
		t.Error(diff)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.OS != "linux" || cfg.Architecture != "amd64" || cfg.Config.User != "1337" || cfg.Config.Labels["a"] != "b" || !cmp.Equal(cfg.Config.Entrypoint, []string{"/usr/local/bin/program"}) {
		t.Errorf("configuration %+v", cfg)
	}
	if diff := cmp.Diff(map[string]string{
		"etc/": "drwxr-xr-x", "etc/conf": "-rw------- text", "usr/": "drwxr-xr-x", "usr/local/": "drwxr-xr-x",
		"usr/local/bin/": "drwxr-xr-x", "usr/local/bin/program": "-rwxr-xr-x program of example.org/a:1",
	}, contents(t, img)); diff != "" {
		t.Error(diff)
	}
}

// contents is what is in an image's only layer.
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Compressed() // as it is in the archive, which does not compress
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = h.FileInfo().Mode().String()
		if h.Typeflag == tar.TypeReg {
			b, _ := io.ReadAll(tr)
			out[h.Name] += " " + string(b)
		}
	}
}

func TestArchiveIsReproducible(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.tar"), filepath.Join(dir, "b.tar")
	if err := errors.Join(Write(a, spec("example.org/a:1")), Write(b, spec("example.org/a:1"))); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(a)
	second, _ := os.ReadFile(b)
	if len(first) == 0 || !bytes.Equal(first, second) {
		t.Error("two archives of the same images differ")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadSpecs(t *testing.T) {
	file := func(paths ...string) Spec {
		s := Spec{Ref: "a:1", Arch: "amd64"}
		for _, p := range paths {
			s.Files = append(s.Files, File{Path: p})
		}
		return s
	}
	for name, s := range map[string]Spec{
		"no file":            file(),
		"no reference":       {Arch: "amd64", Files: []File{{Path: "/a"}}},
		"no architecture":    {Ref: "a:1", Files: []File{{Path: "/a"}}},
		"file twice":         file("/a", "a"),
		"the root":           file("/"),
		"file and directory": file("/a", "/a/b"),
	} {
		if _, err := Image(s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Program("/a", "/does/not/exist"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
