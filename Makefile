# What this repository can do: `make help`. Needs Python 3.11 or newer and make; Go adds the tests that use its tools.
#
#   PYTHON        the interpreter that .venv is made from                    (python3)
#   TORCH_INDEX   a package index to take torch from, such as one of CPU builds (the default index)
#   TESTS         what pytest runs                                          (tests)
#   PEERS_ARGS    what bench-peers is told, such as --rounds 5 --out DIR
#   WHEELS        a directory of wheels to install from where there is no index, for the targets of GPUs
#   SKELETONS     where gpu-skeletons writes, and where test-gpu and bench-gpu read    (build/skeletons)
#   BENCH_GPU_ARGS  what bench-gpu is told, such as --peer-python python3

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test model generate lint format check check-full bench-peers \
	gpu-skeletons test-gpu bench-gpu tools lock clean generated

PYTHON ?= python3
TORCH_INDEX ?=
TESTS ?= tests
PYTEST_ARGS ?=
PEERS_ARGS ?=
WHEELS ?=
SKELETONS ?= build/skeletons
BENCH_GPU_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
SERVE := $(STAMPS)/serve
DEV := $(STAMPS)/dev
EXPORT := $(STAMPS)/torch
ENCODER := $(STAMPS)/encoder
BENCH := $(STAMPS)/bench
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile --progress-bar off
LOCKED := $(PIP) --require-hashes --no-deps
# The GPU's environment is one of its own: onnxruntime and onnxruntime-gpu are the same module.
GPU_BIN := .venv-gpu/bin
GPU := .venv-gpu/.complete
GPU_PIP := $(GPU_BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile --progress-bar off \
	$(if $(WHEELS),--no-index --find-links $(WHEELS))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

setup: $(SERVE) ## make .venv with all that serving needs

demo: setup ## serve the embedded model and ask it one prompt of each task, unary and streaming
	@$(BIN)/llm-grpc demo

test: $(DEV) $(EXPORT) $(ENCODER) $(BENCH) tools ## run every test that this machine can run, but for the slow ones
	@LLM_GRPC_TOOLS="$$(.ci/tools/build --where)" $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS) $(TESTS)

model: $(EXPORT) ## export the embedded model again from its checkpoint, for CPUs and for GPUs
	@$(BIN)/llm-grpc export models/embedded/checkpoint llm_grpc/embedded --name embedded
	@$(BIN)/llm-grpc export models/embedded/checkpoint llm_grpc/embedded_paged --name embedded \
		--lowering paged --weights fp16

generate: $(DEV) tools ## write the stubs, the contract image and docs from protos/ and the configuration
	@PATH="$(CURDIR)/$(BIN):$$PATH" protos/generate.sh
	@$(BIN)/python docs/generate_configuration.py
	@$(BIN)/python docs/generate_api.py

lint: $(DEV) ## ruff, mypy and buf
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/buf lint protos

format: $(DEV) ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check: lint generated ## what CI runs: lint, contract, tests, coverage
	@$(MAKE) --no-print-directory test PYTEST_ARGS="--cov --cov-report=term $(PYTEST_ARGS)"

check-full: lint generated $(EXPORT) $(ENCODER) $(BENCH) tools ## check, and the slow tests with it
	@LLM_GRPC_TOOLS="$$(.ci/tools/build --where)" $(BIN)/python -m pytest --cov --cov-report=term $(PYTEST_ARGS) $(TESTS)

bench-peers: $(EXPORT) ## run the same work through other runtimes, side by side (benchmarks/peers/README.md)
	@$(BIN)/python -m benchmarks.peers $(PEERS_ARGS)

gpu-skeletons: $(EXPORT) ## export the models of test-gpu and bench-gpu without their weights, to SKELETONS
	@$(BIN)/python -m benchmarks.gpu.prepare $(SKELETONS)

test-gpu: $(GPU) ## run the tests that need an NVIDIA GPU, over the skeletons in SKELETONS
	@LLM_GRPC_SKELETONS=$(SKELETONS) $(GPU_BIN)/python -m pytest -m gpu $(PYTEST_ARGS) tests/gpu

bench-gpu: $(GPU) ## measure models of real shapes on a GPU, into docs/benchmarks/
	@$(GPU_BIN)/python -m benchmarks.gpu $(SKELETONS)/measured --out docs/benchmarks $(BENCH_GPU_ARGS)

tools: ## build the Go programs that tests use, once, into the user's cache
	@.ci/tools/build

lock: ## compile the lock files of requirements/ (needs uv)
	@requirements/compile.sh

clean: ## remove what builds, tests and setup wrote
	@rm -rf $(VENV) .venv-gpu build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

generated: $(DEV) tools
	@PATH="$(CURDIR)/$(BIN):$$PATH" protos/generate.sh --check

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, \
	this is {v[0]}.{v[1]}: set PYTHON")'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)

# A lock that changed installs again; a second call does nothing.
$(SERVE): requirements/build.txt requirements/serve.txt pyproject.toml clients/python/pyproject.toml | $(BIN)/python
	@echo "installing what serving needs"
	@$(LOCKED) -r requirements/build.txt -r requirements/serve.txt
	@$(PIP) --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

$(DEV): requirements/dev.txt $(SERVE)
	@echo "installing what tests and checks need"
	@$(LOCKED) -r requirements/dev.txt
	@touch $@

$(STAMPS)/export: requirements/export.txt $(SERVE)
	@echo "installing what export needs"
	@$(LOCKED) -r requirements/export.txt
	@touch $@

$(ENCODER): requirements/encoder.txt $(DEV)
	@echo "installing a trained encoder for tests"
	@$(LOCKED) -r requirements/encoder.txt
	@touch $@

$(BENCH): requirements/bench.txt $(SERVE)
	@echo "installing what the charts of a benchmark need"
	@$(LOCKED) -r requirements/bench.txt
	@touch $@

$(GPU): requirements/build.txt requirements/cuda.txt requirements/gpu.txt pyproject.toml
	@$(PYTHON) -m venv .venv-gpu
	@echo "installing what serving and testing on a GPU need"
	@$(GPU_PIP) --require-hashes --no-deps -r requirements/build.txt -r requirements/cuda.txt -r requirements/gpu.txt
	@$(GPU_PIP) --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

# Hashes hold for the default index only: another index serves other builds of the same version.
$(EXPORT): requirements/torch.txt $(STAMPS)/export
ifeq ($(TORCH_INDEX),)
	@echo "installing torch"
	@$(LOCKED) -r requirements/torch.txt
else
	@echo "installing torch from $(TORCH_INDEX)"
	@$(PIP) --no-deps --index-url "$(TORCH_INDEX)" "$$(grep -o '^torch==[0-9.]*' requirements/torch.txt)"
endif
	@touch $@
