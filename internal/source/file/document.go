package file

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/internal/source"
)

// maxDocuments bounds the objects of one file, lists unrolled.
const maxDocuments = 50_000

// document is one object of a file: as JSON, not yet typed.
type document struct {
	kind *source.Kind
	key  source.Key
	line int
	json []byte
	node *yaml.Node // for positions; dropped once the object is decoded
}

// failure is a document that could not be used. known reports whether it could
// at least be named.
type failure struct {
	problem Problem
	key     source.Key
	known   bool
}

// parsed is what a file says.
type parsed struct {
	docs     []document
	failures []failure
	ignored  []Problem
	steps    int // see encoder
	also     []*source.Kind
}

func (p *parsed) fail(file string, line int, field, format string, args ...any) {
	p.failures = append(p.failures, failure{problem: Problem{File: file, Line: line, Field: field, Message: fmt.Sprintf(format, args...)}})
}

// parse splits a file into documents and reads each on its own, so that a bad
// one does not take its neighbours along.
func parse(file string, data []byte, also ...*source.Kind) *parsed {
	p := &parsed{steps: len(data) + maxExpanded, also: also}
	for _, part := range split(data) {
		p.part(file, part)
	}
	return p
}

// part is one YAML document of the stream; line is that of its first byte.
type part struct {
	line int
	text []byte
}

// split cuts at lines that begin with "---". YAML forbids such a line inside
// any scalar, so no parser is needed to find them.
func split(data []byte) []part {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	var parts []part
	start, startLine, line := 0, 1, 1
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if isSeparator(data[at:end]) {
			parts = append(parts, part{startLine, data[start:at]})
			start, startLine = at+len("---"), line
		}
		at = end
	}
	return append(parts, part{startLine, data[start:]})
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

var yamlLine = regexp.MustCompile(`line (\d+): ?`)

func (p *parsed) part(file string, in part) {
	if blank(in.text) {
		return
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(in.text, &doc); err != nil {
		msg := strings.TrimPrefix(err.Error(), "yaml: ")
		line := in.line
		if m := yamlLine.FindStringSubmatch(msg); m != nil {
			n, _ := strconv.Atoi(m[1])
			line += max(n, 1) - 1
			msg = strings.Replace(msg, m[0], "", 1)
		}
		p.fail(file, line, "", "not YAML: %s", msg)
		return
	}
	if len(doc.Content) != 1 {
		return // comments only
	}
	shift(&doc, in.line-1)
	p.object(file, doc.Content[0], header{})
}

// blank reports whether there is nothing but space and comments.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if l := bytes.TrimSpace(line); len(l) > 0 && l[0] != '#' {
			return false
		}
	}
	return true
}

// shift turns lines of the part into lines of the file. Aliases point into the
// same tree and are not followed.
func shift(n *yaml.Node, by int) {
	if by == 0 {
		return
	}
	n.Line += by
	for _, c := range n.Content {
		shift(c, by)
	}
}

// header is what identifies an object.
type header struct{ apiVersion, kind, namespace, name string }

func (p *parsed) object(file string, n *yaml.Node, inherit header) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.fail(file, n.Line, "", "expected an object with apiVersion, kind and metadata")
		return
	}
	h := readHeader(n)
	if h.kind == "" && inherit.kind != "" {
		h.kind, h.apiVersion = inherit.kind, inherit.apiVersion
	}
	if items := child(n, "items"); items != nil && strings.HasSuffix(h.kind, "List") {
		p.list(file, items, h)
		return
	}
	if h.kind == "" {
		p.fail(file, n.Line, "kind", "the object has no kind")
		return
	}
	kind, ok := p.lookup(h)
	if !ok {
		p.ignored = append(p.ignored, Problem{File: file, Line: n.Line, Ignored: true,
			Message: fmt.Sprintf("%s %s is not a kind the mesh reads; ignored", h.apiVersion, h.kind)})
		return
	}
	p.known(file, n, kind, h)
}

func (p *parsed) list(file string, items *yaml.Node, h header) {
	if items.Kind != yaml.SequenceNode {
		p.fail(file, items.Line, "items", "expected a list")
		return
	}
	inherit := header{}
	if elem := strings.TrimSuffix(h.kind, "List"); elem != "" {
		inherit = header{apiVersion: h.apiVersion, kind: elem}
	}
	for _, item := range items.Content {
		if len(p.docs)+len(p.failures) >= maxDocuments {
			p.fail(file, item.Line, "items", "more than %d objects in one file; split it", maxDocuments)
			return
		}
		if k := readHeader(item).kind; strings.HasSuffix(k, "List") {
			p.fail(file, item.Line, "items", "a list inside a list")
			continue
		}
		p.object(file, item, inherit)
	}
}

func (p *parsed) lookup(h header) (*source.Kind, bool) {
	group, _, found := strings.Cut(h.apiVersion, "/")
	if !found {
		group = ""
	}
	if kind, ok := source.KindOf(group, h.kind); ok && kind.Is(h.apiVersion, h.kind) {
		return kind, true
	}
	for _, kind := range p.also {
		if kind.Is(h.apiVersion, h.kind) {
			return kind, true
		}
	}
	return nil, false
}

// known handles a document of a kind we read.
func (p *parsed) known(file string, n *yaml.Node, kind *source.Kind, h header) {
	key := source.Key{Kind: kind, Name: h.name}
	if kind.Namespaced {
		key.Namespace = h.namespace
		if key.Namespace == "" {
			key.Namespace = "default"
		}
	}
	fail := func(line int, field, format string, args ...any) {
		p.fail(file, line, field, format, args...)
		f := &p.failures[len(p.failures)-1]
		f.key, f.known = key, key.Name != ""
	}
	if field, msg := checkName(key); msg != "" {
		fail(n.Line, field, "%s", msg)
		return
	}
	e := encoder{steps: &p.steps}
	if err := e.value(n, "", 0); err != nil {
		fail(err.line, err.field, "%s", err.msg)
		return
	}
	p.docs = append(p.docs, document{kind: kind, key: key, line: n.Line, json: e.out, node: n})
}

// checkName refuses names Kubernetes would refuse: they become parts of
// identities, resource names and file names.
func checkName(key source.Key) (field, msg string) {
	if key.Name == "" {
		return "metadata.name", "the object has no name"
	}
	check := validation.IsDNS1123Subdomain
	if key.Kind.LabelName {
		check = validation.IsDNS1123Label
	}
	if errs := check(key.Name); len(errs) > 0 {
		return "metadata.name", fmt.Sprintf("%q: %s", key.Name, errs[0])
	}
	if key.Namespace != "" {
		if errs := validation.IsDNS1123Label(key.Namespace); len(errs) > 0 {
			return "metadata.namespace", fmt.Sprintf("%q: %s", key.Namespace, errs[0])
		}
	}
	return "", ""
}

func readHeader(n *yaml.Node) header {
	h := header{apiVersion: scalar(child(n, "apiVersion")), kind: scalar(child(n, "kind"))}
	meta := child(n, "metadata")
	h.name, h.namespace = scalar(child(meta, "name")), scalar(child(meta, "namespace"))
	return h
}

// child returns the value of a key of a mapping, nil when there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	n = target(n)
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func target(n *yaml.Node) *yaml.Node {
	for range 8 { // an alias names an anchored node; a chain is not possible, a cycle is
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

func scalar(n *yaml.Node) string {
	n = target(n)
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		return ""
	}
	return n.Value
}
