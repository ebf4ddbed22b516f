# Every target that tests ends with "N passed, N failed", exits non-zero on a
# failure and leaves no process, namespace or file behind.

GO      ?= go
BIN     ?= bin
VERSION ?= dev
LDFLAGS := -s -w -X github.com/ambit-mesh/ambit/internal/ops/version.tag=$(VERSION)

# The same for programs and tests, or each package is compiled once for either.
export CGO_ENABLED = 0
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

# Pinned: what `make lint` and `make release` run, built from source by the Go tool on first use.
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0
CYCLONEDX   := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
D2          := oss.terrastruct.com/d2@v0.7.1
PROTOC_GEN  := google.golang.org/protobuf/cmd/protoc-gen-go

# Pure and transport packages: small enough that the race detector is always on.
RACE  := ./internal/mesh/... ./internal/transport/... ./internal/xds/... ./internal/zds/... ./internal/sys/poll/... ./internal/ops/... ./internal/control/collection/... ./internal/control/policy/... ./internal/control/auth/...
FUZZTIME ?= 10s

# Tests of the real programs take those that were just built.
PROGRAMS := AMBIT_BIN='$(abspath $(BIN))'

CLUSTER := $(GO) run ./test/cluster

.PHONY: drawings all build parts images cluster cluster-down e2e demo test race conformance interop peers bench scale chaos soak lint fuzz generate release clean help programs

all: build

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## the six programs and the test programs, static, into bin/
	@mkdir -p $(BIN)
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/... ./test/echo ./test/load

images: build ## container images of the programs, as archives, into bin/images/
	@$(GO) run ./build/images -bin $(BIN) -o $(BIN)/images -version '$(VERSION)'

cluster: ## a Kubernetes cluster of three nodes on this machine (root); builds Kubernetes the first time
	@$(CLUSTER) build
	@$(CLUSTER) up

cluster-down: ## takes the cluster down
	@$(CLUSTER) down

e2e: images ## on the cluster of KUBECONFIG, or else the one of make cluster
	@$(PROGRAMS) AMBIT_WORLD=cluster $(GO) run ./test/run -each -p 1 -count=1 -timeout 40m ./test/e2e/... ./test/both

demo: build ## the main job, end to end, on this machine
	@$(GO) run ./test/demo -bin $(BIN)

# What takes longest and mostly waits goes first, with room for the rest to be
# compiled and run beside it. `make lint` vets.
test: build parts ## unit, virtual time and network namespaces (root)
	@$(PROGRAMS) $(GO) run ./test/run -race -vet=off -timeout 10m $(RACE) -- \
		-p 4 -vet=off -timeout 30m ./test/scenario ./test/both ./test/attack ./test/chaos $$($(GO) list ./... | grep -vE '/internal/(mesh|transport|xds|zds|sys/poll|ops|control/(collection|policy|auth))(/|$$)|/test/(interop|e2e)(/|$$)')

# Programs of others that tests drive, each a module of its own.
PARTS := opa collector prometheus

parts: $(addprefix parts/,$(PARTS)) ## programs of others for test/parts, into bin/parts/
parts/%:
	@mkdir -p $(BIN)/parts
	cd test/parts/$* && GOWORK=off $(GO) build -o '$(abspath $(BIN))/parts/' .

race: build ## internal/ and cmd/ with the race detector, which make test has on for the small packages (root)
	@$(PROGRAMS) $(GO) run ./test/run -race -vet=off -timeout 15m ./internal/... ./cmd/...

# h2spec against the HTTP/2 engine, then Gateway API's suite, of which the images
# are Ambit's own programs under the names that it asks for.
CONFORMANCE := GOWORK=off GOFLAGS=
ECHO_IMAGE  := registry.k8s.io/gateway-api/echo-advanced:v1.5.1

