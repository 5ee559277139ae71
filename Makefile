# SPDX-License-Identifier: Apache-2.0

# Petri: make setup, make demo, make test are all that one needs.

SHELL := /bin/sh
GO ?= go
BIN := bin
# The guests of make build and make test: one each of 32-bit little-endian and of
# big-endian beside the usual one.
GUESTS := amd64 i386 s390x
# And the one that has more than the usual of its CPU.
EXTRA := amd64+python3
# Everything that ships is built without cgo; only the race detector needs it.
export CGO_ENABLED := 0
GOBUILD := $(GO) build -trimpath

.PHONY: help setup setup-demo setup-guests build guest guests test-guests demo test check vm-test race faults bench generate clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## install what building, running and testing need (Debian packages, npm packages)
	@sh deploy/setup.sh

setup-demo: # what make demo needs of it
	@sh deploy/setup.sh demo

build: ## petri, the daemons and the guest agents, into bin/
	$(GOBUILD) -o $(BIN)/ ./cmd/petri ./cmd/sandboxd ./cmd/analyzer ./cmd/reporter
	$(GO) run ./cmd/internal/agents $(BIN) $(GUESTS)

guest: build ## the images of the guests that the tests need, from Debian's packages
	$(BIN)/petri guest build $(GUESTS) $(EXTRA)

setup-guests: ## install what the guests of all CPUs and their tests need besides
	@sh deploy/setup.sh guests

guests: build ## the images of the guests of all CPUs
	$(GO) run ./cmd/internal/agents $(BIN) all
	$(BIN)/petri guest build all

test-guests: ## boot the guests of all CPUs, which make guests has built
	PETRI_TEST_GUESTS=all $(GO) test -tags vm -count=1 -timeout 60m -p 1 -run 'EveryGuest' ./sandboxd/machine/qemu ./cmd/internal/app

demo: GUESTS := amd64
demo: EXTRA :=
demo: setup-demo guest ## detonate a bundled benign sample in a real guest and show the report
	@gcc -static -O1 -o $(BIN)/demo-sample sandboxd/testdata/progs/demo.c
	$(BIN)/petri run --out $(BIN)/demo $(BIN)/demo-sample

generate: ## generated tables, schemas and BPF objects
	$(GO) generate ./...

check: ## format, vet, staticcheck, generated files, import arrows, licence lines, go.mod
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not formatted (gofmt -w):"; echo "$$out"; exit 1; }
	$(GO) vet -tags vm ./...
	$(GO) tool -modfile=tools.mod staticcheck ./...
	$(GO) generate ./...
	@git diff --exit-code -- '*.go' '*.json' '*.o' || { echo "generated files differ from the committed ones: commit what make generate wrote"; exit 1; }
	$(GO) test -count=1 ./cmd/internal/arrows

race: ## unit tests with the race detector
	CGO_ENABLED=1 $(GO) test -race -parallel 4 ./...

# The other tests of those packages make race has run.
vm-test: guest ## tests that need guests: those in files that end in vm_test.go
	@files=$$(git ls-files '*vm_test.go'); \
	other=$$(git grep -l '^//go:build vm' -- '*_test.go' ':!*vm_test.go'); \
	test -z "$$other" || { echo "tests for guests lie in *vm_test.go: $$other"; exit 1; }; \
	names=$$(sed -n 's/^func \(Test[A-Za-z0-9_]*\)(.*/\1/p' $$files | sort -u | paste -sd '|'); \
	$(GO) test -tags vm -timeout 40m -p 2 -run "^($$names)\$$" $$(for f in $$files; do echo ./$${f%/*}; done | sort -u)

test: check race vm-test ## everything

faults: guest ## break a running bus as docs/faults.md says, at length, and print what it cost
	$(GO) run ./cmd/internal/faults

bench: guest ## the figures that Petri promises, each beside its reference
	$(GO) test -tags vm -p 1 -run '^$$' -bench . -benchtime 1x -timeout 60m ./...

clean: ## what was built; caches stay
	rm -rf $(BIN)
