# One word a job. Everything it needs beyond Go 1.26 and Node 20 it installs
# into this folder, at the versions named here.
SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c

GOLANGCI  := v2.15.0
GOTESTSUM := v1.13.0
BENCHSTAT := v0.0.0-20260908200009-22c9c6c9d4da
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
ARCH      ?= amd64,arm64
FUZZTIME  ?= 60s
FUZZWORKERS ?= 2
OUTPUT    := $(CURDIR)/build/test-output
# Of one package. The slowest takes eight minutes on two quiet cores: room for a machine
# that is three times slower.
LIMIT     := 30m

.DEFAULT_GOAL := help
.PHONY: help run build test race check fmt vet lint bench faults soak simulate mutations fuzz generate package clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: ## try it: the whole connector against a simulated Qualys and Azure
	@go build -o bin/qualys-sentinel -ldflags "-X main.version=$(VERSION)" ./handler
	@bin/qualys-sentinel demo

build: ## bin/qualys-sentinel for this machine
	go build -o bin/qualys-sentinel -ldflags "-X main.version=$(VERSION)" ./handler

test: e2e/node_modules/.installed bin/gotestsum bin/guard ## all tests; those of the real Functions host need Core Tools (func, or FUNC=path)
	@rm -rf $(OUTPUT) && mkdir -p $(OUTPUT)
	@# Those of e2e mostly wait, for hosts that start and leases that end: beside each
	@# other, and beside all other packages.
	@TEST_OUTPUT=$(OUTPUT) E2E_REQUIRE="azurite $$E2E_REQUIRE" exec bin/guard -log $(OUTPUT)/test.log \
	  bin/gotestsum --format pkgname --jsonfile $(OUTPUT)/test.json -- -count=1 -timeout $(LIMIT) -p 3 -parallel 5 ./...
	@go run ./e2e/leak $(OUTPUT)

race: e2e/node_modules/.installed bin/gotestsum bin/guard ## the tests of the program's packages with the race detector
	@mkdir -p $(OUTPUT)
	@TEST_OUTPUT=$(OUTPUT) E2E_REQUIRE="azurite $$E2E_REQUIRE" exec bin/guard -log $(OUTPUT)/race.log \
	  bin/gotestsum --format pkgname -- -count=1 -timeout $(LIMIT) -race ./handler/...

check: fmt vet lint test race ## what has to hold before a commit: format, vet, linters, all tests, the race detector

fmt:
	@files=$$(gofmt -l handler e2e tools); if [ -n "$$files" ]; then echo "not formatted: $$files"; exit 1; fi

vet:
	@go vet ./...
	@go vet -tags profile ./handler

lint: bin/golangci-lint
	@bin/golangci-lint run ./...

bench: e2e/node_modules/.installed bin/benchstat ## speed beside its baseline, peak memory, cold start and cost (COST=all: up to a million hosts)
	@mkdir -p build
	go test -run '^$$' -bench . -benchmem -count 5 -timeout 30m ./handler/internal/bench | tee build/bench.txt
	@bin/benchstat -col /by build/bench.txt
	E2E_REQUIRE=azurite go test -run '^$$' -bench 'WholeRun|ColdStart' -benchtime 3x -timeout 20m ./e2e | tee build/bench-processes.txt
	E2E_REQUIRE=azurite go test -run '^$$' -bench 'Memory|Cost' -benchtime 1x -timeout 2h ./e2e | tee -a build/bench-processes.txt

faults: e2e/node_modules/.installed bin/guard ## every way in which Qualys, Log Analytics, identity, Key Vault or the state can go wrong, as a table
	@echo "outcome, retries and reason are of the run that met the fault; runs is how many it took until all was well;"
	@echo "lost is what is missing then, twice what had arrived before and was sent again."
	@echo
	@echo "| fault | met | outcome | runs | retries | lost | twice | reason |"
	@echo "|---|---|---|---|---|---|---|---|"
	@FAULTS=all E2E_REQUIRE=azurite bin/guard go test ./handler/internal/ingest ./e2e -count=1 -timeout $(LIMIT) -run 'Test(Slow)?Faults$$' -v | awk \
	  '/faults[a-z_]*_test.go:[0-9]+: \|/ { sub(/^ *faults[a-z_]*_test.go:[0-9]+: /, ""); print; n++; split($$0, c, "|"); lost += c[7]; next } \
	   /^ *--- FAIL|_test.go:[0-9]+:/ { print; bad = 1 } \
	   END { printf "\n%d faults, %d lost%s\n", n, lost, bad ? ", and FAILURES: see above" : ""; exit bad || lost > 0 || n < 100 }'

soak: e2e/node_modules/.installed bin/guard ## 2,000 kills with SIGKILL at random moments (KILLS=n: so many; the tests have 25)
	@rm -rf $(OUTPUT)/soak && mkdir -p $(OUTPUT)/soak
	TEST_OUTPUT=$(OUTPUT)/soak KILLS=$(or $(KILLS),2000) E2E_REQUIRE=azurite bin/guard go test ./e2e -count=1 -run 'TestKills$$' -v -timeout 2h
	@go run ./e2e/leak $(OUTPUT)/soak

SEEDS ?= 2000
FIRST ?= 1
simulate: ## many stories in virtual time, several things going wrong in each (SEEDS=n FIRST=seed)
	go test -count=1 -timeout 24h ./handler -run '^TestStories$$' -seeds $(SEEDS) -first $(FIRST) -v $(if $(filter 1,$(SEEDS)),-chronicle)

STORIES ?= 20000
mutations: ## faults put into the program, one after the other: which story finds each (STORIES=n at most, NAMES="some of them")
	go run ./tools/mutations -seeds $(STORIES) -first $(FIRST) $(NAMES)

fuzz: ## every fuzz test, one after the other, for FUZZTIME (60s) each
	@grep -rl '^func Fuzz' --include='*_test.go' handler | sort | while read -r file; do \
	  for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' $$file); do \
	    echo "$$target ($$(dirname $$file))"; \
	    go test ./$$(dirname $$file) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x -parallel $(FUZZWORKERS) | grep -v 'gathering' | tail -n 12 || exit 1; \
	  done; \
	done

generate: ## what is made of others: the templates of arm/, README's buttons and settings, the example file
	go run ./tools/templates
	go test ./handler/internal/settings -run TestDocuments -update

package: ## dist/app, the folder VS Code deploys, and zips of it with checksums and bills of materials
	@go run ./tools/stage -arch $(ARCH) -out dist -version $(VERSION)

clean: ## remove what was built and the demo's data
	rm -rf bin build dist demo-data e2e/node_modules

e2e/node_modules/.installed: e2e/package-lock.json
	@echo "installing Azurite and the Kusto language service from npm (once)"
	@npm ci --prefix e2e --ignore-scripts --loglevel=error
	@touch $@

bin/golangci-lint: Makefile
	@echo "installing golangci-lint $(GOLANGCI) (once)"
	@GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI) && touch $@

bin/gotestsum: Makefile
	@GOBIN=$(CURDIR)/bin go install gotest.tools/gotestsum@$(GOTESTSUM) && touch $@

bin/guard: $(wildcard e2e/guard/*.go)
	@go build -o $@ ./e2e/guard

bin/benchstat: Makefile
	@GOBIN=$(CURDIR)/bin go install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT) && touch $@
