package kubernetes

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/build/images/oci"
)

// image brings one of Istio's programs to the nodes and returns the reference
// of its image. What is no file is such a reference already.
func image(ctx context.Context, variable, program, name string) (string, error) {
	if program == "" {
		return "", nil
	}
	if _, err := os.Stat(program); err != nil {
		if strings.HasPrefix(program, "/") || strings.HasPrefix(program, ".") || !strings.Contains(program, "/") {
			return "", fmt.Errorf("%s: %w", variable, err)
		}
		return program, nil
	}
	if cluster.Own == nil {
		return "", fmt.Errorf("%s is a file, and images can only be brought to the nodes of the project's own cluster (make cluster): give the reference of an image that the nodes of %s can pull", variable, cluster.Kubeconfig)
	}
	version, err := exec.CommandContext(ctx, program, "version").CombinedOutput()
	fmt.Printf("%s: %s\n", program, strings.TrimSpace(string(version)))
	if err != nil {
		return "", fmt.Errorf("%s=%s: asked for its version: %w", variable, program, err)
	}
	files, err := dependencies(ctx, program)
	if err != nil {
		return "", fmt.Errorf("%s=%s: %w", variable, program, err)
	}
	at := "/usr/local/bin/" + name
	f, err := oci.Program(at, program)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "ambit-interop-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory of our own
	archive, ref := filepath.Join(dir, name+".tar"), "localhost/ambit-interop/"+name+":peer"
	err = oci.Write(archive, oci.Spec{Ref: ref, Arch: runtime.GOARCH, Files: append(files, f), Entrypoint: []string{at}})
	if err != nil {
		return "", err
	}
	return ref, cluster.Own.Load(ctx, []string{archive})
}

// dependencies are the libraries that a program is linked with, and the one
// that loads them, as they are on this machine. A static program has none.
func dependencies(ctx context.Context, program string) ([]oci.File, error) {
	loader, err := interpreter(program)
	if loader == "" || err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, loader, "--list", program).Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", loader, err)
	}
	paths := map[string]bool{loader: true}
	for line := range strings.Lines(string(out)) {
		// As in: libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
		if _, found, ok := strings.Cut(line, "=> "); ok {
			path, _, _ := strings.Cut(found, " (")
			paths[strings.TrimSpace(path)] = true
		}
	}
	var files []oci.File
	for path := range paths {
		f, err := oci.Program(path, path)
		if err != nil {
			return nil, fmt.Errorf("a library: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// interpreter is the program that loads another one's libraries, "" if there
// are none.
func interpreter(program string) (_ string, err error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz)
			_, err := p.ReadAt(b, 0)
			return strings.TrimRight(string(b), "\x00"), err
		}
	}
	return "", nil
}
