package cniconf

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// replaced is what the name of a single plugin's file gets behind it once a
	// list has taken its place; no runtime reads such a file.
	replaced = ".ambit-replaced"
	// OwnedName is the file of a configuration of our own; it comes before
	// those of other programs.
	OwnedName = "02-ambit-cni.conflist"
	// standaloneName comes behind all others, so that no runtime takes it for
	// the network.
	standaloneName = "YY-ambit-cni.conf"

	// look is how often everything is compared, beside when the directory says
	// that it has changed; settle is how long it has to be quiet before.
	look   = 10 * time.Second
	settle = 100 * time.Millisecond
	// maxFile bounds what is read of a file that others write.
	maxFile = 1 << 20
)

// ErrNoConfig tells that there is no network configuration to be added to (yet).
var ErrNoConfig = errors.New("there is no network configuration")

// Options say what goes where.
type Options struct {
	BinDir, ConfDir string // of the container runtime
	// ConfName is the file that the entry goes into, or the name of our own;
	// empty for the first of the directory.
	ConfName string
	// Owned writes a file of our own, which comes first, instead of changing
	// another program's. It stays when that program writes its own anew, as
	// after a reboot.
	Owned bool
	// Standalone writes the plugin's configuration alone.
	Standalone bool
	Binary     string // the plugin's, to be copied
	Entry      Entry  // its type is set from Binary
	Logger     *slog.Logger
	// Observe is told the result of every change and every failure; it may be
	// nil.
	Observe func(error)
}

// Installer keeps a plugin installed.
type Installer struct{ o Options }

// New makes an installer.
func New(o Options) *Installer {
	o.Entry.Type, o.Entry.Name = filepath.Base(o.Binary), EntryName
	if o.Observe == nil {
		o.Observe = func(error) {}
	}
	return &Installer{o}
}

// Run installs the plugin and keeps it installed until the context ends. ready
// is called with what is wrong, or nil, whenever that changes. Nothing is taken
// away at the end: see Uninstall.
func (i *Installer) Run(ctx context.Context, ready func(error)) error {
	if _, err := os.Stat(i.o.ConfDir); err != nil {
		return fmt.Errorf("watching %s: %w; the directory of the container runtime's network configurations has to be mounted there", i.o.ConfDir, err)
	}
	watcher, err := watch(i.o.ConfDir)
	if err != nil {
		i.o.Logger.Warn("changes of network configurations are noticed late", "directory", i.o.ConfDir, "every", look, "error", err)
		watcher = &fsnotify.Watcher{} // its channels stay silent
	} else {
		defer func() { _ = watcher.Close() }()
	}
	last := errors.New("not yet tried")
	for {
		err := i.Install()
		if fmt.Sprint(err) != fmt.Sprint(last) {
			if err != nil {
				i.o.Logger.Warn("the CNI plugin is not installed, trying again", "error", err)
			}
			ready(err)
		}
		last = err
		if !wait(ctx, watcher) {
			return nil
		}
	}
}

// watch fails on nodes whose programs have used up what the kernel has for
// that, which is little: a node agent that gave up then would stop all pods.
func watch(dir string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("%w (the limit is fs.inotify.max_user_instances)", err)
	}
	if err := w.Add(dir); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("%w (the limit is fs.inotify.max_user_watches)", err)
	}
	return w, nil
}

// wait waits until it is time to look again.
func wait(ctx context.Context, w *fsnotify.Watcher) bool {
	timer := time.NewTimer(look)
	defer timer.Stop()
	for soon := false; ; soon = true {
		select {
		case <-ctx.Done():
			return false
		case <-w.Events:
		case <-w.Errors: //nolint:errcheck // too many events to keep: all the more reason to look
		case <-timer.C:
			return true
		}
		if !soon {
			timer.Reset(settle)
		}
	}
}

// Install makes binary and configuration what they should be. What is right
// already is not touched.
func (i *Installer) Install() error {
	changed, err := i.install()
	if err != nil || changed {
		i.o.Observe(err)
	}
	return err
}

func (i *Installer) install() (changed bool, err error) {
	// The binary goes first: a configuration that names a plugin which is not
	// there stops every pod of the node.
	copied, err := copyFile(i.o.Binary, filepath.Join(i.o.BinDir, i.o.Entry.Type))
	if err != nil {
		return false, fmt.Errorf("copying the plugin: %w", err)
	}
	switch {
	case i.o.Standalone:
		changed, err = i.writeStandalone()
	case i.o.Owned:
		changed, err = i.writeOwned()
	default:
		changed, err = i.chain()
	}
	return copied || changed, err
}

func (i *Installer) writeStandalone() (bool, error) {
	text, err := standalone(i.o.Entry)
	if err != nil {
		return false, err
	}
	return i.write(cmp.Or(i.o.ConfName, standaloneName), text)
}

// chain adds the entry to the configuration that the runtime uses, and takes it
// out of every other.
func (i *Installer) chain() (bool, error) {
	name := i.o.ConfName
	if name == "" {
		var err error
		if name, err = i.first(""); err != nil {
			return false, err
		}
	}
	text, err := i.read(name)
	if errors.Is(err, fs.ErrNotExist) { // a single plugin's, of which a list was made
		if text, err = i.read(listName(name)); err == nil {
			name = listName(name)
		}
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrNoConfig, err)
	}
	list, changed, err := Insert(text, i.o.Entry)
	if err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Join(i.o.ConfDir, name), err)
	}
	if changed {
		to := listName(name)
		if _, err := i.write(to, list); err != nil {
			return false, err
		}
		if to != name {
			// It comes before the list by name, so it has to go.
			if err := os.Rename(filepath.Join(i.o.ConfDir, name), filepath.Join(i.o.ConfDir, name+replaced)); err != nil {
				return false, err
			}
		}
		i.o.Logger.Info("the mesh's plugin is in the network configuration", "file", to)
		name = to
	}
	cleaned, err := i.clean(name)
	return changed || cleaned, err
}

