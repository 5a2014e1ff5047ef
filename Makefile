# The two main commands are `make demo`, which shows the product, and `make test`, which checks it. Both use the virtual
# environment .venv, which is created the first time and updated when pyproject.toml or the tested set of versions changes.
# No environment needs to be activated.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
# What to install if the environment has no torch yet; for other hardware, for example TORCH='torch --index-url URL'.
TORCH ?= torch==2.13.0
# The tested set of versions to install; empty to install the newest versions.
CONSTRAINTS ?= configs/constraints.txt
# Number of processes that run tests, and the tests to run (default: all).
WORKERS ?= 2
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
INSTALL = $(PYTHON) scripts/environment.py install $(VENV) --torch '$(TORCH)' $(CONSTRAINTS:%=--constraints %) $(LATEST)
MODEL := smollm2-135m
DEMO := outputs/demo

# Show progress immediately, even through a pipe.
export PYTHONUNBUFFERED := 1
# Cache bytecode even if the environment disables it (as container images often do): otherwise every process compiles the
# libraries again, which takes three times as long as importing them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install fetch demo check test suite test-clients update test-latest clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with the program's dependencies

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c '' 2> /dev/null || { \
	    echo "error: $(PYTHON) does not start; install Python 3.11 to 3.13, or name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("error: Python 3.11 to 3.13" \
	    " is needed, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.11" % v)'
	@$(INSTALL)
	@touch $@

$(DEV_STAMP): $(STAMP)
	@$(INSTALL) --dev
	@touch $@

fetch: install ## fetch and convert the embedded default model (once)
	@$(BIN)/rrm-lm fetch $(MODEL) < /dev/null

demo: install fetch ## feedback -> reward model -> policy -> a report that compares them, on data/notes
	@HF_HUB_OFFLINE=1 $(BIN)/rrm-lm run --config configs/demo.yaml --output_dir $(DEMO) < /dev/null
	@echo
	@echo "The report: file://$(CURDIR)/$(DEMO)/report.html"

check: $(DEV_STAMP) ## lint, format, spelling, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python < /dev/null
	$(BIN)/lint-imports --no-cache --no-logo

test: check suite ## all checks and the full test suite

suite: fetch $(DEV_STAMP) # the tests alone
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS) < /dev/null

test-clients: fetch $(DEV_STAMP) ## compare rewards in RewardBench, TRL, PEFT and transformers, each in a separate environment
	HF_HUB_OFFLINE=1 $(BIN)/python -m scripts.clients.run < /dev/null

update: ## test the newest versions that pyproject.toml allows, and record them as the tested set
	rm -rf .venv-update
	$(MAKE) test VENV=.venv-update CONSTRAINTS=
	.venv-update/bin/python scripts/environment.py freeze --tests '$(TESTS)'

test-latest: ## run the tests with the newest versions of everything, allowed or not
	rm -rf .venv-latest
	$(MAKE) .venv-latest/.installed-dev VENV=.venv-latest CONSTRAINTS= LATEST=--latest
	@echo "differences from the tested set:" && .venv-latest/bin/python scripts/environment.py newer
	$(MAKE) --keep-going suite check VENV=.venv-latest CONSTRAINTS= LATEST=--latest

clean: ## remove the environment and caches; results in outputs/ stay
	rm -rf .venv .venv-update .venv-latest build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
