# Pollux. `make` alone prints the targets: those with a "##" behind them.
# Set-up is done by the targets themselves (scripts/bootstrap installs Debian's
# packages and says which; root or sudo is used for that only).

SHELL     := /bin/bash
GO        ?= go
BOOTSTRAP ?= scripts/bootstrap
PREFIX    ?= /usr/local
DESTDIR   ?=

# Settings of single targets.
SEEDS    ?= 10000
SEED     ?=
HOURS    ?= 10000
FUZZTIME ?= 10m
SURFACE  ?=
PKG      ?= ./...
SABOTAGE ?=
BUGS     ?= ten
BASE     ?=
ROUNDS   ?= 5
HA_ROUNDS ?= 40
HA_SPEED ?= 50

# No stamp by git: it fails in a checkout which belongs to another user.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

MODULE  := github.com/pollux-project/pollux
VERSION := 0.1.0-dev
COMMIT  := $(shell git -c safe.directory='*' describe --always --dirty --exclude '*' 2>/dev/null)
LDFLAGS := -X $(MODULE)/cmd/internal/service.Version=$(VERSION)$(COMMIT:%=+%) \
           -X $(MODULE)/cmd/internal/adm.Release=$(VERSION)$(COMMIT:%=+%)
# Without cgo: the programs need no C library, neither on the host nor in memory,
# where it takes 1.3 MiB of what a node may have.
GOBUILD := CGO_ENABLED=0 $(GO) build -ldflags='$(LDFLAGS)'

# What the linters are pinned to.
LINT_VERSION    := v2.15.0
LINT            := build/tools/golangci-lint-$(LINT_VERSION)

.DEFAULT_GOAL := help

.PHONY: help
help: ## print this list
	@echo "Pollux $(VERSION): one disk on two nodes. README.md has the first steps."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Go itself is not installed by the set-up.
.PHONY: go-present
go-present:
	@command -v $(GO) >/dev/null || { echo 'make: there is no "$(GO)": install Go 1.26 or newer from https://go.dev/dl/ and put it into PATH' >&2; exit 1; }

# --- build and install -------------------------------------------------------

.PHONY: build
build: go-present ## build all programs into bin/
	@$(BOOTSTRAP) build
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/...

.PHONY: install
install: ## copy programs, manual pages and systemd units to DESTDIR/PREFIX (default /usr/local)
	@test -x bin/polluxd || { echo 'make install: bin/ is empty: run "make build" first' >&2; exit 1; }
	install -d '$(DESTDIR)$(PREFIX)/sbin' '$(DESTDIR)$(PREFIX)/share/man/man8' '$(DESTDIR)$(PREFIX)/share/man/man5' \
		'$(DESTDIR)$(PREFIX)/lib/systemd/system'
	install -m 0755 bin/polluxd bin/polluxha bin/polluxadm bin/polluxmeta bin/pollux-witness '$(DESTDIR)$(PREFIX)/sbin/'
	install -m 0644 docs/*.8 '$(DESTDIR)$(PREFIX)/share/man/man8/'
	install -m 0644 docs/*.5 '$(DESTDIR)$(PREFIX)/share/man/man5/'
	@for unit in scripts/systemd/*.service; do \
		echo "install $$unit"; \
		sed 's|/usr/sbin/pollux|$(PREFIX)/sbin/pollux|' $$unit >'$(DESTDIR)$(PREFIX)/lib/systemd/system/'$${unit##*/} || exit 1; \
	done

.PHONY: clean
clean: ## remove what was built and downloaded (bin/, build/)
	rm -rf bin build cover.out

# --- see it work -------------------------------------------------------------

.PHONY: demo
demo: build ## a VM survives the death of its node (SABOTAGE=1: must notice a lost record)
	@$(BOOTSTRAP) demo
	scripts/demo/build-guest
	SABOTAGE=$(SABOTAGE) bin/pollux-demo

# --- tests -------------------------------------------------------------------

.PHONY: test
test: go-present ## all tests: unit, golden, simulated histories, real clients (6 minutes or less)
	@$(BOOTSTRAP) build test
	$(GO) test -shuffle=on ./...
	$(GO) test -tags invariants ./replication -run '^Test(Scripts|Sim|Invariants)'

