# Everything runs in .venv, which is made when absent and brought up to date when pyproject.toml or
# constraints.txt changes.
#   PYTHON       the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX  an extra package index that offers a CPU build of torch (PyTorch documents its own)
#   ARGS         passed on to the command of demo, test, bench and soak

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN := .venv/bin
REQUIRED := pyproject.toml constraints.txt
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	--constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# pip's talk, cut down to what tells that it is at work.
BRIEFLY = | awk '/Downloading|Processing|Installing|Preparing|Successfully/ { print substr($$0, 1, 110); fflush() }'

.PHONY: help install demo test check format bench soak clean

help: ## list the targets (default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install: .venv/installed ## tunesmith and its libraries into .venv
	@echo "Ready: $(BIN)/tunesmith --help"

demo: .venv/installed ## the main job: tune, compare and report, on the catalogue's model and data
	@$(BIN)/tunesmith demo $(ARGS)

test: .venv/developed ## the tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/developed ## format, lint, types, architecture
	@$(BIN)/ruff format --check src tests benchmarks examples
	@$(BIN)/ruff check src tests benchmarks examples
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q --durations=0 tests/test_architecture.py tests/test_repository.py

format: .venv/developed ## bring the code into the house format
	@$(BIN)/ruff format src tests benchmarks examples
	@$(BIN)/ruff check --fix src tests benchmarks examples

bench: .venv/benched ## speed and memory beside a peer, job by job (hours on two cores; one job: benchmarks/)
	@$(BIN)/python benchmarks/sft.py --job lora $(ARGS)
	@$(BIN)/python benchmarks/sft.py --job full $(ARGS)
	@$(BIN)/python benchmarks/sft.py --job last-layers $(ARGS)
	@$(BIN)/python benchmarks/classification.py $(ARGS)
	@$(BIN)/python benchmarks/ranking.py $(ARGS)
	@$(BIN)/python benchmarks/sampling.py $(ARGS)
	@$(BIN)/python benchmarks/peak.py
	@$(BIN)/python benchmarks/plan.py

soak: .venv/soaked ## long runs, kills and leaks
	@$(BIN)/python -m pytest -m soak $(ARGS)

clean: ## remove .venv and the caches of the tools; runs and the catalogue's cache stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

.venv/bin/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) not found: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }

.venv/installed: $(REQUIRED) | .venv/bin/python
	@echo "Installing tunesmith and its libraries into .venv (some hundred MB with a CPU build of torch; minutes)"
	@$(PIP_INSTALL) --editable . $(BRIEFLY)
	@touch $@

.venv/developed: .venv/installed
	@echo "Installing the tools for tests and checks into .venv"
	@$(PIP_INSTALL) --editable '.[dev]' $(BRIEFLY)
	@touch $@

.venv/benched: .venv/installed
	@echo "Installing the peer to measure against into .venv"
	@$(PIP_INSTALL) --editable '.[bench]' $(BRIEFLY)
	@touch $@

.venv/soaked: .venv/developed
	@echo "Installing lm-evaluation-harness, to be asked the same, into .venv"
	@$(PIP_INSTALL) --editable '.[dev,harness]' $(BRIEFLY)
	@touch $@