// listName is the name of the list that is made of a single plugin's file.
func listName(name string) string { return strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist" }

// writeOwned writes a configuration that is another program's and the entry.
func (i *Installer) writeOwned() (bool, error) {
	own := cmp.Or(i.o.ConfName, OwnedName)
	name, err := i.first(own)
	if err != nil {
		return false, err
	}
	text, err := i.read(name)
	if err != nil {
		return false, err
	}
	list, _, err := Insert(text, i.o.Entry)
	if err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Join(i.o.ConfDir, name), err)
	}
	if have, err := i.read(own); err == nil && same(have, list) {
		list = have
	}
	changed, err := i.write(own, list)
	if err != nil {
		return false, err
	}
	if changed {
		i.o.Logger.Info("the mesh's own network configuration is written", "file", own, "from", name)
	}
	if name < own {
		return changed, fmt.Errorf("%s comes before %s and is what the container runtime uses: choose another name for our own", name, own)
	}
	cleaned, err := i.clean(own)
	return changed || cleaned, err
}

// clean takes the entry out of every file but one: the runtime may come to use
// another, and must not find the plugin twice or an old one.
func (i *Installer) clean(keep string) (changed bool, err error) {
	names, err := i.names()
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if name == keep {
			continue
		}
		text, err := i.read(name)
		if err != nil {
			continue // it has gone, or is no configuration
		}
		if i.isOwned(name, text) {
			if err := os.Remove(filepath.Join(i.o.ConfDir, name)); err != nil {
				return changed, err
			}
			changed = true
		} else if list, ours := Remove(text); ours {
			if _, err := i.write(name, list); err != nil {
				return changed, err
			}
			changed = true
		}
	}
	return changed, nil
}

// isOwned reports whether a whole file is ours, and not only an entry of it.
func (i *Installer) isOwned(name string, text []byte) bool {
	ours := name == OwnedName || name == standaloneName || (i.o.Owned || i.o.Standalone) && name == i.o.ConfName
	return ours && bytes.Contains(text, []byte(`"`+EntryName+`"`))
}

// Uninstall takes away everything that was installed. The configuration goes
// first: without it, nobody calls the binary.
func (i *Installer) Uninstall() error {
	if _, err := i.clean(""); err != nil {
		return fmt.Errorf("restoring the network configuration: %w", err)
	}
	if err := i.restore(); err != nil {
		return fmt.Errorf("restoring the network configuration: %w", err)
	}
	if err := os.Remove(filepath.Join(i.o.BinDir, i.o.Entry.Type)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the plugin: %w", err)
	}
	i.o.Logger.Info("the mesh's plugin is taken away from this node", "conf-dir", i.o.ConfDir, "bin-dir", i.o.BinDir)
	return nil
}

// restore puts single plugins' files back in the place of the lists that were
// made of them.
func (i *Installer) restore() error {
	entries, err := os.ReadDir(i.o.ConfDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), replaced)
		if !ok {
			continue
		}
		if err := os.Rename(filepath.Join(i.o.ConfDir, e.Name()), filepath.Join(i.o.ConfDir, name)); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(i.o.ConfDir, listName(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// first is the file that the runtime uses, but for one: the first by name that
// can be read as a configuration.
func (i *Installer) first(but string) (string, error) {
	names, err := i.names()
	if err != nil {
		return "", err
	}
	var broken []error
	for _, name := range names {
		if name == but {
			continue
		}
		text, err := i.read(name)
		if err == nil && !i.isOwned(name, text) {
			if _, _, err = parse(text); err == nil {
				return name, nil
			}
		}
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", name, err))
		}
	}
	return "", errors.Join(append([]error{fmt.Errorf("%w in %s: the network provider of this node has not written one yet", ErrNoConfig, i.o.ConfDir)}, broken...)...)
}

// names lists the files that a runtime reads, in its order.
func (i *Installer) names() ([]string, error) {
	entries, err := os.ReadDir(i.o.ConfDir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
			if !e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func (i *Installer) read(name string) ([]byte, error) {
	path := filepath.Join(i.o.ConfDir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s is too large to be a network configuration", path)
	}
	return os.ReadFile(path)
}

// write replaces a file at once, and says whether it was another before.
func (i *Installer) write(name string, text []byte) (changed bool, err error) {
	path := filepath.Join(i.o.ConfDir, name)
	mode := fs.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return false, nil
	}
	return true, replace(path, text, mode)
}

// copyFile copies a program, unless it is there already.
func copyFile(from, to string) (changed bool, err error) {
	text, err := os.ReadFile(from)
	if err != nil {
		return false, err
	}
	info, err := os.Stat(to)
	if err == nil && info.Mode().Perm() == 0o755 && info.Size() == int64(len(text)) {
		if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, text) {
			return false, nil
		}
	}
	return true, replace(to, text, 0o755)
}

// replace writes a file beside and puts it in the place of path, so that every
// reader sees all of the old or all of the new one, also after a power failure.
func replace(path string, text []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(text); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
