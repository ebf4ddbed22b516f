// Package oci makes container images of static programs, and archives of
// images that containerd, podman and registries' tools import.
//
// The same programs make the same archive, bit for bit.
package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is a file of an image.
type File struct {
	Path string // in the image
	Mode fs.FileMode
	Data []byte
}

// Spec is an image with nothing in it but files.
type Spec struct {
	Ref        string // name and tag, such as ghcr.io/owner/name:v1
	Arch       string // as in GOARCH
	Files      []File
	Entrypoint []string
	User       string // user or user:group, by number; empty: root
	Labels     map[string]string
}

// Program reads a program that is to be in an image.
func Program(at, from string) (File, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return File{}, err
	}
	return File{Path: at, Mode: 0o755, Data: b}, nil
}

// Image makes the image of a specification: one layer, not compressed, as it
// is imported on the machine that it was made on more often than it travels.
func Image(s Spec) (v1.Image, error) {
	if s.Ref == "" || s.Arch == "" || len(s.Files) == 0 {
		return nil, fmt.Errorf("image %q: a reference, an architecture and files are needed", s.Ref)
	}
	layer, err := layerTar(s.Files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.AppendLayers(img, static.NewLayer(layer, types.OCIUncompressedLayer))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", s.Arch
	cfg.Config = v1.Config{
		Entrypoint: s.Entrypoint, User: s.User, Labels: s.Labels, WorkingDir: "/",
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return mutate.ConfigFile(img, cfg)
}

// layerTar packs files, and the directories above them, in order of name.
func layerTar(files []File) ([]byte, error) {
	entries := map[string]*File{} // nil: a directory
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if name == "" || entries[name] != nil {
			return nil, fmt.Errorf("file %q: no name, or there twice", f.Path)
		}
		entries[name] = &f
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if entries[dir] != nil {
				return nil, fmt.Errorf("file %q: %s is a file too", f.Path, dir)
			}
			entries[dir] = nil
		}
	}
	names := make([]string, 0, len(entries))
	for n := range entries {
		names = append(names, n)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, n := range names {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: n + "/", Mode: 0o755, Format: tar.FormatPAX}
		var data []byte
		if f := entries[n]; f != nil {
			h.Typeflag, h.Name, h.Mode, h.Size, data = tar.TypeReg, n, int64(f.Mode.Perm()), int64(len(f.Data)), f.Data
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(data); err != nil {
			return nil, err
		}
	}
	err := tw.Close()
	return buf.Bytes(), err
}

// Write makes an archive of images: an OCI image layout, as a tar file.
func Write(to string, specs ...Spec) error {
	dir, err := os.MkdirTemp(filepath.Dir(to), ".images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory of our own
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	for _, s := range specs {
		img, err := Image(s)
		if err != nil {
			return err
		}
		err = p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: s.Arch}),
			// The first is what containerd calls the image, the second is the standard's.
			layout.WithAnnotations(map[string]string{"io.containerd.image.name": s.Ref, "org.opencontainers.image.ref.name": s.Ref}))
		if err != nil {
			return fmt.Errorf("image %s: %w", s.Ref, err)
		}
	}
	tmp := filepath.Join(dir, "archive.tmp")
	if err := pack(tmp, dir); err != nil {
		return fmt.Errorf("archive %s: %w", to, err)
	}
	return os.Rename(tmp, to)
}

// pack writes the layout in dir as a tar file, without anything that depends
// on the time or the user.
func pack(to, dir string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	tw := tar.NewWriter(out)
	// In the order of names.
	err = filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || file == to {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return packFile(tw, filepath.ToSlash(name), file)
	})
	return errors.Join(err, tw.Close())
}

func packFile(tw *tar.Writer, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: st.Size(), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
