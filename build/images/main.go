// Command images makes the container images of Ambit, as archives, from static
// programs: no Docker, no base image, no network.
//
//	go run ./build/images -bin bin -o bin/images -version v1.2.3
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/ambit-mesh/ambit/build/images/oci"
)

// image is one archive: which programs it holds, and the user that it runs as.
type image struct {
	name     string
	dir      string   // of the programs in the image
	programs []string // the first is what the image runs
	user     string
	bare     bool   // runs nothing unless told
	ref      string // name and tag; empty: those of the project
}

// ambitd and waypoint need nothing of the node that they run on. ztunnel and ambit-cni enter
// the network namespaces of pods, which takes root.
var images = []image{
	{name: "ambitd", dir: "/usr/local/bin", programs: []string{"ambitd"}, user: "1337:1337"},
	{name: "ztunnel", dir: "/usr/local/bin", programs: []string{"ztunnel"}, user: "0"},
	{name: "waypoint", dir: "/usr/local/bin", programs: []string{"waypoint"}, user: "1337:1337"},
	{name: "ambit-cni", dir: "/usr/local/bin", programs: []string{"ambit-cni", "ambit-cni-plugin"}, user: "0"},
	{name: "ambit-test", dir: "/", programs: []string{"echo", "load"}, bare: true},
}

func main() {
	var s settings
	flag.StringVar(&s.bin, "bin", "bin", "directory of the programs")
	flag.StringVar(&s.out, "o", "bin/images", "directory to write the archives to")
	flag.StringVar(&s.hub, "hub", "ghcr.io/ambit-mesh", "what the images' names begin with")
	flag.StringVar(&s.version, "version", "dev", "the images' tag")
	flag.StringVar(&s.arch, "arch", runtime.GOARCH, "architecture of the programs")
	flag.StringVar(&s.other, "other", "", "makes another image instead: REFERENCE=PROGRAM,..., of which the first is what it runs")
	flag.Parse()
	if err := errors.Join(s.check(), s.run()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

type settings struct{ bin, out, hub, version, arch, other string }

func (s settings) check() error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	return nil
}

func (s settings) run() error {
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	list := images
	if s.other != "" {
		ref, programs, _ := strings.Cut(s.other, "=")
		list = []image{{name: path.Base(strings.Split(ref, ":")[0]), ref: ref, dir: "/usr/local/bin", programs: strings.Split(programs, ",")}}
	}
	for _, i := range list {
		spec, err := s.spec(i)
		if err != nil {
			return err
		}
		to := filepath.Join(s.out, i.name+".tar")
		if err := oci.Write(to, spec); err != nil {
			return err
		}
		fmt.Println(to, spec.Ref)
	}
	return nil
}

func (s settings) spec(i image) (oci.Spec, error) {
	spec := oci.Spec{
		Ref: cmp.Or(i.ref, s.hub+"/"+i.name+":"+s.version), Arch: s.arch, User: i.user,
		Labels: map[string]string{"org.opencontainers.image.version": s.version, "org.opencontainers.image.title": i.name},
	}
	if !i.bare {
		spec.Entrypoint = []string{filepath.Join(i.dir, i.programs[0])}
	}
	for _, p := range i.programs {
		f, err := oci.Program(filepath.Join(i.dir, p), filepath.Join(s.bin, p))
		if err != nil {
			return spec, fmt.Errorf("image %s: %w (`make build` builds the programs)", i.name, err)
		}
		spec.Files = append(spec.Files, f)
	}
	return spec, nil
}
