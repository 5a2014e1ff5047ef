# Two commands matter: `make demo` shows the product, `make test` checks it. Both use one virtual environment, .venv,
# made the first time and again only when pyproject.toml changes; no environment needs to be activated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# What to install when the environment has no torch yet; for other hardware for example TORCH='torch --index-url URL'.
TORCH ?= torch==2.13.0
# Processes that run tests.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
MODEL := smollm2-135m
DEMO := outputs/demo

# Progress appears as it happens, also through a pipe.
export PYTHONUNBUFFERED := 1

.PHONY: help install fetch demo check test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv and install what the program needs into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 14) or sys.exit( \
	    f"error: Python 3.10 to 3.13 is needed, and $(PYTHON) is {v[0]}.{v[1]}; try make PYTHON=python3.11")'
	@echo "[1/3] virtual environment in $(VENV)"
	@$(PIP) --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] torch (some 200 MB the first time; more with CUDA)"
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	    || $(PIP) install -qq --progress-bar off $(TORCH) < /dev/null
	@echo "[3/3] rrm_lm and what it needs (about two minutes the first time)"
	@$(PIP) install -qq --progress-bar off --editable . < /dev/null
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "what checks and tests need"
	@$(PIP) install -qq --progress-bar off --editable '.[dev]' < /dev/null
	@touch $@

fetch: install ## fetch and convert the embedded default model, once
	@$(BIN)/rrm-lm fetch $(MODEL) < /dev/null

demo: install fetch ## feedback to reward model to policy to a page that compares, on data/assistant
	@HF_HUB_OFFLINE=1 $(BIN)/rrm-lm run --config configs/demo.yaml --output_dir $(DEMO) < /dev/null
	@echo
	@echo "The report: file://$(CURDIR)/$(DEMO)/report.html"

check: $(DEV_STAMP) ## lint, format, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright < /dev/null
	$(BIN)/lint-imports --no-cache --no-logo

test: fetch check ## everything that must hold: checks and the whole test suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal < /dev/null

clean: ## remove the environment and caches; results in outputs/ stay
	rm -rf $(VENV) build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
