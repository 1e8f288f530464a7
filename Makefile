# Everything a person or a CI job types. `make` alone lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
DATA_DIR := $(or $(DAARION_DATA_DIR),.data)
# Most tests wait for something: three processes keep two cores busy.
TEST_PROCESSES ?= 3
# The stamp of a finished installation (launcher/install.py).
INSTALLED = compgen -G ".venv/.installed-project-*" >/dev/null

ifeq ($(GPU),1)
PROFILE := gpu
SERVE_CONFIG := configs/serve.gpu.yaml
GPU_CHECK := gpu-there
else
PROFILE := cpu
SERVE_CONFIG := serve_config.yaml
endif

.PHONY: help gpu-there run services reload status backup restore models test fuzz lint bench bench-traces bench-engine soak bench-tools bench-memory bench-memory-scale eval-memory data-there bench-agents soak-agents agent-runtime demo gpu-check key kuberay lock sbom release-check clean install install-dev python

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A folder may be named from here, a hub id stays as it is.
MODEL_FOLDER = $(and $(MODEL),$(wildcard $(MODEL)/config.json),$(abspath $(MODEL)))
run: export DAARION_MODEL := $(or $(MODEL_FOLDER),$(MODEL),$(DAARION_MODEL))
run: $(GPU_CHECK) models ## install, build the models, start everything (GPU=1: the GPU profile, MODEL=Qwen/Qwen3-4B: another model); Ctrl-C stops it
	@exec $(BIN)/python -m launcher run --config $(SERVE_CONFIG)

services: models ## only PostgreSQL and NATS, for a `serve run serve_config.yaml` of your own
	@exec $(BIN)/python -m launcher services

reload: ## make the running graph read its configuration again
	@$(INSTALLED) || { echo "nothing is installed yet, so nothing is running: start it with make run"; exit 1; }
	@exec $(BIN)/python -m launcher reload

status: ## one line per running part
	@$(INSTALLED) || { echo "nothing is installed yet, so nothing is running: start it with make run"; exit 1; }
	@exec $(BIN)/python -m launcher status

backup: ## everything that cannot be rebuilt in one archive, also while the graph runs (ARGS=file or folder)
	@$(INSTALLED) || { echo "nothing is installed yet, so there is nothing to back up: start it with make run"; exit 1; }
	@exec $(BIN)/python -m launcher backup $(ARGS)

restore: install ## fill an empty data directory from such an archive (ARGS=file)
	@exec $(BIN)/python -m launcher restore $(ARGS)

models: install ## build and check the default model folders (does nothing when they are there)
	@$(BIN)/python -m modelbuild --data-dir "$(DATA_DIR)"

agent-runtime: install ## the agent runtime as a plain process beside a running graph (ARGS="--ingress URL --port N")
	@exec $(BIN)/python -m deployments.agents.process $(ARGS)

demo: install ## ask the demo agent about a project with a random name, in the running graph, and watch it answer
	@exec $(BIN)/python -m launcher.demo $(ARGS)

gpu-check: ## whether the running graph really uses this machine's GPU, ten minutes with docs/gpu.md (ARGS=--without-gpu: the CPU profile, ARGS="--url URL")
	@$(INSTALLED) || { echo "nothing is installed yet, so nothing is running: start it with GPU=1 make run"; exit 1; }
	@exec $(BIN)/python -m ops.gpu_check $(ARGS)

key: ## keys of the running graph's callers (ARGS="new NAME --agent ID --microdao ID", ARGS=list, ARGS="rotate NAME", ARGS=--help)
	@$(INSTALLED) || { echo "nothing is installed yet, so nothing is running: start it with make run" >&2; exit 1; }
	@exec $(BIN)/python -m launcher.keys $(or $(ARGS),--help)

test: install-dev ## everything a change must pass: models, lint, all tests
	@$(BIN)/python -m modelbuild --data-dir "$(DATA_DIR)"
	@$(MAKE) --no-print-directory lint
	@ops/prometheus/fetch.sh "$(DATA_DIR)/cache/prometheus" || true
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --reruns 1 --rerun-show-tracebacks --ignore=tests/graph
	@$(BIN)/python -m tests.support.graph.offline $(BIN)/python -m pytest --reruns 1 --rerun-show-tracebacks tests/graph

fuzz: install-dev ## a graph of its own, to which schemathesis sends requests from its OpenAPI document, valid and invalid ones (ARGS=…), 5 minutes
	@$(BIN)/python -m modelbuild --data-dir "$(DATA_DIR)"
	@exec $(BIN)/python -m tests.graph.fuzz $(ARGS)