conformance: images ## h2spec, and Gateway API for meshes on the cluster of make cluster; report in test/conformance/
	@$(GO) run ./test/run -count=1 ./test/h2spec/...
	@cd test/conformance && $(CONFORMANCE) $(GO) build -o '$(abspath $(BIN))/conformance/' ./client ./server
	@$(GO) run ./build/images -bin $(BIN)/conformance -o $(BIN)/conformance -other $(ECHO_IMAGE)=server,client
	@$(CLUSTER) load $(BIN)/images/*.tar $(BIN)/conformance/*.tar
	@$(GO) build -o $(BIN)/conformance/run ./test/run
	@eval "$$($(CLUSTER) env)" && cd test/conformance && $(PROGRAMS) CONFORMANCE_REPORT='$(abspath test/conformance/report.yaml)' \
		$(CONFORMANCE) '$(abspath $(BIN))/conformance/run' -each -count=1 -timeout 30m ./...

# With PEER_ZTUNNEL, first in network namespaces; with whatever is given, on the
# cluster of KUBECONFIG, or else the one of make cluster.
interop: peers images ## Istio's programs in this mesh: make interop PEER_ISTIOD=/path PEER_ZTUNNEL=/path, or one of them
	@$(PROGRAMS) PEER_ISTIOD='$(call program,$(PEER_ISTIOD))' PEER_ZTUNNEL='$(call program,$(PEER_ZTUNNEL))' $(GO) run ./test/run -each \
		$(if $(PEER_ZTUNNEL),-count=1 -timeout 20m ./test/interop -- -tags interop -count=1 -run TestAnotherZtunnel -timeout 10m ./internal/node --) \
		-count=1 -timeout 30m ./test/interop/kubernetes

# A file's whole path; what is no file is an image's name.
program = $(or $(realpath $(1)),$(1))

peers:
	@test -n '$(PEER_ISTIOD)$(PEER_ZTUNNEL)' || { printf '%s\n\n  %s\n' \
		'neither PEER_ISTIOD nor PEER_ZTUNNEL is set: they name programs of Istio, as in' \
		'make interop PEER_ISTIOD=/path/to/pilot-discovery PEER_ZTUNNEL=/path/to/ztunnel' >&2; exit 1; }

chaos: build ## kill -9 of every part under load, and worse
	@$(PROGRAMS) $(GO) run ./test/run -each -count=1 -timeout 20m ./test/chaos/...

# How long: five minutes at least, half of which warm up.
SOAK ?= 5m

soak: build ## a mesh with churn for SOAK=1h: memory, descriptors and what else is held stay flat; table in bin/soak.txt
	@$(PROGRAMS) $(GO) run ./test/run -each -tags soak -count=1 -timeout 0 ./test/soak -soak $(SOAK) -soak.report '$(abspath $(BIN))/soak.txt'

programs: build ## SSH, FTP, PostgreSQL, dig and others, through the mesh and without it; names the packages that it needs
	@$(PROGRAMS) $(GO) run ./test/run -each -tags programs -count=1 -timeout 20m -run 'TestPrograms|TestResolvers' ./test/scenario

bench: build ## against no mesh, two plain proxies, and PEER_ZTUNNEL, PEER_ENVOY, PEER_NGINX, PEER_HAPROXY=/path if given
	@$(GO) run ./test/bench -bin $(BIN) -peer '$(PEER_ZTUNNEL)'
	@$(GO) run ./test/bench -l7 -bin $(BIN) -envoy '$(PEER_ENVOY)' -nginx '$(PEER_NGINX)' -haproxy '$(PEER_HAPROXY)'

scale: ## the control plane on the API server of KUBECONFIG, with 20,000 pods that nobody runs
	@$(GO) run ./test/scale $(SCALE)

lint: ## gofmt, go vet, golangci-lint, govulncheck
	@GO=$(GO) GOLANGCI=$(GOLANGCI) GOVULNCHECK=$(GOVULNCHECK) sh test/lint.sh

fuzz: ## every fuzz target for FUZZTIME each
	@GO=$(GO) FUZZTIME=$(FUZZTIME) sh test/fuzz.sh

generate: ## protobuf code, the kinds in charts/base, boards, the reference in docs; needs protoc (Debian: protobuf-compiler)
	GOBIN=$(CURDIR)/$(BIN) $(GO) install $(PROTOC_GEN)
	PATH=$(CURDIR)/$(BIN):$$PATH protoc -I api --go_out=api --go_opt=paths=source_relative \
		workload/workload.proto security/authorization.proto zds/zds.proto route/route.proto authz/authz.proto authn/authn.proto extauthz/extauthz.proto telemetry/telemetry.proto traffic/traffic.proto ratelimit/ratelimit.proto egress/egress.proto
	$(GO) generate ./charts ./internal/control/pages

drawings: ## the drawings of docs/ from their text
	@for f in docs/drawings/*.d2; do GOFLAGS= $(GO) run $(D2) --layout dagre --pad 20 $$f $${f%.d2}.svg && chmod 644 $${f%.d2}.svg || exit 1; done

release: ## everything that a release publishes, into dist/: make release VERSION=v1.2.3
	@$(GO) run ./build/release -version '$(VERSION)' -o dist -sbom '$(CYCLONEDX)'

clean: ## removes bin/ and dist/
	rm -rf $(BIN) dist
