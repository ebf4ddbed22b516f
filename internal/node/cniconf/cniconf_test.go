package cniconf

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const bridge = `{
  "cniVersion": "1.0.0", "name": "k8s", "disableCheck": true, "big": 12345678901234567890,
  "plugins": [
    {"type": "bridge", "mtu": 1500, "ipam": {"type": "host-local", "html": "<&>"}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`

const single = `{"cniVersion":"0.3.1","name":"one","type":"ptp","mtu":9000}`

var entry = Entry{Type: "ambit-cni-plugin", Name: EntryName, Version: "v1", RunDir: "/run", PodNamespace: "istio-system", ExcludeNamespaces: []string{"kube-system"}}

func types(t *testing.T, text []byte) []string {
	t.Helper()
	var list struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	var names []string
	for _, p := range list.Plugins {
		names = append(names, p.Type)
	}
	return names
}

func TestInsertAndRemove(t *testing.T) {
	list, changed, err := Insert([]byte(bridge), entry)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if diff := cmp.Diff([]string{"bridge", "portmap", "ambit-cni-plugin"}, types(t, list)); diff != "" {
		t.Error(diff)
	}
	again, changed, err := Insert(list, entry)
	if err != nil || changed || string(again) != string(list) {
		t.Errorf("a second time: %v %v", changed, err)
	}
	newer := entry
	newer.Version = "v2"
	upgraded, changed, err := Insert(list, newer)
	if err != nil || !changed || len(types(t, upgraded)) != 3 {
		t.Errorf("a newer version: %v %v %s", changed, err, upgraded)
	}
	back, changed := Remove(upgraded)
	if !changed || !same(back, []byte(bridge)) {
		t.Errorf("what was there before is now\n%s", back)
	}
	if _, changed := Remove([]byte(bridge)); changed {
		t.Error("something is removed that is not there")
	}
}

func TestInsertMakesAListOfOnePlugin(t *testing.T) {
	list, _, err := Insert([]byte(single), entry)
	if err != nil {
		t.Fatal(err)
	}
	mine, _ := json.Marshal(entry)
	want := `{"cniVersion":"0.3.1","name":"one","plugins":[{"type":"ptp","mtu":9000},` + string(mine) + `]}`
	if !same(list, []byte(want)) {
		t.Errorf("got %s", list)
	}
}

func TestInsertNeverTwice(t *testing.T) {
	mine, _ := json.Marshal(entry)
	text := `{"name":"k8s","plugins":[` + string(mine) + `,{"type":"bridge"},` + string(mine) + `]}`
	list, changed, err := Insert([]byte(text), entry)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if diff := cmp.Diff([]string{"bridge", "ambit-cni-plugin"}, types(t, list)); diff != "" {
		t.Error(diff)
	}
}