lint: install-dev ## ruff, format, types, import direction, declared = imported packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry .
	@$(BIN)/deptry tests --exclude '\.venv' --ignore DEP002,DEP004

bench: install ## the LLM proxy beside a bare relay, LiteLLM and Portkey (needs wrk; Portkey needs Node)
	@exec $(BIN)/python -m benchmarks.llm.bench $(ARGS)

bench-traces: install ## what tracing costs the LLM proxy, at one trace of a hundred (needs wrk)
	@exec $(BIN)/python -m benchmarks.llm.traces $(ARGS)

bench-engine: install ## tokens per second and time to the first token through the LLM proxy beside the bare engine
	@$(BIN)/python -m modelbuild --data-dir "$(DATA_DIR)"
	@exec $(BIN)/python -m benchmarks.engines.bench $(ARGS)

soak: install ## the LLM proxy under steady load for 30 minutes: no error, flat memory (needs wrk)
	@exec $(BIN)/python -m benchmarks.llm.soak $(ARGS)

bench-tools: install ## what a tool call costs beside calling its endpoint, and each isolation tier
	@exec $(BIN)/python -m benchmarks.tools.bench

bench-memory: install ## recall and ranking of memory's arms and of their fusion on the gold set
	@exec $(BIN)/python -m benchmarks.memory.bench

bench-memory-scale: install ## recall and latency of memory at 200,000 rows
	@exec $(BIN)/python -m benchmarks.memory.scale

eval-memory: data-there install ## recall of the running graph's memory on LoCoMo or LongMemEval (DATA=file, ARGS="--limit N --keep")
	@exec $(BIN)/python -m benchmarks.memory.evaluate "$(DATA)" $(ARGS)

soak-agents: install ## the running graph's agents while replicas are killed: exactly one reply per message
	@exec $(BIN)/python -m benchmarks.agents.kill

bench-agents: install ## what the agent pipeline adds beside the model's and the tools' own time
	@exec $(BIN)/python -m benchmarks.agents.bench

kuberay: install ## write the Serve configuration of ops/kuberay/ from the Serve files and configs/
	@$(BIN)/python ops/kuberay/write_serve_config.py

lock: install-dev ## write ops/locks/ from pyproject.toml; UPGRADE=1 takes the newest versions (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH"; exit 2; }
	@$(BIN)/python ops/lock.py $(if $(UPGRADE),--upgrade)

sbom: install-dev ## what is installed, its licences and what needs what, as CycloneDX in build/sbom.json
	@mkdir -p build
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json $(BIN)/python

release-check: install-dev ## whether this commit may be tagged as a release, and what it lacks (docs/releasing.md)
	@$(BIN)/python ops/release_check.py
	@$(BIN)/python -m pytest -q tests/ops/test_locks.py tests/ops/test_kuberay.py tests/stores/test_released_migrations.py
	@$(MAKE) --no-print-directory lint sbom
	@echo "left to do: make test on this commit, then the tag (docs/releasing.md)"

clean: ## remove .venv and caches; the data directory with models and databases stays
	@! $(INSTALLED) || ! $(BIN)/python -m launcher status >/dev/null 2>&1 || { echo "the graph is running from .venv: stop it first"; exit 1; }
	@! test -d .venv || flock --nonblock . true || { echo "an installation into .venv is at work: wait for it, or end it first"; exit 1; }
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

data-there: # before anything is installed
	@test -f "$(DATA)" || { echo "which set? make eval-memory DATA=locomo10.json: a file of LoCoMo or LongMemEval that is here (docs/evaluation.md says where they come from)"; exit 2; }

gpu-there: # before gigabytes are fetched for nothing
	@compgen -G "/dev/nvidia[0-9]*" >/dev/null || test -e /dev/dxg || { echo "GPU=1 is set, but this machine shows no NVIDIA GPU (no /dev/nvidia0): install its driver, or start it without GPU=1"; exit 2; }

install: python
	@$(PYTHON) -m launcher.install $(PROFILE)

install-dev: python
	@$(PYTHON) -m launcher.install dev

python:
	@test -n "$(PYTHON)" || { echo "there is no python3 on PATH: install Python 3.11, 3.12 or 3.13"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13, for which ops/locks has lock files: install one, or name it: make PYTHON=…"; exit 2; }
