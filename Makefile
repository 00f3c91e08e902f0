# One command for each thing one does. `make help` lists them; each installs what it lacks.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hearth
TOOLS := $(CACHE)/tools
export PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)

# CI keeps what it built between runs, and no work tree is kept that long.
ifeq ($(CI),true)
export CARGO_TARGET_DIR := $(CACHE)/target
endif
TARGET := $(or $(CARGO_TARGET_DIR),target)

# RocksDB is C++ and takes minutes: with ccache that is once a machine.
ifeq ($(origin CC),default)
export CC := ccache cc
endif
ifeq ($(origin CXX),default)
export CXX := ccache c++
endif

CARGO_DENY_VERSION := 0.20.2
TYPOS_VERSION := 1.52.0

.PHONY: help
help: ## Lists these commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.PHONY: system
system: ## Installs the system packages and the compiler that the build needs.
	@./docker/system-packages

.PHONY: run
run: system ## Builds and starts a server on 127.0.0.1:8008 with its data in target/run.
	cargo build --release --bin hearth
	exec $(TARGET)/release/hearth serve --dev

.PHONY: build
build: system ## Builds the binary for this machine.
	cargo build --release --bin hearth

.PHONY: test
test: lint unit doc deny spelling fuzz-build clients interop ## Everything that CI runs.

.PHONY: lint
lint: system ## Formatting and lints; warnings are errors.
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

.PHONY: unit
unit: system ## All tests of the library and all feature tests.
	cargo test

.PHONY: doc
doc: system ## The documentation of the code, without a warning.
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

.PHONY: deny
deny: system $(TOOLS)/bin/cargo-deny-$(CARGO_DENY_VERSION) ## Licenses, sources, banned crates, known vulnerabilities.
	cargo-deny --config .deny.toml check --hide-inclusion-graph licenses bans sources
	@if cargo-deny --config .deny.toml fetch db >/dev/null 2>&1; then cargo-deny --config .deny.toml check --hide-inclusion-graph advisories; \
	else echo "advisories: their database cannot be reached from here, so they were not checked"; fi

.PHONY: spelling
spelling: system $(TOOLS)/typos-$(TYPOS_VERSION) ## Spelling.
	$(TOOLS)/typos-$(TYPOS_VERSION)/bin/typos

.PHONY: fuzz-build
fuzz-build: system ## The fuzz targets compile.
	@if [ -f fuzz/Cargo.toml ]; then cargo check --manifest-path fuzz/Cargo.toml; fi

.PHONY: fuzz
fuzz: system ## Fuzzes each target for SECONDS seconds (60).
	fuzz/run $(or $(SECONDS),60)

.PHONY: binary
binary: system
	cargo build --bin hearth

.PHONY: clients
clients: binary ## Unmodified clients against this server.
	@if [ -x tests/clients/run ]; then HEARTH=$(abspath $(TARGET))/debug/hearth tests/clients/run; fi

.PHONY: interop
interop: binary ## Federation with Synapse and with itself; FULL=1 for the full sizes.
	HEARTH=$(abspath $(TARGET))/debug/hearth tests/interop/run $(if $(FULL),--full)

.PHONY: netns
netns: system ## Delivery with dead, slow and absent servers, in a network namespace.
	tests/netns/run

.PHONY: crash
crash: system ## The crash test with 200 kills; `make unit` has 20.
	HEARTH_CRASH_ROUNDS=200 cargo test --test it faults::

.PHONY: complement
complement: build ## Matrix's own suite: make complement COMPLEMENT=path/to/its/checkout
	HEARTH=$(abspath $(TARGET))/release/hearth complement/run $(COMPLEMENT)

$(TOOLS)/bin/cargo-deny-$(CARGO_DENY_VERSION):
	CARGO_TARGET_DIR=$(TOOLS)/target cargo install --locked --debug --root $(TOOLS) cargo-deny@$(CARGO_DENY_VERSION)
	touch $@

# The wheel of PyPI holds the program; without Python it is built.
$(TOOLS)/typos-$(TYPOS_VERSION):
	python3 -m pip install --quiet --no-deps --target $@ typos==$(TYPOS_VERSION) \
	  || CARGO_TARGET_DIR=$(TOOLS)/target cargo install --locked --debug --root $@ typos-cli@$(TYPOS_VERSION)
