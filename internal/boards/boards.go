// Package boards holds the boards for Grafana, and the list of the metrics that they and the
// alert rules may name. Chart observability carries what Files returns.
package boards

import (
	"bytes"
	"encoding/json"
)

// Board is one board. Each opens with the question that it answers.
type Board struct {
	Name  string // of the file
	Title string
	About string

	variables []variable
	rows      []row
}

// All returns the boards, the one to begin with first.
func All() []Board {
	return []Board{mesh(), waypoint(), ztunnel(), cni(), ambitd()}
}

// Prefix is what the names of files of boards begin with.
const Prefix = "ambit-"

// Files returns the boards as Grafana imports them, by the name of the file.
func Files() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, b := range All() {
		text, err := b.JSON()
		if err != nil {
			return nil, err
		}
		out[Prefix+b.Name+".json"] = text
	}
	return out, nil
}

// variable is a choice at the top of a board: the values of a label.
type variable struct{ name, label, metric, of string }

// row is a group of panels under a heading.
type row struct {
	title  string
	panels []panel
}

// panel is a chart, a number or a table.
type panel struct {
	title, kind, unit, help string
	queries                 []query
	warn, bad               float64 // values from which a number is yellow, and red
	falling                 bool    // less is worse
}

// query is an expression in PromQL and the name of its series.
type query struct{ expr, legend string }

// Kinds of panels.
const (
	series = "timeseries"
	number = "stat"
	list   = "table"
)

// Units, as Grafana names them.
const (
	perSecond = "cps"
	requests  = "reqps"
	bytesRate = "Bps"
	byteCount = "bytes"
	share     = "percentunit"
	seconds   = "s"
	millis    = "ms"
	plain     = "short"
	packets   = "pps"
)

// chart returns a panel over time. Queries are expressions and legends in turn.
func chart(title, unit, help string, queries ...string) panel {
	return panel{title: title, kind: series, unit: unit, help: help, queries: pairs(queries)}
}

// stat returns a panel of one number, which is yellow from warn and red from bad.
func stat(title, unit, help, expr string, warn, bad float64) panel {
	return panel{title: title, kind: number, unit: unit, help: help, queries: []query{{expr: expr}}, warn: warn, bad: bad, falling: bad < warn}
}

// table returns a panel of the present values of a query, a row for each series.
func table(title, unit, help, expr string) panel {
	return panel{title: title, kind: list, unit: unit, help: help, queries: []query{{expr: expr}}}
}

func pairs(texts []string) (out []query) {
	for i := 0; i+1 < len(texts); i += 2 {
		out = append(out, query{texts[i], texts[i+1]})
	}
	return out
}

// Widths and heights in Grafana's grid.
const (
	grid       = 24
	statWidth  = 4
	statHeight = 4
	chartWidth = 8
	listWidth  = 12
	chartRows  = 8
)

func (p panel) size() (w, h int) {
	switch p.kind {
	case number:
		return statWidth, statHeight
	case list:
		return listWidth, chartRows
	}
	return chartWidth, chartRows
}

type (
	object map[string]any
	array  []any
)

// schema is the version of the format. Later versions of Grafana read it.
const schema = 39

// JSON returns the board as Grafana imports it.
func (b *Board) JSON() ([]byte, error) {
	panels, id, y := array{}, 0, 0
	for _, r := range b.rows {
		id++
		panels = append(panels, object{
			"id": id, "type": "row", "title": r.title, "collapsed": false, "panels": array{},
			"gridPos": object{"x": 0, "y": y, "w": grid, "h": 1},
		})
		y++
		x, height := 0, 0
		for _, p := range r.panels {
			w, h := p.size()
			if x+w > grid {
				x, y, height = 0, y+height, 0
			}
			id++
			panels = append(panels, p.json(id, object{"x": x, "y": y, "w": w, "h": h}))
			x, height = x+w, max(height, h)
		}
		y += height
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false) // people read the queries
	e.SetIndent("", " ")
	err := e.Encode(object{
		"uid": Prefix + b.Name, "title": "Ambit / " + b.Title, "description": b.About, "tags": array{"ambit"},
		"schemaVersion": schema, "version": 1, "editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "browser",
		"time":        object{"from": "now-1h", "to": "now"},
		"annotations": object{"list": array{}},
		"links": array{object{
			"type": "dashboards", "title": "Ambit", "tags": array{"ambit"}, "asDropdown": true,
			"includeVars": false, "keepTime": true, "targetBlank": false, "icon": "external link", "tooltip": "", "url": "",
		}},
		"templating": object{"list": b.choices()},
		"panels":     panels,
	})
	return out.Bytes(), err
}

// source is the variable that names the data source: a board has no fixed one.
const source = "${datasource}"

func prometheus() object { return object{"type": "prometheus", "uid": source} }

// choices returns the variables of the board.
func (b *Board) choices() array {
	out := array{object{
		"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
		"hide": 0, "refresh": 1, "multi": false, "includeAll": false, "regex": "", "options": array{}, "current": object{},
	}}
	for _, v := range b.variables {
		text := "label_values(" + v.metric + ", " + v.of + ")"
		out = append(out, object{
			"name": v.name, "label": v.label, "type": "query", "datasource": prometheus(),
			"definition": text, "query": object{"query": text, "refId": "Variable", "qryType": 1},
			"hide": 0, "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*", "regex": "", "options": array{},
			"current": object{"selected": true, "text": array{"All"}, "value": array{"$__all"}},
		})
	}
	return out
}

func (p panel) json(id int, at object) object {
	targets := array{}
	for i, q := range p.queries {
		t := object{"refId": string(rune('A' + i)), "datasource": prometheus(), "editorMode": "code", "expr": q.expr, "legendFormat": q.legend, "range": p.kind == series, "instant": p.kind != series}
		if p.kind == list {
			t["format"] = "table"
		}
		targets = append(targets, t)
	}
	defaults := object{"unit": p.unit, "min": 0, "color": object{"mode": "palette-classic"}, "thresholds": p.thresholds(), "mappings": array{}}
	out := object{
		"id": id, "type": p.kind, "title": p.title, "description": p.help, "datasource": prometheus(), "gridPos": at,
		"targets": targets, "fieldConfig": object{"defaults": defaults, "overrides": array{}},
	}
	switch p.kind {
	case series:
		defaults["custom"] = object{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false}
		out["options"] = object{
			"legend":  object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": array{"lastNotNull", "max"}},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	case number:
		defaults["color"] = object{"mode": "thresholds"}
		out["options"] = object{
			"reduceOptions": object{"calcs": array{"lastNotNull"}, "fields": "", "values": false},
			"colorMode":     "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
		}
	case list:
		out["options"] = object{"showHeader": true, "cellHeight": "sm", "sortBy": array{object{"displayName": "Value", "desc": true}}}
		out["transformations"] = array{object{"id": "organize", "options": object{"excludeByName": object{"Time": true}, "indexByName": object{}, "renameByName": object{}}}}
	}
	return out
}

// thresholds returns the colors of values. Without bounds all are green.
func (p panel) thresholds() object {
	step := func(color string, from any) object { return object{"color": color, "value": from} }
	steps := array{step("green", nil)}
	switch {
	case p.falling:
		steps = array{step("red", nil), step("yellow", p.bad), step("green", p.warn)}
	case p.bad > 0:
		steps = append(steps, step("yellow", p.warn), step("red", p.bad))
	}
	return object{"mode": "absolute", "steps": steps}
}
