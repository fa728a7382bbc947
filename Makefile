# Sets itself up: every target that needs the environment builds .venv first, and again only when
# pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
FAST := not slow and not gpu and not tensorrt and not arm64

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench lint clean .venv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(STAMP) ## create or update the environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: '$(PYTHON)' is not Python 3.11 or newer;" \
			"name one that is: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (a minute or two, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv ## compress a small pretrained network, start to end, on real data
	@$(BIN)/compress-deploy run deploy/recipes/digits-demo.yaml --out runs

test: lint ## checks, then every quick test
	@$(PYTEST) -m '$(FAST)'

test-all: lint ## also the slow tests, and those for hardware that is there
	@$(PYTEST)

bench: .venv ## training throughput on this machine, as ratios to plain training
	@$(BIN)/python -m toolchain.training.bench

lint: .venv ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean: ## remove the environment, caches and run folders
	@rm -rf $(VENV) runs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
