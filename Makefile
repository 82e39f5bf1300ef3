# Two commands do all on a fresh machine:  make scan   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests are compiled once, and not by every process again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: scan docs dist gallery test unit deep device peers check setup clean
.DEFAULT_GOAL := help

help:
	@echo "make scan    set up .venv, scan the built-in model, say where the report is"
	@echo "make docs    the documentation as a site: docs/_build/html/index.html"
	@echo "make gallery a site of the built-in models: site/index.html"
	@echo "make test    set up .venv, run linters, type checks and all tests"
	@echo "make unit    the unit tests alone (no downloads)"
	@echo "make deep    what is too long for make test: many kills, many signals, every scheme on every family"
	@echo "make device  on a machine with a GPU: that all works there and is what a CPU gives, ten minutes"
	@echo "make peers   recipes against torchao, AutoRound and Model Optimizer themselves, in an environment of their own"
	@echo "make check   ruff, mypy, import-linter, deptry"
	@echo "make dist    wheel and sdist in dist/, checked"
	@echo "make clean   remove .venv and caches"

$(STAMP): pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[test,docs,evaluate,train,ray]"
	@touch $(STAMP)

setup: $(STAMP)

scan: $(STAMP)
	$(BIN)/studfinder scan smollm2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry src

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 docs docs/_build/html
	@echo "docs/_build/html/index.html"

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

gallery: scan
	$(BIN)/studfinder scan gemma3-270m
	$(BIN)/studfinder gallery runs --out site

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not real and not deep"

test: check unit
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "real and not deep"

deep: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m deep

device: $(STAMP)
	$(BIN)/python benchmarks/device.py --out device.md

# The libraries that recipes are written for want versions of their own, and one after the other: pip looks for long otherwise.
PEERS := .venv-peers

$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	@test -d $(PEERS) || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q --upgrade pip
	$(PEERS)/bin/python -m pip install -q -c constraints.txt torch
	@while read -r peer; do $(PEERS)/bin/python -m pip install -q -c constraints.txt "$$peer" || exit 1; done < benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install -q -c constraints.txt -e . pytest pytest-timeout hypothesis
	@touch $@

peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest tests/test_recipe_peers.py tests/test_recipe_tools.py

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache
