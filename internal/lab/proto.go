package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab/objects"
)

// The control protocol: over a unix stream socket in the state directory, each
// message is a length, to which descriptors may be attached, and JSON.

// Request is what a client asks; Op says which of the other fields count.
type Request struct {
	Op        string             `json:"op"`
	Documents []objects.Document `json:"documents,omitempty"` // apply
	Kind      string             `json:"kind,omitempty"`      // delete, label
	Namespace string             `json:"namespace,omitempty"`
	Name      string             `json:"name,omitempty"`
	Labels    map[string]*string `json:"labels,omitempty"` // label; nil removes
	Where     Where              `json:"where,omitempty"`  // exec, dial, netns
	Argv      []string           `json:"argv,omitempty"`
	Env       []string           `json:"env,omitempty"`
	Dir       string             `json:"dir,omitempty"`
	TTY       bool               `json:"tty,omitempty"`
	Signal    int                `json:"signal,omitempty"`  // signal, kill
	Network   string             `json:"network,omitempty"` // dial
	Address   string             `json:"address,omitempty"`
	Component string             `json:"component,omitempty"`
	Mode      RestartMode        `json:"mode,omitempty"`
	Path      string             `json:"path,omitempty"` // replace
}

// Reply is an answer, or one of several.
type Reply struct {
	Error  string   `json:"error,omitempty"`
	Status *Status  `json:"status,omitempty"`
	Exit   *int     `json:"exit,omitempty"`
	Text   []string `json:"text,omitempty"`
}

// maxMessage bounds what either side accepts: a state with thousands of pods
// or a directory of configuration fits many times.
const maxMessage = 64 << 20

// maxFiles is the most descriptors a message may carry: the three of exec.
const maxFiles = 4

// Send writes a message, with descriptors beside it.
func Send(c *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes is too large", len(b))
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(b))) //nolint:gosec // bounded above
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(head[:], oob, nil); err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

// Receive reads one message. The descriptors that came with it are the caller's.
func Receive(c *net.UnixConn, v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseAll(files)
			files = nil
		}
	}()
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if files, err = parseFiles(oob[:oobn]); err != nil {
		return files, err
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return files, fmt.Errorf("message of %d bytes is too large", size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(c, b); err != nil {
		return files, err
	}
	return files, json.Unmarshal(b, v)
}

func parseFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes the files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// ShortPath names a socket through a descriptor of its directory, because the
// address of a unix socket is at most 107 bytes and a state directory may be
// deeper.
func ShortPath(path string) (short string, release func(), err error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path)
	return short, func() { _ = dir.Close() }, nil
}

func dialControl(d Dirs) (*net.UnixConn, error) {
	path, release, err := ShortPath(d.Control())
	if err != nil {
		return nil, fmt.Errorf("no lab in %s: start one with `ambit lab up`", d.Root)
	}
	defer release()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("no lab is running in %s: start one with `ambit lab up`", d.Root)
		}
		return nil, fmt.Errorf("reaching the lab in %s: %w", d.Root, err)
	}
	return c, nil
}