.PHONY: race
race: go-present ## all tests under the race detector
	@$(BOOTSTRAP) build test
	$(GO) test -race -shuffle=on $(PKG)

.PHONY: sim
sim: ## SEEDS=10000 simulated histories of two nodes; SEED=N replays one
	$(GO) test -tags invariants ./replication -run '^TestSim$$' -timeout 0 -v $(if $(SEED),-seed=$(SEED),-seeds=$(SEEDS) -progress)

.PHONY: sim-selftest
sim-selftest: ## plant bugs, one at a time, and see the simulation find each within a minute (BUGS=more for the rest, BUGS=name)
	$(GO) test ./replication/repltest/selftest -v -run '^Test(OverlaysApply|SelfTest)$$' -count=1 -timeout 4h -bugs=$(BUGS)

.PHONY: ha-sim
ha-sim: ## SEEDS=10000 simulated histories of failover, and HOURS=10000 without one; SEED=N replays one
	$(GO) test ./hypervisor/ha/hatest -run '^Test$(if $(SEED),Sim$$,(Sim|NoFalseFailover)$$)' -timeout 0 -count=1 -v $(if $(SEED),-seed=$(SEED),-seeds=$(SEEDS) -hours=$(HOURS))

.PHONY: ha-selftest
ha-selftest: ## plant bugs of failover, one at a time, and see its simulation find each within a minute (BUGS=name)
	$(GO) test ./replication/repltest/selftest -v -run '^Test(OverlaysApply|SelfTest)$$' -count=1 -timeout 4h -bugs=$(if $(filter ten,$(BUGS)),ha,$(BUGS))

.PHONY: crash
crash: ## power cuts at every durable step of two nodes and of their metadata
	$(GO) test -tags invariants ./replication -run 'Crash' -timeout 60m -every
	$(GO) test ./replication/meta ./replication/engine ./blockdev/blocktest -run 'Crash' -count=5

.PHONY: fuzz
fuzz: go-present ## hostile peers, clients and files: FUZZTIME=10m for each surface (SURFACE="peer nbd conf meta control")
	@$(BOOTSTRAP) build
	GO='$(GO)' FUZZTIME='$(FUZZTIME)' scripts/fuzz $(SURFACE)

.PHONY: e2e
e2e: build ## only the tests that run real processes, loop devices and the demo's guest
	@$(BOOTSTRAP) test demo
	scripts/demo/build-guest
	$(GO) test ./cmd/internal/e2e
	$(GO) test -run '^TestE2E' ./cmd/internal/demo ./cmd/internal/hatestbed ./blockdev/...

.PHONY: ha
ha: build ## failover with real processes: HA_ROUNDS=40 faults of hosts, links, disks and arbiters with each arbiter, SEED=N repeats (root, 15 minutes)
	@$(BOOTSTRAP) test demo
	scripts/demo/build-guest
	bin/pollux-ha-rounds -rounds $(HA_ROUNDS) -out build/ha $(if $(SEED),-seed $(SEED))

.PHONY: ha-speed
ha-speed: build ## only what has a promised speed, HA_SPEED=50 times each: takeovers, after a fence, moves, I/O alone (root, 30 minutes)
	@$(BOOTSTRAP) test demo
	scripts/demo/build-guest
	bin/pollux-ha-rounds -speed -rounds $(HA_SPEED) -out build/ha-speed $(if $(SEED),-seed $(SEED))

.PHONY: ha-smoke
ha-smoke: build ## the short form of ha (root, 2 minutes or less)
	@$(BOOTSTRAP) test demo
	scripts/demo/build-guest
	bin/pollux-ha-rounds -short $(if $(SEED),-seed $(SEED))

.PHONY: ha-control
ha-control: build ## the rounds without the check of terms: each kind that needs it must see records lost, or they are blind (root, 4 minutes)
	@$(BOOTSTRAP) test demo
	scripts/demo/build-guest
	bin/pollux-ha-rounds -control $(if $(SEED),-seed $(SEED))

