package scenario

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestExternalAuthorizationPage: with the mesh configuration of
// docs/external-authorization.md, each policy and route of the page answers the requests of the
// table that follows as it says.
func TestExternalAuthorizationPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/external-authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```\n").FindAllStringSubmatch(string(page), -1)
	mesh := rig.NewMeshFile(t, blocks[0][1])
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	yaml += managed + rig.NamespaceObject("auth", true) + rig.PodObject("auth", "door", "node2", "app: door") +
		rig.ServiceObject("auth", "door", "door", "{name: http, port: 8000, targetPort: 9000}, {name: grpc, port: 8001, targetPort: 9001}")
	w := rig.Start(t, lab.Config{YAML: yaml, Args: map[string][]string{lab.Ambitd: {"--mesh-config", mesh.Path}}})
	w.Authorizer(lab.InPod("auth", "door")).Answer(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-token") != "letmein" {
			rw.WriteHeader(401)
		}
	}, func(_ context.Context, q *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		if q.GetAttributes().GetRequest().GetHttp().GetHeaders()["x-token"] == "letmein" {
			return &authv3.CheckResponse{Status: &status.Status{}}, nil
		}
		return &authv3.CheckResponse{Status: &status.Status{Code: 16}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: 401}}}}, nil
	})
	web := netip.AddrPortFrom(w.Service("shop", "web", false), 80)
	ask := func(method, path, header string) (int, error) {
		c, err := w.Dial(t.Context(), lab.InPod("shop", "client"), "tcp", web.String())
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:errcheck // the answer has come
		head := method + " " + path + " HTTP/1.1\nHost: web\nContent-Length: 0"
		if header != "" {
			head += "\n" + header
		}
		status, _, err := send(c, head)
		return status, err
	}
	policies, rows := 0, 0
	parts := strings.Split(string(page), "```yaml\n")
	for _, part := range parts[2:] {
		block, after, _ := strings.Cut(part, "```\n")
		name := anyMeta.FindStringSubmatch(block)
		requests := requestRow.FindAllStringSubmatch(after, -1)
		if name == nil || len(requests) == 0 {
			t.Fatalf("an example of the page has no name or no requests:\n%s", block)
		}
		policies++
		rows += len(requests)
		w.MustApply(block)
		w.Eventually("the answers of "+name[2], func() error {
			for _, r := range requests {
				if status, err := ask(r[1], r[2], r[3]); err != nil || fmt.Sprint(status) != r[4] {
					return fmt.Errorf("%s: status %d, error %w", r[0], status, err)
				}
			}
			return nil
		})
		w.MustDelete(name[1], "shop", name[2])
		w.Eventually("it is gone", func() error {
			if status, err := ask("GET", "/private", ""); status != 200 {
				return fmt.Errorf("status %d, error %w", status, err)
			}
			return nil
		})
	}
	if policies != 3 || rows != 9 {
		t.Errorf("%d examples and %d requests of the page were tried", policies, rows)
	}
}
