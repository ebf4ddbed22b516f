// Command release makes everything that a release publishes, in one directory, on
// one machine: archives of the programs, container images, charts, a bill of
// materials for each program, notes and checksums. It publishes nothing.
//
//	go run ./build/release -version v1.2.3 -o dist
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
)

// programs are what the archives hold, and what has a bill of materials.
var programs = []string{"ambit", "ambitd", "ztunnel", "waypoint", "ambit-cni", "ambit-cni-plugin"}

// charts are the directories below charts/.
var charts = []string{"base", "ambitd", "cni", "ztunnel", "observability"}

// testPrograms are in the image that `ambit check` and the documentation's
// examples use, and in no archive.
var testPrograms = []string{"./test/echo", "./test/load"}

type settings struct {
	version string
	out     string
	archs   []string
	sbom    string // the Go tool that writes bills of materials, with its version
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var s settings
	archs := flag.String("arch", "amd64,arm64", "architectures, separated by commas")
	flag.StringVar(&s.version, "version", "", "the release, such as v1.2.3; CHANGELOG.md has a section of that name")
	flag.StringVar(&s.out, "o", "dist", "directory to make; it must not exist")
	flag.StringVar(&s.sbom, "sbom", "", "cyclonedx-gomod as the Go tool runs it: PATH@VERSION")
	flag.Parse()
	s.archs = strings.Split(*archs, ",")
	err := s.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// versions are those of Semantic Versioning 2.0.0 with a v before them, without
// build metadata, which no image tag can have.
var versions = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)

func (s settings) run(ctx context.Context) error {
	if !versions.MatchString(s.version) {
		return fmt.Errorf("-version %q: want a version such as v1.2.3 or v1.2.3-rc.1", s.version)
	}
	if s.sbom == "" {
		return errors.New("-sbom is not given: `make release` names the pinned version")
	}
	changelog, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		return fmt.Errorf("reading the notes: %w (run it in the repository's root)", err)
	}
	notes, err := notesOf(string(changelog), s.version)
	if err != nil {
		return err
	}
	if err := os.Mkdir(s.out, 0o755); err != nil {
		return fmt.Errorf("making the directory: %w (remove it, or name another one by -o)", err)
	}
	if err := os.WriteFile(filepath.Join(s.out, "NOTES.md"), []byte(notes), 0o644); err != nil { //nolint:gosec // for everybody
		return err
	}
	work, err := os.MkdirTemp("", "ambit-release-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	for _, arch := range s.archs {
		if err := s.platform(ctx, arch, filepath.Join(work, arch)); err != nil {
			return fmt.Errorf("linux/%s: %w", arch, err)
		}
	}
	if err := s.bills(ctx, filepath.Join(work, s.archs[0])); err != nil {
		return err
	}
	if err := s.packCharts(); err != nil {
		return err
	}
	return writeSums(s.out)
}

// platform builds the programs of one architecture, and packs them as an archive
// and as images.
func (s settings) platform(ctx context.Context, arch, bin string) error {
	step("linux/%s: programs", arch)
	build := []string{"build", "-trimpath", "-ldflags", "-s -w -X github.com/ambit-mesh/ambit/internal/ops/version.tag=" + s.version, "-o", bin + "/"}
	for _, p := range programs {
		build = append(build, "./cmd/"+p)
	}
	if err := golang(ctx, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch}, append(build, testPrograms...)...); err != nil {
		return err
	}
	name := fmt.Sprintf("ambit_%s_linux_%s", s.version, arch)
	files := []file{{"LICENSE", "LICENSE", 0o644}, {"README.md", "README.md", 0o644}}
	for _, p := range programs {
		files = append(files, file{p, filepath.Join(bin, p), 0o755})
	}
	if err := writeArchive(filepath.Join(s.out, name+".tar.gz"), name, files); err != nil {
		return err
	}
	step("linux/%s: images", arch)
	return golang(ctx, nil, "run", "./build/images", "-bin", bin, "-arch", arch, "-version", s.version, "-o", filepath.Join(s.out, "images", "linux-"+arch))
}

// bills writes what each program is made of, as CycloneDX. The modules are the
// same for all architectures.
func (s settings) bills(ctx context.Context, bin string) error {
	dir := filepath.Join(s.out, "sbom")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, p := range programs {
		step("bill of materials: %s", p)
		if err := golang(ctx, []string{"GOFLAGS="}, "run", s.sbom, "bin", "-json", "-licenses=false", "-version", s.version,
			"-output", filepath.Join(dir, p+".cdx.json"), filepath.Join(bin, p)); err != nil {
			return err
		}
	}
	return nil
}

// packCharts writes the charts with the release's version, so that their images
// are those of the release.
func (s settings) packCharts() error {
	dir := filepath.Join(s.out, "charts")
	for _, name := range charts {
		step("chart: %s", name)
		chart, err := loader.LoadDir(filepath.Join("charts", name))
		if err != nil {
			return fmt.Errorf("chart %s: %w", name, err)
		}
		chart.Metadata.Version = strings.TrimPrefix(s.version, "v")
		chart.Metadata.AppVersion = s.version
		if _, err := chartutil.Save(chart, dir); err != nil {
			return fmt.Errorf("chart %s: %w", name, err)
		}
	}
	return nil
}

func step(format string, args ...any) { fmt.Fprintf(os.Stderr, "… "+format+"\n", args...) }

func golang(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the caller's own arguments
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}
