package scenario

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
)

// exampleShop returns the shop of the quick start, whose Namespace has these labels, with
// the tests' own server in place of one that not every machine has.
func exampleShop(t *testing.T, labels string) string {
	t.Helper()
	example, err := os.ReadFile("../../examples/shop/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := regexp.MustCompile(`command: \[python3.*\]`).ReplaceAllString(string(example), fmt.Sprintf("command: [%s, server]", rig.Bin("echo")))
	return strings.Replace(yaml, "metadata: {name: shop}", "metadata: {name: shop, labels: {"+labels+"}}", 1)
}
