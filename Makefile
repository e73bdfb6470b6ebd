# `make` prints the targets. Only Go and git are needed: what else a target needs, `prepare` sees to.

GO        ?= go
P         ?= 2
BENCH     ?= .
BENCHTIME ?= 1s
FUZZTIME  ?= 20s
SEED      ?= 0
CHAOS     ?= 8m
SOAK      ?= 30m
COUNT     ?= 6
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOSEC       = github.com/securego/gosec/v2/cmd/gosec@v2.29.0
BENCHSTAT   = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0

.DEFAULT_GOAL := help

.PHONY: help
help: ## Print this.
	@sed -n 's/^\([a-z-]*\): [^#]*## /\1	/p' $(MAKEFILE_LIST) | awk -F '	' '{ printf "  make %-14s %s\n", $$1, $$2 }'
	@echo
	@echo "  Variables: P=$(P) packages tested at once; BENCH='$(BENCH)' BENCHTIME=$(BENCHTIME) FUZZTIME=$(FUZZTIME)"
	@echo "             SEED=$(SEED) (0: a random one) CHAOS=$(CHAOS) SOAK=$(SOAK) COUNT=$(COUNT)"

.PHONY: demo
demo: prepare build ## Show it all on a real Postgres, NATS and Redis with three API nodes (about 30 s).
	@bin/authfence demo

.PHONY: test
test: prepare-test ## Run all tests on real services, with the race detector.
	$(GO) test -race -shuffle=on -timeout 20m -p $(P) ./...
	cd bench && $(GO) test -race -shuffle=on -timeout 20m -p $(P) ./...
	cd deploy/test && $(GO) test -shuffle=on ./...

.PHONY: check
check: format vet staticcheck gosec test ## What a change must pass: gofmt, vet, staticcheck, gosec, test.

.PHONY: bench bench-quick
bench: prepare ## Measure authfence beside what people use today, and how its costs grow (about 12 min). PAGE=1: into docs/benchmarks.md.
	@cd bench && $(GO) run ./run $(if $(PAGE),-page ../docs/benchmarks.md)
bench-quick: prepare ## The same in small (about 2 min).
	@cd bench && $(GO) run ./run -quick

.PHONY: microbench
microbench: prepare-bench ## Run the Go benchmarks, one package at a time; each measures its own floor.
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m -p 1 ./...
	cd bench && $(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m -p 1 ./...

.PHONY: bench-compare bench-baseline
bench-compare: bench/out/ratios.txt ## Compare the ratios of the benchmarks with those that are committed (about 8 min).
	cd bench && $(GO) run $(BENCHSTAT) baseline.txt out/ratios.txt
bench-baseline: bench/out/ratios.txt ## Make them the ones to compare with.
	cp bench/out/ratios.txt bench/baseline.txt

# Only ratios are kept: they mean the same on another machine. A percentile needs samples, not seconds.
.PHONY: bench/out/ratios.txt
bench/out/ratios.txt: prepare-bench
	@mkdir -p bench/out
	$(GO) test -run '^$$' -bench 'AuthenticateHit|Gateway' -count $(COUNT) -timeout 60m -p 1 ./authlib ./gateway > bench/out/benchmarks.txt
	cd bench && $(GO) test -run '^$$' -bench 'Drain$$|Writers/notify=on/conns=(4|16)$$' -count $(COUNT) -timeout 60m . >> out/benchmarks.txt
	cd bench && $(GO) test -run '^$$' -bench 'CommitToEvict/nats=process' -benchtime 500x -count $(COUNT) -timeout 60m . >> out/benchmarks.txt
	cd bench && $(GO) run ./ratios < out/benchmarks.txt > out/ratios.txt

.PHONY: model
model: ## Search the protocol's model in wider scopes than the tests do (about 2 min, 1.2 GB).
	$(GO) test ./internal/model -run DeepRun -model.deep=1 -timeout 30m -v

.PHONY: chaos
chaos: prepare-chaos ## Break everything, alone and together, from SEED for CHAOS; a judge of every answer (about 20 min).
	@$(GO) run ./internal/chaos/run -seed $(SEED) -for $(CHAOS)

.PHONY: soak
soak: prepare ## Run a whole site under load for SOAK: memory, goroutines and descriptors must stay flat.
	@$(GO) run ./internal/operations/soak -for $(SOAK)

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME.
	@set -e; for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

.PHONY: build
build: ## Build bin/authfence, static.
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/authfence ./cmd/authfence

.PHONY: clean
clean: ## Remove what was built, and cached test results.
	rm -rf bin
	$(GO) clean -testcache

# Postgres and Redis: found, or installed, or one line that says what to install.
.PHONY: prepare prepare-test prepare-chaos prepare-bench
prepare:
	@$(GO) run ./internal/testenv/prepare
prepare-test:
	@$(GO) run ./internal/testenv/prepare -with race,fastapi,rack,systemd,nginx,caddy,prometheus,chromium
prepare-chaos:
	@$(GO) run ./internal/testenv/prepare -with pooler
prepare-bench:
	@$(GO) run ./internal/testenv/prepare -with nginx

.PHONY: screenshot
screenshot: prepare-test ## Take docs/console.png anew, of a real system in a real browser.
	$(GO) test ./observe/console -run Browser -screenshot $(CURDIR)/docs/console.png

.PHONY: vuln
vuln: ## Look for known vulnerabilities that are reached; asks vuln.go.dev, and so is no part of check.
	$(GO) run $(GOVULNCHECK) ./...

.PHONY: format vet staticcheck gosec
format:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:" $$unformatted; exit 1; fi
vet:
	$(GO) vet ./...
	cd bench && $(GO) vet ./...
	cd deploy/test && $(GO) vet ./...
staticcheck:
	$(GO) run $(STATICCHECK) ./...
	cd bench && $(GO) run $(STATICCHECK) ./...
	cd deploy/test && $(GO) run $(STATICCHECK) ./...
# G115: every conversion was read; docs/security.md says why it is off.
gosec:
	$(GO) run $(GOSEC) -quiet -exclude=G115 -exclude-dir=internal -exclude-dir=examples -exclude-dir=bench ./...
