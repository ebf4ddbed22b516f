package source

// HasAll reports whether labels have every label of a selector, with its value. All labels
// have those of the empty selector; whether that selects anything is the caller's decision.
func HasAll(labels, selector map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