func FuzzInsert(f *testing.F) {
	f.Add([]byte(bridge))
	f.Add([]byte(single))
	f.Add([]byte(`{"plugins":null,"type":""}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, _, err := Insert(text, entry)
		if err != nil {
			return
		}
		if _, changed, err := Insert(list, entry); err != nil || changed {
			t.Errorf("%q: again %v %v", text, changed, err)
		}
		back, _ := Remove(list)
		_, before, _ := parse(text)
		_, after, err := parse(back)
		if err != nil || len(after) != len(without(before)) {
			t.Errorf("%q became %q: %v", text, back, err)
		}
	})
}

type world struct {
	t   *testing.T
	dir string
	o   Options
}

func newWorld(t *testing.T, files map[string]string) *world {
	w := &world{t: t, dir: t.TempDir()}
	for _, d := range []string{"bin", "conf", "image"} {
		if err := os.Mkdir(filepath.Join(w.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		w.write("conf/"+name, text)
	}
	w.write("image/ambit-cni-plugin", "a program")
	w.o = Options{
		BinDir: filepath.Join(w.dir, "bin"), ConfDir: filepath.Join(w.dir, "conf"), Binary: filepath.Join(w.dir, "image/ambit-cni-plugin"),
		Entry: entry, Logger: slog.New(slog.DiscardHandler),
	}
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

func (w *world) files() []string {
	w.t.Helper()
	var names []string
	for _, d := range []string{"bin", "conf"} {
		list, err := os.ReadDir(filepath.Join(w.dir, d))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range list {
			names = append(names, d+"/"+e.Name())
		}
	}
	return names
}

func (w *world) expectFiles(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.files()); diff != "" {
		w.t.Error(diff)
	}
}

func (w *world) install() *Installer {
	w.t.Helper()
	i := New(w.o)
	if err := i.Install(); err != nil {
		w.t.Fatal(err)
	}
	return i
}

func TestChained(t *testing.T) {
	w := newWorld(t, map[string]string{"10-net.conflist": bridge, "99-other.conflist": bridge, "00-readme.txt": "x"})
	w.o.Observe = func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	i := w.install()
	if got := types(t, w.read("conf/10-net.conflist")); !slices.Contains(got, "ambit-cni-plugin") {
		t.Errorf("plugins %q", got)
	}
	if got := string(w.read("conf/99-other.conflist")); got != bridge {
		t.Error("a file that the runtime does not use was changed")
	}
	if info, _ := os.Stat(filepath.Join(w.dir, "bin/ambit-cni-plugin")); info == nil || info.Mode().Perm() != 0o755 {
		t.Error("the program cannot be run")
	}
	if changed, err := i.install(); changed || err != nil {
		t.Errorf("a second time: %v %v", changed, err)
	}
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if !same(w.read("conf/10-net.conflist"), []byte(bridge)) {
		t.Error("not restored")
	}
	w.expectFiles("conf/00-readme.txt", "conf/10-net.conflist", "conf/99-other.conflist")
}

func TestChainedIntoASinglePlugin(t *testing.T) {
	for name, confName := range map[string]string{"the first": "", "by name": "10-net.conf"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"10-net.conf": single})
			w.o.ConfName = confName
			i := w.install()
			w.expectFiles("bin/ambit-cni-plugin", "conf/10-net.conf.ambit-replaced", "conf/10-net.conflist")
			if changed, err := i.install(); changed || err != nil {
				t.Errorf("a second time: %v %v", changed, err)
			}
			w.write("conf/10-net.conf", strings.Replace(single, "9000", "1400", 1)) // its owner writes it anew
			w.install()
			if got := string(w.read("conf/10-net.conflist")); !strings.Contains(got, "1400") {
				t.Errorf("the list is the old one: %s", got)
			}
			if err := i.Uninstall(); err != nil {
				t.Fatal(err)
			}
			w.expectFiles("conf/10-net.conf")
		})
	}
}

func TestOwned(t *testing.T) {
	w := newWorld(t, map[string]string{"10-net.conflist": bridge})
	w.o.Owned = true
	i := w.install()
	if got := string(w.read("conf/10-net.conflist")); got != bridge {
		t.Error("another program's file was changed")
	}
	if got := types(t, w.read("conf/"+OwnedName)); len(got) != 3 || got[2] != "ambit-cni-plugin" {
		t.Errorf("plugins %q", got)
	}
	if changed, err := i.install(); changed || err != nil {
		t.Errorf("a second time: %v %v", changed, err)
	}
	w.write("conf/10-net.conflist", strings.Replace(bridge, "1500", "1400", 1))
	w.install()
	if got := string(w.read("conf/" + OwnedName)); !strings.Contains(got, "1400") {
		t.Error("ours does not follow")
	}
	w.write("conf/01-first.conflist", bridge)
	if err := i.Install(); err == nil || !strings.Contains(err.Error(), "01-first.conflist comes before") {
		t.Errorf("another file that comes first: %v", err)
	}
	if err := os.Remove(filepath.Join(w.dir, "conf/01-first.conflist")); err != nil {
		t.Fatal(err)
	}
	// From this mode to the other: nothing is left of the first.
	w.o.Owned = false
	i = w.install()
	w.expectFiles("bin/ambit-cni-plugin", "conf/10-net.conflist")
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
	w.expectFiles("conf/10-net.conflist")
}

func TestStandalone(t *testing.T) {
	w := newWorld(t, nil)
	w.o.Standalone = true
	i := w.install()
	var got Entry
	if err := json.Unmarshal(w.read("conf/"+standaloneName), &got); err != nil || got.Type != "ambit-cni-plugin" {
		t.Errorf("%+v %v", got, err)
	}
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
	w.expectFiles()
}

func TestNothingToAddTo(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing": nil, "not JSON": {"10-x.conflist": "{"}, "no plugins": {"10-x.conflist": `{"plugins":[]}`}, "a plugin without type": {"10-x.conf": `{"name":"x"}`},
	} {
		w := newWorld(t, files)
		if err := New(w.o).Install(); !errors.Is(err, ErrNoConfig) {
			t.Errorf("%s: %v", name, err)
		}
		for file, text := range files {
			if string(w.read("conf/"+file)) != text {
				t.Errorf("%s: it was changed", name)
			}
		}
	}
}

// Other programs go on writing into the directory.
func TestRunRepairs(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	states := make(chan error, 16)
	done := make(chan error, 1)
	go func() { done <- New(w.o).Run(ctx, func(err error) { states <- err }) }()
	if err := <-states; !errors.Is(err, ErrNoConfig) {
		t.Errorf("at first: %v", err)
	}
	w.write("conf/10-net.conflist", bridge)
	if err := <-states; err != nil {
		t.Errorf("with a configuration: %v", err)
	}
	chained := func(name string) bool {
		text, err := os.ReadFile(filepath.Join(w.dir, "conf", name))
		return err == nil && json.Valid(text) && slices.Contains(types(t, text), "ambit-cni-plugin")
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(look / 2); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	w.write("conf/10-net.conflist", bridge)
	await("a file that was written anew", func() bool { return chained("10-net.conflist") })
	w.write("conf/05-first.conflist", bridge)
	await("a file that comes first", func() bool { return chained("05-first.conflist") && !chained("10-net.conflist") })
	if err := os.Remove(filepath.Join(w.dir, "conf/05-first.conflist")); err != nil {
		t.Fatal(err)
	}
	await("the file that is first again", func() bool { return chained("10-net.conflist") })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !chained("10-net.conflist") {
		t.Error("an agent that ends leaves pods without the plugin")
	}
	w.o.ConfDir = "/nonexistent"
	if err := New(w.o).Run(t.Context(), func(error) {}); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("without the directory: %v", err)
	}
}
