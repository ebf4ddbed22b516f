package routes

import (
	"os"
	"reflect"
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// TestEveryFieldIsDocumented: docs/routing.md says of each field of a rule
// whether it is executed. A field that a newer Gateway API has fails the test.
func TestEveryFieldIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "## What is executed")
	table, _, _ = strings.Cut(table, "## Status")
	for prefix, typ := range map[string]reflect.Type{
		"":           reflect.TypeFor[gatewayv1.HTTPRouteRule](),
		"matches[].": reflect.TypeFor[gatewayv1.HTTPRouteMatch](),
		"filters[].": reflect.TypeFor[gatewayv1.HTTPRouteFilter](),
		"timeouts.":  reflect.TypeFor[gatewayv1.HTTPRouteTimeouts](),
		"retry.":     reflect.TypeFor[gatewayv1.HTTPRouteRetry](),
	} {
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			field := prefix + name
			switch field {
			case "name", "filters[].type": // names and discriminators do nothing by themselves
				continue
			}
			if !strings.Contains(table, "`"+field+"`") && !strings.Contains(table, "`"+field+"[].") && !strings.Contains(table, "`"+field+".") {
				t.Errorf("the table does not say whether %s is executed", field)
			}
		}
	}
}
