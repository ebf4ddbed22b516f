package h2

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

var update = flag.Bool("update", false, "write what transcripts produce into their files")

// TestTranscripts plays testdata/*.txt. A file is a list of blocks, separated
// by blank lines: commands, a line "----", and what came of them: the handler's
// calls in lower case, the frames sent in upper case. The first block's
// command is "server" or "client". "#" starts a comment line.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { playFile(t, file) })
	}
}

func playFile(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r *rig
	var out []string
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		cmds, want, _ := strings.Cut(block, "----")
		var got []string
		for line := range strings.Lines(cmds) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			r = play(t, r, line)
			got = append(append(got, r.takeEvents()...), r.output()...)
		}
		result := strings.Join(got, "\n")
		out = append(out, strings.TrimRight(cmds, "\n")+"\n----\n"+result)
		if strings.TrimSpace(want) != strings.TrimSpace(result) && !*update {
			t.Errorf("%s:\n%s\ngot:\n%s\nwant:%s", file, cmds, result, want)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// args are the words of a command: positional ones and key=value options.
type args struct {
	t    *testing.T
	pos  []string
	opts map[string]string
	kv   []string // options in order, as written
}

func parseArgs(t *testing.T, words []string) args {
	a := args{t: t, opts: map[string]string{}}
	for _, w := range words {
		if i := strings.Index(w[1:], "="); i >= 0 {
			a.opts[w[:i+1]] = w[i+2:]
			a.kv = append(a.kv, w)
			continue
		}
		a.pos = append(a.pos, w)
	}
	return a
}

func (a args) num(i int) uint32 {
	a.t.Helper()
	if i >= len(a.pos) {
		a.t.Fatalf("argument %d is missing in %v", i, a.pos)
	}
	n, err := strconv.ParseUint(a.pos[i], 10, 32)
	if err != nil {
		a.t.Fatal(err)
	}
	return uint32(n)
}

func (a args) opt(name string) uint32 {
	n, err := strconv.ParseUint(a.opts[name], 10, 32)
	if err != nil && a.opts[name] != "" {
		a.t.Fatal(err)
	}
	return uint32(n)
}

func (a args) has(word string) bool {
	for _, p := range a.pos {
		if p == word {
			return true
		}
	}
	return false
}

func play(t *testing.T, r *rig, line string) *rig {
	t.Helper()
	words := strings.Fields(line)
	cmd, a := words[0], parseArgs(t, words[1:])
	switch cmd {
	case "server", "client":
		r = newRig(t, Config{
			Server: cmd == "server", MaxStreams: a.opt("streams"), StreamWindow: a.opt("window"),
			ConnWindow: a.opt("conn"), MaxHeaderList: a.opt("headers"), Budget: a.opt("budget"),
			ExtendedConnect: a.has("extended"), Informational: a.has("informational"),
		})
		r.consume = a.has("consume")
		if a.has("started") {
			r.start()
		}
	case "recv":
		playRecv(t, r, a)
	case "do":
		playDo(t, r, a)
	case "pass":
		d, err := time.ParseDuration(a.pos[0])
		if err != nil {
			t.Fatal(err)
		}
		r.now = r.now.Add(d)
	default:
		t.Fatalf("unknown command %q", line)
	}
	return r
}

func playRecv(t *testing.T, r *rig, a args) {
	t.Helper()
	var err error
	switch a.pos[0] {
	case "preface":
		r.wire.WriteString(clientPreface)
	case "settings":
		var s []http2.Setting
		for _, kv := range a.kv {
			k, v, _ := strings.Cut(kv, "=")
			id, _ := strconv.ParseUint(k, 10, 16)
			val, _ := strconv.ParseUint(v, 10, 32)
			s = append(s, http2.Setting{ID: http2.SettingID(id), Val: uint32(val)})
		}
		err = r.framer.WriteSettings(s...)
	case "settings-ack":
		err = r.framer.WriteSettingsAck()
	case "headers":
		block := r.headerBlock(a.kv...)
		if a.has("split") {
			err = r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: a.num(1), EndStream: a.has("end"), BlockFragment: block[:1]})
			err = firstError(err, r.framer.WriteContinuation(a.num(1), true, block[1:]))
			break
		}
		p := http2.HeadersFrameParam{StreamID: a.num(1), EndStream: a.has("end"), EndHeaders: !a.has("open"), BlockFragment: block}
		if a.has("self") {
			p.Priority = http2.PriorityParam{StreamDep: p.StreamID, Weight: 1}
		}
		if a.has("padded") {
			p.PadLength = 7
		}
		err = r.framer.WriteHeaders(p)
	case "continuation":
		err = r.framer.WriteContinuation(a.num(1), !a.has("open"), r.headerBlock(a.kv...))
	case "data":
		p := bytes.Repeat([]byte{'x'}, int(a.num(2)))
		if a.has("padded") {
			err = r.framer.WriteDataPadded(a.num(1), a.has("end"), p, make([]byte, 9))
		} else {
			err = r.framer.WriteData(a.num(1), a.has("end"), p)
		}
	case "rst":
		err = r.framer.WriteRSTStream(a.num(1), http2.ErrCode(a.num(2)))
	case "ping":
		err = r.framer.WritePing(a.has("ack"), [8]byte(append([]byte(a.pos[1]), make([]byte, 8)...)))
	case "goaway":
		err = r.framer.WriteGoAway(a.num(1), http2.ErrCode(a.num(2)), []byte("why"))
	case "window":
		err = r.framer.WriteWindowUpdate(a.num(1), a.num(2))
	case "priority":
		err = r.framer.WritePriority(a.num(1), http2.PriorityParam{StreamDep: a.num(2)})
	case "raw":
		b, derr := hex.DecodeString(strings.Join(a.pos[1:], ""))
		err = derr
		r.wire.Write(b)
	default:
		t.Fatalf("unknown frame %q", a.pos[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := r.flush(); err != nil {
		r.note("error %v", err)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func playDo(t *testing.T, r *rig, a args) {
	t.Helper()
	var s *Stream
	if len(a.pos) > 1 {
		if id, err := strconv.ParseUint(a.pos[1], 10, 32); err == nil {
			s = r.streams[uint32(id)]
		}
	}
	var fields []Field
	h := &Header{}
	for _, kv := range a.kv {
		i := strings.Index(kv[1:], "=") + 1
		switch k, v := kv[:i], kv[i+1:]; k {
		case ":method":
			h.Method = v
		case ":scheme":
			h.Scheme = v
		case ":authority":
			h.Authority = v
		case ":path":
			h.Path = v
		case ":status":
			h.Status, _ = strconv.Atoi(v)
		default:
			fields = append(fields, Field{Name: k, Value: v})
		}
	}
	h.Fields = fields
	var err error
	switch a.pos[0] {
	case "open":
		if s, err = r.conn.Open(h, a.has("end")); err == nil {
			r.streams[s.ID] = s
		}
	case "respond":
		err = r.conn.Respond(s, h, a.has("end"))
	case "trailers":
		err = r.conn.Trailers(s, fields)
	case "data":
		if !r.conn.AppendData(s, make([]byte, a.num(2)), a.has("end")) {
			r.note("refused")
		}
	case "quota":
		r.note("quota %d", r.conn.SendQuota(s))
	case "consume":
		r.conn.Consumed(s, int(a.num(2)))
	case "release":
		r.conn.Release(s)
	case "reset":
		r.conn.Reset(s, ErrCode(a.num(2)))
	case "shutdown":
		r.conn.Shutdown()
	case "goaway":
		r.conn.GoAway(ErrCode(a.num(1)), "bye")
	case "close":
		r.conn.Close(Cancel)
	case "keepalive":
		r.note("alive %v", r.conn.KeepAlive())
	case "ping":
		r.conn.Ping([8]byte{1, 2, 3})
	case "state":
		r.note("state streams=%d available=%d drained=%v goingaway=%v", r.conn.Streams(), r.conn.Available(), r.conn.Drained(), r.conn.GoingAway())
	default:
		err = fmt.Errorf("unknown action %q", a.pos[0])
	}
	if err != nil {
		r.note("error %v", err)
	}
}
