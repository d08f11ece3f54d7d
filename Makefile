# Every target sets itself up on a fresh machine: a virtual environment in .venv, then the extras that it needs.
# The stamps say which extras are in; a change of pyproject.toml or constraints.txt installs again.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test lint types bench
.DEFAULT_GOAL := test

demo: $(VENV)/demo.stamp
	$(BIN)/medenv demo

test: lint types
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) -m "not cluster"  # one thread a worker: more only fight
	$(ONE_THREAD) $(BIN)/python -m pytest -m cluster  # alone: several Ray clusters at once starve each other

lint: $(VENV)/test.stamp
	$(BIN)/ruff check medenv tests

types: $(VENV)/test.stamp
	$(BIN)/mypy

bench: $(VENV)/demo.stamp
	$(BIN)/medenv bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[torch,plots]"
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[torch,plots,track,trl,ray,dev]"
	@touch $(VENV)/demo.stamp $@
