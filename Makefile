# Every command of the project; `make help` lists them. Each works alone from a fresh clone.
PYTHON ?= python3
BACKEND ?= torch
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of them never are.
INSTALL := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt --editable
PACKAGES := alternator adapters ur4rec ur4rec_torch ur4rec_jax
CORE := alternator tests/unit/alternator
FILES := $(PACKAGES) tests benchmarks examples docs
# Coverage slows whatever runs under it, JAX's tracing most: the core's own tests alone are measured.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

.DEFAULT_GOAL := help
.PHONY: help setup demo test check static lint types-mypy types-pyright docs format bench clean

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-$(BACKEND): $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) '.[$(BACKEND),rec]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) '.[torch,jax,rec,encoder,serve,tensorboard,distributed,lightning,transformers,dev]'
	@touch $@

setup: $(VENV)/.dev  ## create .venv with everything that tests and checks need

demo: $(VENV)/.demo-$(BACKEND)  ## train UR4Rec on MovieLens-100K and say who trained when, and why (BACKEND=torch|jax)
	OMP_NUM_THREADS=1 $(BIN)/ur4rec train --backend $(BACKEND) --dataset ml-100k --preset demo --out runs/demo --overwrite

test: static  ## run all tests, lint, types and import rules
	$(PYTEST) $(CORE) --cov --cov-report=term
	$(PYTEST) tests $(filter-out alternator,$(PACKAGES)) --ignore=tests/unit/alternator

check: docs static  ## lint, types, import rules and documentation, without the tests

# What needs no tests to run; the two type checkers, each of one thread, side by side.
static: $(VENV)/.dev
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint types-mypy types-pyright

lint: $(VENV)/.dev
	$(BIN)/ruff format --check $(FILES)
	$(BIN)/ruff check $(FILES)
	$(BIN)/lint-imports --no-cache

types-mypy: $(VENV)/.dev
	$(BIN)/mypy

types-pyright: $(VENV)/.dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev  ## build the documentation into site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(VENV)/.dev  ## format the code and fix what lint can fix
	$(BIN)/ruff format $(FILES)
	$(BIN)/ruff check --fix $(FILES)

bench: $(VENV)/.dev  ## run the benchmarks that take minutes (see benchmarks/README.md for the long ones)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/rules.py

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
