package install

import (
	"maps"
	"slices"
)

// free are values whose keys are not ours to name.
var free = []string{"meshConfig", "nodeSelector", "resources", "seccompProfile", "seLinuxOptions", "updateStrategy"}

// Ignored lists the paths of values that no chart knows: those of Istio's charts
// that mean nothing here, and typing errors.
func (s *Spec) Ignored() ([]string, error) {
	var all []map[string]any
	own := map[string]map[string]any{} // by the key below which a chart's own values may be
	for _, c := range slices.Concat(phases...) {
		ch, err := loadChart(c)
		if err != nil {
			return nil, err
		}
		all = append(all, ch.Values)
		if key := chartKey[c]; key != "" {
			own[key] = ch.Values
		}
	}
	var found []string
	for _, key := range slices.Sorted(maps.Keys(s.Values)) {
		value, path := s.Values[key], "values."+key
		if defaults, ok := own[key]; ok {
			given, _ := value.(map[string]any)
			found = append(found, unknown(path, given, []map[string]any{defaults})...)
			continue
		}
		found = append(found, unknown("values", map[string]any{key: value}, all)...)
	}
	return found, nil
}

// unknown lists what of the given values none of the defaults has.
func unknown(path string, given map[string]any, defaults []map[string]any) []string {
	var found []string
	for _, key := range slices.Sorted(maps.Keys(given)) {
		known, open := false, slices.Contains(free, key)
		var below []map[string]any
		for _, d := range defaults {
			value, ok := d[key]
			if !ok {
				continue
			}
			known = true
			m, isMap := value.(map[string]any)
			open = open || !isMap || len(m) == 0
			below = append(below, m)
		}
		inner, isMap := given[key].(map[string]any)
		switch {
		case !known:
			found = append(found, path+"."+key)
		case isMap && !open:
			found = append(found, unknown(path+"."+key, inner, below)...)
		}
	}
	return found
}
