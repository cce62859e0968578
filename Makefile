# Everything a person types. Each target installs the Debian packages it needs (deploy/deps.sh).
SHELL := /bin/bash
DEPS  := MAKE_GOAL="$(MAKECMDGOALS)" deploy/deps.sh
# The uplink of `make demo`: net_af_packet or net_af_xdp (DPDK's drivers), or packet (our own).
UPLINK ?= net_af_packet
KEEP   ?=

.PHONY: help deps build test test-code lints attacks fuzz miri defences mutants guest demo demo-clean kube cluster cluster-down conformance bench bench-ipam bench-pods bench-dma fmt clippy clean
.DEFAULT_GOAL := help

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

deps: ## Install what building, testing and the demo need
	@$(DEPS) build test demo

build: ## Build all programs, optimised, into target/release
	@$(DEPS) build
	cargo build --release --workspace

test: test-code ## Format, lints, all tests, mutants, then the demo over both kinds of uplink
	$(MAKE) demo UPLINK=$(UPLINK)
	$(MAKE) demo UPLINK=packet

# Tests that push real traffic take the optimised data plane.
test-code: ## Format, lints, all tests and mutants; times of each (WORDS="controller agent": some of them)
	@$(DEPS) build test kube
	@# Kubernetes' modules come over the network while Rust's compiler has the cores.
	deploy/e2e/build.sh conformance & kube=$$!; $(MAKE) lints; lints=$$?; wait $$kube && exit $$lints
	BOWLINE_DATAPLANE=$(CURDIR)/target/release/bowline-dataplane deploy/tests.py $(WORDS)

lints:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --release --workspace

# The optimised tests as well: they must keep half of a worker busy.
attacks: ## Every attack on memif, ten million bystander frames each (half an hour)
	@$(DEPS) build test
	cargo build --release --workspace
	BOWLINE_DATAPLANE=$(CURDIR)/target/release/bowline-dataplane BOWLINE_ATTACK_FRAMES=$(or $(FRAMES),10000000) \
		cargo test --release -p bowline-dataplane --test e2e -- attacks:: --nocapture

fuzz: ## Fuzz every parser of foreign bytes, guided by coverage (SECONDS=60 for each of twelve)
	@$(DEPS) build
	deploy/fuzz.sh $(or $(SECONDS),60) $(TARGETS)

miri: ## The queues of memif between threads under miri (Rust nightly)
	deploy/miri.sh

defences: ## The memif library with one defence off each, and slow data planes, which their tests must notice
	@$(DEPS) build test
	deploy/mutants/run $(patsubst deploy/mutants/%.mutant,%,$(wildcard deploy/mutants/*/*.mutant))

mutants: ## Data planes with one check off, which the tests must notice
	@$(DEPS) build test
	deploy/mutants/run

guest: build ## In an emulated machine: take a PCI NIC over, with an IOMMU; make VLAN devices and bonds (minutes)
	@$(DEPS) guest
	dataplane/tests/guest/run.sh
	@$(DEPS) test
	agent/tests/guest/run.sh

demo: build ## Two nodes, overlapping networks, proof of isolation (UPLINK=packet, KEEP=1)
	@$(DEPS) demo
	target/release/bowline-demo run --uplink $(UPLINK) $(if $(KEEP),--keep)

demo-clean: ## Remove all that a demo left behind
	@if [ -x target/release/bowline-demo ]; then target/release/bowline-demo clean; \
	else echo "bowline: no demo was built here, nothing to remove"; fi

kube: ## Build Kubernetes itself, from Go modules, into ~/.cache/bowline-kube
	@$(DEPS) kube
	deploy/e2e/build.sh cluster

cluster: build ## A real two-node Kubernetes on this machine with Bowline as its CNI, left running
	@$(DEPS) kube
	deploy/e2e/cluster.sh

cluster-down: ## Remove that cluster, whatever is left of it
	@deploy/e2e/down.sh

conformance: build ## All 47 network conformance tests of Kubernetes: target/conformance
	@$(DEPS) kube
	deploy/e2e/build.sh conformance
	trap deploy/e2e/down.sh EXIT; deploy/e2e/cluster.sh installed && deploy/e2e/conformance/run.sh all

bench: build ## Measure against testpmd, OVS-DPDK and the kernel: target/bench/report.json
	@$(DEPS) bench
	target/release/bowline-bench
	$(MAKE) bench-ipam
	$(MAKE) bench-pods

bench-ipam: build ## Addresses per second on a real API server, and what a large cluster costs an agent
	@$(DEPS) kube
	deploy/e2e/build.sh cluster
	cargo run --release -p bowline-bench --example ipam -- --full
	BOWLINE_STORE_FULL=1 BOWLINE_BENCH_OUT=$(CURDIR)/target/bench BOWLINE_AGENT=$(CURDIR)/target/release/bowline-agent \
		cargo test -p bowline-agent --test scale -- --test-threads=1

bench-pods: build ## CNI ADD, and pods from creation to Running, beside the reference bridge plugin
	@$(DEPS) kube
	deploy/e2e/build.sh cluster
	cargo run --release -p bowline-bench --example pods

bench-dma: ## Compare the copy engines; DMA="wq0.0" names a work queue of an Intel DSA
	@$(DEPS) build
	cargo run --release -p bowline-dataplane --example copy_engines -- --read $(or $(DMA),dma_skeleton)

fmt: ## Format the code
	cargo fmt --all

clippy: ## Lints, as errors
	@$(DEPS) build
	cargo clippy --workspace --all-targets -- -D warnings

clean: demo-clean ## Remove build products
	cargo clean
