# One word per task; `make help` lists them. Variables: PYTHON, VENV, EXTRAS, CONSTRAINTS, JOBS, THREADS, TESTS, TUTORIALS.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that starts and is 3.11 or newer (a version manager's shim may exist and still not start).
find_python = for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done; true
PYTHON ?= $(shell $(find_python))
VENV ?= .venv
EXTRAS ?= dev,docs,dicom,geo
# Exact torch and torchvision are pinned here, so that a wheel folder configured on the machine cannot pick others.
# `make env CONSTRAINTS=` takes the newest releases that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# Two workers of one thread each: two cores, no oversubscription.
JOBS ?= 2
THREADS ?= 1
TESTS ?= tests
TUTORIALS ?= tutorials

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTEST = OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(PY) -m pytest -n $(JOBS) --dist worksteal $(TESTS)

.PHONY: help env demo test test-tutorials test-faults test-all mutation lint format types audit bench docs bundles build clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(STAMP) ## make the virtual environment and install the package, editable, with its tools

$(STAMP): pyproject.toml $(wildcard $(CONSTRAINTS))
	@if [ ! -x $(PY) ]; then \
		if [ -z "$(PYTHON)" ]; then echo "make env: no Python >= 3.11 found; install one or say make env PYTHON=/path/to/python" >&2; exit 1; fi; \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make env: $(PYTHON) is not Python >= 3.11" >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV); \
	fi
	$(PY) -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) torch torchvision -e ".[$(EXTRAS)]"
	$(PY) -m pip check
	@touch $@

demo: env ## train and evaluate the nano model on made-up scans, on CPU
	rm -rf demo
	$(VENV)/bin/medsam-tune demo

test: env ## the fast tier: no network, no GPU, minutes
	$(PYTEST) -m "not slow and not faults"

test-tutorials: env ## run every notebook of tutorials/, without network; two minutes each
	OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) $(PY) -m pytest -n $(JOBS) --nbmake --nbmake-timeout=600 $(TUTORIALS)

test-faults: env ## kills, full disks, little memory, dead workers, names of patients: a quarter of an hour
	$(PYTEST) -m "faults and not slow"

test-all: env ## every tier; real_data and gpu tests skip themselves with a reason
	$(PYTEST)

mutation: env ## break the code in 500 places, one at a time: how many does a test find? (three CPU-hours)
	$(PY) -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[mutation]"
	$(PY) benchmarks/mutation.py

lint: env ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: env ## rewrite what ruff can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: env ## mypy, strict, on the package
	$(PY) -m mypy

audit: env ## advisories against what is installed, where the index has them; licences, into docs/licences.md
	@$(PY) -m venv build/audit && build/audit/bin/python -m pip install --quiet --timeout 15 --retries 0 pip-audit || true
	$(PY) benchmarks/audit.py build/audit/bin/pip-audit

bench: env ## timings beside stock segment-anything: attention, and one training step of every method; on a GPU also benchmarks/gpu.sh
	$(PY) benchmarks/attention.py
	$(PY) benchmarks/training_step.py

docs: env ## the site: all pages, and the API from the docstrings, into build/docs; a warning is an error
	OMP_NUM_THREADS=$(THREADS) $(PY) -m sphinx -q -W --keep-going -c docs/sphinx -d build/doctrees . build/docs

bundles: env ## write the configs that bundles/sam_image shares with bundles/sam_volume
	$(PY) -m tests.bundle_copies

build: env ## wheel, into dist
	$(PY) -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove caches and build outputs; the environment stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -path ./.git -prune -o -name __pycache__ -type d -print0 | xargs -0 -r rm -rf