.PHONY: interop
interop: build ## every scenario with the kernel's DRBD 8.4 as peer, and what it does to a term record (27 minutes or less)
	@$(BOOTSTRAP) interop
	scripts/lab/interop
	scripts/lab/kernel-facts
	scripts/lab/superblock-facts

.PHONY: interop-smoke
interop-smoke: build ## the quick form of interop (4 minutes or less)
	@$(BOOTSTRAP) interop
	scripts/lab/interop --quick

.PHONY: interop-nbd
interop-nbd: go-present ## attach-device = "nbd" with a real kernel's nbd driver (2 minutes or less)
	@$(BOOTSTRAP) build interop
	scripts/lab/nbd-attach

.PHONY: interop-speed
interop-speed: go-present ## speed with the kernel's DRBD as peer, beside two kernels in the same guests (8 minutes or less)
	@$(BOOTSTRAP) build interop
	scripts/lab/speed

.PHONY: interop-adopt
interop-adopt: go-present ## a disk goes over from drbd.ko to Pollux and back, also after crashes; docs/migration.md word for word (10 minutes or less)
	@$(BOOTSTRAP) build interop
	scripts/lab/adopt
	scripts/lab/adopt --document

.PHONY: budget
budget: go-present ## what one write costs: allocations, system calls, instructions, against the committed figures (1 minute)
	@$(BOOTSTRAP) build test
	$(GO) test ./cmd/internal/e2e -count=1 -run '^TestBudget$$' -budget=check -v

.PHONY: budget-update
budget-update: go-present ## write these figures anew, after a change that is worth its price or has made a write cheaper
	@$(BOOTSTRAP) build test
	$(GO) test ./cmd/internal/e2e -count=1 -run '^TestBudget$$' -budget=update -v

.PHONY: budget-selftest
budget-selftest: go-present ## plant an allocation, a system call and a loop, one at a time, and see "make budget" fail (2 minutes)
	@$(BOOTSTRAP) build test
	$(GO) test ./cmd/internal/e2e -count=1 -run '^TestBudgetPlanted$$' -budget=planted -v

.PHONY: cover
cover: ## test coverage by package; cover.out for `go tool cover -html=cover.out`
	@$(BOOTSTRAP) build test
	$(GO) test -coverprofile=cover.out $(PKG)
	@$(GO) tool cover -func=cover.out | tail -1

.PHONY: bench
bench: build ## speed and memory beside QEMU's network RAID-1 and nbdcopy, in ROUNDS=5: a table, and a report below build/bench (20 minutes)
	@$(BOOTSTRAP) bench
	bin/pollux-bench run -rounds $(ROUNDS) -out build/bench

.PHONY: bench-compare
bench-compare: build ## is this tree faster or slower than BASE=rev? Both in turns, ROUNDS=5, with confidence intervals (2 minutes)
	@$(BOOTSTRAP) bench
	@GO='$(GO)' scripts/bench-compare '$(BASE)' '$(ROUNDS)'

.PHONY: bench-guests
bench-guests: build ## Pollux beside the kernel's DRBD and md RAID-1, all in the same two QEMU guests (10 minutes or less)
	@$(BOOTSTRAP) bench interop
	scripts/lab/build
	bin/pollux-bench run -only '^guests$$' -no-namespace -json build/bench/guests.json

.PHONY: ci
ci: ## what .ci/run does on a fresh machine
	bash .ci/run

# --- style -------------------------------------------------------------------

# The linter is built from source once: about 6 minutes on 2 cores.
$(LINT):
	@echo "building golangci-lint $(LINT_VERSION): some minutes, once"
	@mkdir -p build/tools
	cd build/tools && GOBIN="$$PWD" GOFLAGS=-mod=mod $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv build/tools/golangci-lint $@

.PHONY: lint
lint: $(LINT) ## go vet, golangci-lint, shellcheck
	@$(BOOTSTRAP) build test
	$(GO) vet ./...
	$(LINT) run ./...
	shellcheck -S warning .ci/run scripts/bootstrap scripts/fuzz scripts/bench-compare scripts/demo/build-guest scripts/lab/build scripts/lab/kernel scripts/lab/guest

.PHONY: fmt
fmt: $(LINT) ## format all Go files (gofumpt)
	$(LINT) fmt ./...
