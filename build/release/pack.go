package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// notesOf returns the section of a version in a changelog: what is between the
// heading "## VERSION" and the next one of that level.
func notesOf(changelog, version string) (string, error) {
	var notes []string
	found := false
	for line := range strings.Lines(changelog) {
		heading, is := strings.CutPrefix(line, "## ")
		if is {
			if found {
				break
			}
			name, _, _ := strings.Cut(strings.TrimSpace(heading), " ")
			found = name == version
			continue
		}
		if found {
			notes = append(notes, line)
		}
	}
	text := strings.TrimSpace(strings.Join(notes, ""))
	if text == "" {
		return "", fmt.Errorf("CHANGELOG.md has nothing below \"## %s\": write what changes for users", version)
	}
	return text + "\n", nil
}

// file is one file of an archive.
type file struct {
	name string // in the archive
	from string
	mode int64
}

// writeArchive writes a gzipped tar of files in one directory. The same files give
// the same bytes: there are no times and no owners in it.
func writeArchive(to, dir string, files []file) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	zipped := gzip.NewWriter(out)
	archive := tar.NewWriter(zipped)
	for _, f := range files {
		if err := addFile(archive, path.Join(dir, f.name), f); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return zipped.Close()
}

func addFile(archive *tar.Writer, name string, f file) error {
	in, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Name: name, Mode: f.mode, Size: info.Size(), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err = io.Copy(archive, in)
	return err
}

// sumsName is the file that `sha256sum -c` reads.
const sumsName = "SHA256SUMS"

// writeSums writes the checksum of each file below a directory into it.
func writeSums(dir string) error {
	var lines []string // in the order of the walk, which is that of the names
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		sum := sha256.New()
		if _, err := io.Copy(sum, in); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		lines = append(lines, fmt.Sprintf("%x  %s\n", sum.Sum(nil), name))
		return err
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, sumsName), []byte(strings.Join(lines, "")), 0o644) //nolint:gosec // for everybody
}
