# Everything that a person or CI does here, by name. The rules are thin: what they call is documented where it lies.
#
# One profile everywhere, release: so llama.cpp (minutes) is compiled once for build, tests, lints and benches.
# Downloads and tools live outside the clone, in $(POCKET_LLM_CACHE).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export POCKET_LLM_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pocket-llm
export POCKET_LLM_TEST_MODELS ?= $(POCKET_LLM_CACHE)/test-models

PYTHON := $(POCKET_LLM_CACHE)/venv/bin/python
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/pocket-llm
ARM64_DIST := $(or $(CARGO_TARGET_DIR),target)/arm64-dist
ARM64_TARGET := $(or $(CARGO_TARGET_DIR),target)/aarch64-unknown-linux-gnu
CARGO_DENY := $(POCKET_LLM_CACHE)/tools/cargo-deny-0.20.2/bin/cargo-deny
CARGO_FUZZ := $(POCKET_LLM_CACHE)/tools/cargo-fuzz-0.13.2/bin/cargo-fuzz
GET := $(PYTHON) tools/get_test_models.py
SCRIPTS := .ci/run $(wildcard tools/*.sh benches/*.sh)

comma := ,
SMALL_MODEL := smollm2-135m
MODEL ?= $(SMALL_MODEL)
ARGS ?=
SECONDS ?= 600
TARGET ?= gguf
MINUTES ?= 30
SBOM ?= $(or $(CARGO_TARGET_DIR),target)/pocket-llm.cdx.json
# The model names of the phone app's clients, answered by the small model so that their curl lines work as they are.
ALIASES := $(if $(filter $(SMALL_MODEL),$(MODEL)),--alias 'GEMMA_3_1B_IT$(comma)gemma-3n-e2b-it')

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: setup
setup: ## Install the missing build tools (Debian: by apt-get)
	@tools/setup.sh

.PHONY: build
build: setup ## Build the server
	cargo build --release

.PHONY: run
run: build ## Build, fetch MODEL (a name, hf:owner/repo/file.gguf, or a file), serve it on 127.0.0.1:8005; more flags in ARGS
	@case '$(MODEL)' in \
	  '$(SMALL_MODEL)') model=$$($(GET) --path '$(MODEL)') ;; \
	  *) model='$(MODEL)'; [ -e "$$model" ] || $(BINARY) pull "$$model" ;; \
	esac; \
	printf '\nWhen it listens, try (at the address that it prints):\n\n  %s\n\n' \
	  "curl -s http://127.0.0.1:$${POCKET_LLM_PORT:-8005}/ai/text -d '{\"text\":\"What is the capital of Japan?\"}'"; \
	exec $(BINARY) serve "$$model" $(ALIASES) $(ARGS)

.PHONY: test-models
test-models: setup ## Fetch and make the models that the tests need
	@$(GET)

.PHONY: test
test: test-models ## Run all tests, with llama.cpp and without
	$(PYTHON) tools/render_templates.py --check
	INSTA_UPDATE=no cargo test --release
	cargo check --release --no-default-features --all-targets
	$(PYTHON) -m unittest discover --start-directory benches --pattern 'test_*.py'
	$(PYTHON) tests/clients/run.py --server $(BINARY) --model "$$($(GET) --path '$(SMALL_MODEL)')" --tiny $(POCKET_LLM_TEST_MODELS)/qwen2.5-tiny.gguf

.PHONY: lint
lint: k8s-check ## Check format, clippy, docs, licences and sources of dependencies, shell scripts, manifests
	@tools/setup.sh lint
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --release --no-deps
	tools/check_dependencies.sh $(CARGO_DENY)
	$(PYTHON) tools/sbom.py
	if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); fi

.PHONY: k8s-check
k8s-check: setup ## Check the manifests in k8s/ against Kubernetes' schemas and the program's sources
	@$(PYTHON) tools/check_k8s.py
	@"$$($(PYTHON) tools/check_k8s.py --venv)/bin/python" -m unittest discover --start-directory tools --pattern 'test_check_k8s.py'

.PHONY: k8s-prove
k8s-prove: setup ## Apply the manifests to a real control plane, built from Debian's sources (10 minutes, once)
	@nice -n 10 $(PYTHON) tools/k8s_control_plane.py

.PHONY: bench
bench: build ## Compare with llama.cpp's own tools (builds them: 10 minutes, once); MODEL as in run
	@tools/build_peer.sh
	@model=$$($(GET) --path '$(MODEL)'); \
	$(PYTHON) benches/compare.py --server $(BINARY) --peer "$${PEER:-$(POCKET_LLM_CACHE)/peer}/bin" --model "$$model" $(ARGS)

.PHONY: cargo-bench
cargo-bench: test-models ## Run the criterion benchmarks of our own code
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 cargo bench # as workers are started

.PHONY: fuzz
fuzz: ## Fuzz one TARGET (gguf, bodies, template, text, scheduler) for SECONDS (600); needs rustup's nightly toolchain
	[ -x $(CARGO_FUZZ) ] || cargo install --quiet --locked --version 0.13.2 --root $(CARGO_FUZZ:/bin/cargo-fuzz=) cargo-fuzz
	mkdir -p $(POCKET_LLM_CACHE)/fuzz/$(TARGET)
	PATH=$(dir $(CARGO_FUZZ)):$$PATH cargo +nightly fuzz run $(TARGET) $(POCKET_LLM_CACHE)/fuzz/$(TARGET) fuzz/corpus/$(TARGET) -- \
	  -max_total_time=$(SECONDS) -max_len=$(if $(filter gguf,$(TARGET)),16384,4096) -timeout=5

.PHONY: soak
soak: build test-models ## Use a real server hard for MINUTES (30), kill its worker 20 times, and check every answer
	$(PYTHON) tools/soak.py --server $(BINARY) --model "$$($(GET) --path '$(SMALL_MODEL)')" \
	  --others $(POCKET_LLM_TEST_MODELS)/qwen2.5-tiny.gguf $(POCKET_LLM_TEST_MODELS)/gemma3-tiny.gguf --minutes $(MINUTES) $(ARGS)

.PHONY: sbom
sbom: setup ## List what the package for phones is made of, as CycloneDX JSON in $(SBOM)
	$(PYTHON) tools/sbom.py --output $(SBOM)

.PHONY: arm64
arm64: ## Build for ARM64 phones on another machine: program and libraries, into target/arm64-dist
	@tools/arm64-setup.sh
	tools/arm64-build.sh

.PHONY: test-arm64
test-arm64: build arm64 ## Run that under qemu as phones of four kinds, and compare with the native build (15 minutes)
	@tools/arm64-setup.sh test
	@model=$$($(GET) --path '$(SMALL_MODEL)'); \
	$(PYTHON) tools/check_arm64.py --package $(ARM64_DIST) --build $(ARM64_TARGET)/release/build \
	  --reference $(BINARY) --model "$$model" $(ARGS)

.PHONY: image-prove
image-prove: setup ## Run the steps of Dockerfile.arm64 in a bare Debian, and the image's files under qemu (root; 20 minutes)
	@tools/arm64-setup.sh test
	@model=$$($(GET) --path '$(SMALL_MODEL)'); \
	$(PYTHON) tools/prove_image.py --model "$$model" $(ARGS)

.PHONY: clean
clean: ## Remove what was built; the cache outside the clone stays
	cargo clean
