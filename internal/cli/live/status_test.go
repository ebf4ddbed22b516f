package live

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/source"
)

// Conditions are read wherever in a status they are.
func TestConditionsOfAllPartsOfAStatus(t *testing.T) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON([]byte(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"g","namespace":"ns"},"status":{
		"conditions":[{"type":"Accepted","status":"True","reason":"R","message":"m"}],
		"parents":[{"parentRef":{"namespace":"a","name":"gw"},"conditions":[{"type":"Accepted","status":"Unknown","reason":"Pending","message":"m"}]}, "nonsense"],
		"listeners":[{"name":"http","conditions":[{"type":"Programmed","status":"True","reason":"R","message":"m"}]},{"name":"none"}]}}`)); err != nil {
		t.Fatal(err)
	}
	o := objectOf(source.Gateway.Kind, u)
	got := fmt.Sprint(len(o.Conditions))
	for _, e := range o.Entries {
		got += fmt.Sprintf(", %s: %s", Label(&e), e.Conditions[0].Type)
	}
	if want := "1, parents a/gw: Accepted, listeners http: Programmed"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
